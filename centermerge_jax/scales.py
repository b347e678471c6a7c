"""What may be given as a scale, brought to one scale for each leaf."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from centermerge_jax.errors import ParameterError
from centermerge_jax.trees import Params, dtype_of, is_array, named_leaves


def leaf_scales(scale: Any, origin: Params, tasks: Sequence[str]) -> list[Any]:
    """The scale of every leaf in tree order.

    Args:
      scale: One number; a mapping from each task name to a number; an array `[tasks]`;
        or a tree prefix of `origin` that holds any of these.
      origin: The parameter tree.
      tasks: Task names, in the order of the task axis.

    Returns:
      For each leaf one number, or an array in the order of the tasks.

    Raises:
      ParameterError: `scale` has another form, could mean two things, or is NaN or
        infinite.

    Example:
      >>> by_task = {"mnist": 2.0, "cars": 1.0}
      >>> leaf_scales({"a": 0.5, "b": by_task}, {"a": 0, "b": 0}, ["cars", "mnist"])
      [0.5, Array([1., 2.], dtype=float32)]
    """
    by_task = False

    def per_task(x: Any) -> bool:
        nonlocal by_task
        found = isinstance(x, Mapping) and x.keys() == set(tasks)
        by_task |= found
        return found

    try:
        prefix = jax.tree.broadcast(scale, origin, is_leaf=per_task)
        values = jax.tree.structure(origin).flatten_up_to(prefix)
    except ValueError as error:
        raise ParameterError(
            f"scale is a number, a mapping from each of the tasks "
            f"({', '.join(tasks)}), an array of {len(tasks)}, or a tree prefix "
            f"of the parameters: {error}"
        ) from None
    if by_task and (node := _node_with_keys(origin, set(tasks))) is not None:
        raise ParameterError(
            f"parameters at {node or 'the top'!r} have the names of the tasks, so a "
            "mapping as scale could mean either: give arrays in the order of the tasks"
        )
    names = named_leaves(origin)
    return [
        _checked(value, name, tasks) for name, value in zip(names, values, strict=True)
    ]


def one_scale(scale: Any, base: Params, tasks: tuple[str, ...]) -> list[Any]:
    """The scale of each leaf, the same for all tasks.

    Raises:
      ParameterError: There is one for each task.
    """
    scales = leaf_scales(scale, base, tasks)
    if any(np.ndim(each) for each in scales):
        raise ParameterError(
            "scale is one number for all tasks: their vectors are scaled after they "
            "became one"
        )
    return scales


def _node_with_keys(tree: Params, keys: set[str]) -> str | None:
    """The name of a node whose children have exactly these names, if there is one."""
    children: dict[str, set[str]] = {}
    for name in named_leaves(tree):
        parts = name.split("/")
        for depth, part in enumerate(parts):
            children.setdefault("/".join(parts[:depth]), set()).add(part)
    return next((node for node, found in children.items() if found == keys), None)


def _checked(value: Any, leaf: str, tasks: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        kind = jnp.result_type(float)
        value = jnp.stack([jnp.asarray(value[task], kind) for task in tasks])
    shape = np.shape(value)
    if not is_array(value) or jnp.issubdtype(dtype_of(value), jnp.complexfloating):
        raise ParameterError(f"scale for {leaf} is a real number, got {value!r}")
    if shape not in ((), (len(tasks),)):
        raise ParameterError(
            f"scale for {leaf} has shape {list(shape)}: it is one number, or one for "
            f"each of the {len(tasks)} tasks"
        )
    if not isinstance(value, Tracer) and not np.all(np.isfinite(value)):
        raise ParameterError(f"scale for {leaf} is not finite: {value}")
    return value
