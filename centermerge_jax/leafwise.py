"""Functions of whole leaves of several trees, such as "keep each one's largest tenth".

Beside `elementwise`, whose functions see single numbers, and `matrixwise`, whose see
matrices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.elementwise import widened
from centermerge_jax.errors import ParameterError
from centermerge_jax.host_memory import as_jax, on_host
from centermerge_jax.scales import leaf_scales
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.trees import (
    Params,
    align,
    base_name,
    compute_dtype,
    dtype_of,
    is_merged,
    named_experts,
)

Function = Callable[[str, Sequence[Any], Any], Any]
"""From a leaf's name, one array of each tree, and what is given for the leaf, to the
result; in NumPy or `jax.numpy` alike."""

Transform = Callable[[str, Any], Any]
"""From a leaf's name and all its task vectors `[tasks, *shape]` to as many other ones,
which are then summed, or to a single one `[*shape]`."""


def leafwise(
    function: Function,
    trees: Mapping[str, Params],
    *,
    given: Sequence[Any] | None = None,
    dtype: Any = None,
    any_dtype: Sequence[str] = (),
) -> Params:
    """Applies a function to the floating leaves of several trees, leaf by leaf.

    Args:
      function: Gets a leaf's name and arrays of one shape in float32 (float64 for
        float64 leaves), one of each tree in order, and returns another. They are NumPy
        arrays where the trees lie in this process's memory, else JAX arrays.
      trees: Parameters by name.
      given: Something for each leaf, in tree order, that the function gets as it is.
      dtype: Type of the floating leaves of the result; that of the first tree's by
        default.
      any_dtype: As for `trees.align`.

    Returns:
      Parameters like those of the first tree.

    Raises:
      StructureError: The trees are not the same.

    Example:
      >>> trees = {"a": {"w": np.float32([1, 5])}, "b": {"w": np.float32([3, 4])}}
      >>> leafwise(lambda name, leaves, _: sum(x / x.max() for x in leaves), trees)
      {'w': Array([0.95, 2.  ], dtype=float32)}
    """
    check_dtype(dtype)
    structure, rows = align(trees, any_dtype=any_dtype)
    merged = []
    for (name, leaves), own in zip(
        rows.items(), given or [None] * len(rows), strict=True
    ):
        if not is_merged(leaves[0]):
            merged.append(leaves[0])
            continue
        stored = dtype_of(leaves[0]) if dtype is None else dtype
        if all(map(on_host, leaves)):
            merged.append(_on_host(function, name, leaves, own, stored))
        else:
            merged.append(function(name, widened(leaves), own).astype(stored))
    return structure.unflatten(merged)


def merge_leaves(
    transform: Transform,
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    dtype: Any = None,
) -> Params:
    """Adds task vectors to the pretrained parameters, transformed leaf by leaf.

        theta = theta_0 + scale * transform(tau),  or  theta_0 + sum_t scale_t tau'_t

    Args:
      transform: Of a leaf's task vectors.
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or as for `cm.combine`; one for each task only where there
        still is a vector for each after the transform.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `scale` is out of range.

    Example:
      >>> base = {"w": np.float32([0, 0])}
      >>> experts = [{"w": np.float32([1, -4])}, {"w": np.float32([3, 2])}]
      >>> merge_leaves(lambda name, x: x.max(0), experts, base, scale=2.0)
      {'w': Array([6., 4.], dtype=float32)}
    """
    trees = named_experts(experts)
    tasks = tuple(trees)
    name = base_name(trees)

    def merge(leaf: str, leaves: Sequence[Any], scale: Any) -> Any:
        *tuned, origin = leaves
        xp = origin.__array_namespace__()
        result = transform(leaf, xp.stack([x - origin for x in tuned]))
        weights = xp.asarray(scale, dtype=origin.dtype)
        if result.ndim == origin.ndim:
            if weights.ndim:
                raise ParameterError(
                    "scale is one number for all tasks: their vectors are scaled "
                    "after they became one"
                )
            return origin + weights * result
        weights = xp.broadcast_to(weights, (len(tasks),))
        return sum((w * x for w, x in zip(weights, result, strict=True)), origin)

    return leafwise(
        merge,
        trees | {name: base},
        given=leaf_scales(scale, base, tasks),
        dtype=dtype,
        any_dtype=(name,),
    )


@np.errstate(over="ignore", invalid="ignore")  # as silent as under jax.jit
def _on_host(
    function: Function, name: str, leaves: Sequence[Any], own: Any, stored: Any
) -> Float[Array, "*shape"]:
    dtype = compute_dtype(dtype_of(leaves[0]))
    wide = [np.asarray(leaf).astype(dtype, copy=False) for leaf in leaves]
    result = np.asarray(function(name, wide, own))
    return as_jax(result.astype(stored), leaves[0])
