"""Random numbers that belong to a place: a method, a task and a leaf.

Their key is derived from names, so that they depend neither on the order of tasks and
leaves nor on which part of a tree is merged where.
"""

import hashlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError


def uniforms(
    seed: int, method: str, task: str, leaf: str, shape: tuple[int, ...]
) -> Float[Array, "*shape"]:
    """Numbers in [0, 1) for a leaf of one task.

    Args:
      seed: Chosen by the user.
      method: Name of the method that draws.
      task: Name of the task.
      leaf: Name of the leaf.
      shape: Of the leaf.

    Example:
      >>> a, b = (uniforms(0, "dare", task, "w", (2,)) for task in ("mnist", "cars"))
      >>> bool((a != b).all())
      True
    """
    # The same numbers whatever JAX is configured to.
    key = jax.random.key(seed, impl="threefry2x32")
    for name in (method, task, leaf):
        word = hashlib.sha256(name.encode()).digest()[:4]
        key = jax.random.fold_in(key, int.from_bytes(word, "little"))
    return jax.random.uniform(key, shape, np.float32)


def task_uniforms(
    seed: int, method: str, tasks: tuple[str, ...], leaf: str, like: Any
) -> Any:
    """Those of all tasks, `[tasks, *shape]`, in the library of an array of that shape.

    Args:
      seed: As for `uniforms`.
      method: As for `uniforms`.
      tasks: Names of the tasks.
      leaf: As for `uniforms`.
      like: Task vectors of the leaf.

    Example:
      >>> task_uniforms(0, "dare", ("a", "b"), "w", jax.numpy.zeros((2, 3))).shape
      (2, 3)
    """
    drawn = [uniforms(seed, method, task, leaf, like.shape[1:]) for task in tasks]
    xp = like.__array_namespace__()
    return xp.stack([xp.asarray(x) for x in drawn])


def check_seed(seed: Any) -> None:
    """Refuses what is no seed.

    Raises:
      ParameterError: It is not an integer in [0, 2^32).
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ParameterError(f"seed is an integer in [0, 2^32); got {seed!r}")
