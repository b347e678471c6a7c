"""Functions of the numbers at one place in several trees, such as a mean.

On the CPU they are applied to blocks that fit into a cache, so that memory is passed
over once; under `jax.jit` and on accelerators XLA does the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.host_memory import as_jax, empty, on_host
from centermerge_jax.trees import Params, align, compute_dtype, dtype_of, is_merged

BLOCK = 2**16
"""Numbers of one leaf in work at a time: those of eight experts fit into a cache."""

Function = Callable[[Sequence[Any], Any], Any]
"""From one array of each tree, and what is given for the leaf, to the result; in NumPy
or `jax.numpy` alike."""


def elementwise(
    function: Function,
    trees: Mapping[str, Params],
    *,
    given: Sequence[Any] | None = None,
    dtype: Any = None,
    any_dtype: Sequence[str] = (),
) -> Params:
    """Applies a function to the floating leaves of several trees, number by number.

    Args:
      function: Gets arrays of one shape in float32 (float64 for float64 leaves), one of
        each tree in order, and returns another; it must not look at their shape.
      trees: Parameters by name.
      given: A number or array for each leaf, in tree order, that the function gets in
        the same type; None by default.
      dtype: Type of the floating leaves of the result; that of the first tree's by
        default.
      any_dtype: As for `trees.align`.

    Returns:
      Parameters like those of the first tree.

    Raises:
      StructureError: The trees are not the same.

    Example:
      >>> trees = {"a": {"w": np.float32([1, 5])}, "b": {"w": np.float32([3, 4])}}
      >>> elementwise(lambda x, _: abs(x[0] - x[1]), trees)
      {'w': Array([2., 1.], dtype=float32)}
    """
    structure, rows = align(trees, any_dtype=any_dtype)
    merged = []
    for leaves, own in zip(rows.values(), given or [None] * len(rows), strict=True):
        if not is_merged(leaves[0]):
            merged.append(leaves[0])
            continue
        stored = dtype_of(leaves[0]) if dtype is None else dtype
        if all(map(on_host, [*leaves, own])):
            merged.append(_on_host(function, leaves, own, stored))
        else:
            wide = widened(leaves)
            own = None if own is None else jnp.asarray(own, wide[0].dtype)  # noqa: PLW2901
            merged.append(function(wide, own).astype(stored))
    return structure.unflatten(merged)


def widened(leaves: Sequence[Any]) -> list[Float[Array, "*shape"]]:
    """The leaves as JAX arrays in the type that is computed in."""
    dtype = compute_dtype(dtype_of(leaves[0]))
    return [jnp.asarray(leaf).astype(dtype) for leaf in leaves]


@np.errstate(over="ignore", invalid="ignore")  # as silent as under jax.jit
def _on_host(
    function: Function, leaves: Sequence[Any], own: Any, stored: Any
) -> Float[Array, "*shape"]:
    dtype = compute_dtype(dtype_of(leaves[0]))
    own = None if own is None else np.asarray(own, dtype)
    flat = [np.asarray(leaf).reshape(-1) for leaf in leaves]
    result = empty(np.shape(leaves[0]), stored)
    into = result.reshape(-1)
    for start in range(0, into.size, BLOCK):
        part = slice(start, start + BLOCK)
        into[part] = function([x[part].astype(dtype, copy=False) for x in flat], own)
    return as_jax(result, leaves[0])
