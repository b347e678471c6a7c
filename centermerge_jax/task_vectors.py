"""Task vectors around an origin: made, added back, selected.

A merge is *task vectors around an origin, transformed, and added back*. This module
holds the one data type, the two ways to make it and the two ways to leave it again;
`centermerge_jax.transforms` holds what happens in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.elementwise import BLOCK, widened
from centermerge_jax.errors import ParameterError, StructureError
from centermerge_jax.host_memory import as_jax, empty, on_host
from centermerge_jax.linalg import LowRank
from centermerge_jax.scales import leaf_scales
from centermerge_jax.trees import (
    X64,
    Params,
    align,
    base_name,
    compute_dtype,
    dtype_of,
    is_merged,
    named_experts,
    named_leaves,
)

Experts = Mapping[str, Params] | Sequence[Params]
"""Fine-tuned parameters by task name, or in a sequence (then named '0', '1', ...)."""

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TaskVectors:
    """Task vectors (deltas) of several experts around a common origin.

    Attributes:
      origin: Where the vectors start: the mean of the experts or the pretrained
        parameters. Floating leaves are in the type that is computed in, float32 or
        float64; carried leaves (integers, keys, functions) are the experts' own.
      deltas: The same tree. A leaf is an array `[tasks, *shape]`, the `LowRank` factors
        of one, or None where the leaf is carried.
      tasks: Names, in the order of the task axis.
      dtypes: Types of the experts' leaves in tree order, to which results are cast.
      zero_sum: Whether the *dense* deltas sum to zero over the tasks, as they do around
        the mean; `combine` then leaves them out under one scale. Whoever puts in other
        dense deltas has to clear it: use `with_deltas`, which asks, and not
        `dataclasses.replace` or `jax.tree.map`, which keep it.
    """

    origin: Params
    deltas: Params
    tasks: tuple[str, ...] = field(metadata={"static": True})
    dtypes: tuple[Any, ...] = field(metadata={"static": True})
    zero_sum: bool = field(default=False, metadata={"static": True})

    def flat(self) -> dict[str, tuple[Any, Any]]:
        """Origin and delta of each leaf by name, in tree order."""
        structure = jax.tree.structure(self.origin)
        origins = named_leaves(self.origin)
        deltas = structure.flatten_up_to(self.deltas)
        pairs = zip(origins.values(), deltas, strict=True)
        return dict(zip(origins, pairs, strict=True))

    def with_deltas(self, deltas: Sequence[Any], *, zero_sum: bool) -> "TaskVectors":
        """The same origin and tasks with other deltas, given in tree order."""
        structure = jax.tree.structure(self.origin)
        return replace(self, deltas=structure.unflatten(deltas), zero_sum=zero_sum)


def center(experts: Experts) -> TaskVectors:
    """Task vectors around the mean of the experts.

        origin = mean_t theta_t,  delta_t = theta_t - origin

    Args:
      experts: Parameters of at least one expert, all the same tree with the same
        shapes and types.

    Returns:
      Task vectors in float32 (float64 for float64 leaves) that sum to zero.

    Raises:
      StructureError: The experts are not the same tree; every difference is listed.
      ParameterError: There is no expert.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153.

    Example:
      >>> tv = center({"a": {"w": jnp.array([1.0])}, "b": {"w": jnp.array([3.0])}})
      >>> tv.origin["w"], tv.deltas["w"]
      (Array([2.], dtype=float32), Array([[-1.],
             [ 1.]], dtype=float32))
    """
    return _task_vectors(named_experts(experts), _center_leaf, _center_block)


def subtract(experts: Experts, base: Params) -> TaskVectors:
    """Classic task vectors, around the pretrained parameters.

        origin = theta_0,  delta_t = theta_t - theta_0

    Args:
      experts: Parameters of at least one expert, all the same tree.
      base: The parameters that they were fine-tuned from; its floating leaves may have
        another type than the experts'.

    Returns:
      Task vectors in float32 (float64 for float64 leaves).

    Raises:
      StructureError: The trees are not the same; every difference is listed.
      ParameterError: There is no expert.

    References:
      Ilharco et al., "Editing Models with Task Arithmetic", 2023, arXiv:2212.04089,
      section 2.
    """
    return _task_vectors(named_experts(experts), _subtract_leaf, _subtract_block, base)


def combine(tv: TaskVectors, *, scale: Any, dtype: Any = None) -> Params:
    """Adds the task vectors to their origin.

        theta = origin + sum_t scale_t * delta_t

    Affine in `scale`: a sweep over scales repeats no factorisation, and `jax.grad`
    reaches both `scale` and the factors.

    Args:
      tv: Task vectors, dense or in factors.
      scale: One number; a mapping from each task name to a number; an array `[tasks]`;
        or a tree prefix of `tv.origin` that holds any of these.
      dtype: Type of the floating leaves of the result; the experts' by default.

    Returns:
      Parameters like those of one expert, summed in float32 and cast once.

    Raises:
      ParameterError: `scale` is of none of these forms, NaN or infinite, or `dtype` is
        not a floating type.

    Note:
      Dense deltas around the mean sum to zero, so under one scale for all tasks the
      result is the origin, and that is returned exactly, without rounding dust.

    Example:
      >>> tv = subtract([{"w": jnp.array([1.0, 2.0])}], {"w": jnp.array([1.0, 1.0])})
      >>> combine(tv, scale=0.5)
      {'w': Array([1. , 1.5], dtype=float32)}
    """
    return combine_leaves(tv, leaf_scales(scale, tv.origin, tv.tasks), dtype=dtype)


def combine_leaves(
    tv: TaskVectors, scales: Sequence[Any], *, dtype: Any = None
) -> Params:
    """As `combine`, with the scale of every leaf given in tree order.

    Args:
      tv: Task vectors.
      scales: For each leaf of `tv.origin` one number or an array `[tasks]`.
      dtype: As for `combine`.
    """
    check_dtype(dtype)
    leaves = []
    for (origin, delta), scale, own in zip(
        tv.flat().values(), scales, tv.dtypes, strict=True
    ):
        if delta is None:
            leaves.append(origin)
            continue
        weights = jnp.asarray(scale, origin.dtype)
        if isinstance(delta, LowRank):
            leaf = _add_low_rank(origin, delta, weights)
        elif weights.ndim == 0 and tv.zero_sum:
            leaf = origin
        else:
            leaf = _add_dense(origin, delta, weights)
        leaves.append(leaf.astype(own if dtype is None else dtype))
    return jax.tree.structure(tv.origin).unflatten(leaves)


def select(
    tv: TaskVectors, task: str | int, *, scale: Any, dtype: Any = None
) -> Params:
    """One task's model: the origin and that task's vector alone.

        theta = origin + scale * delta_task

    With truncated vectors around the mean this is what the paper calls CART-Indexing:
    origin and factors are kept for all tasks, and one is served at a time.

    Args:
      tv: Task vectors, dense or in factors.
      task: Name or index of the task.
      scale: One number, or a tree prefix of `tv.origin` that holds numbers.
      dtype: Type of the floating leaves of the result; the experts' by default.

    Raises:
      ParameterError: There is no such task.

    Example:
      >>> tv = center([{"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}])
      >>> select(tv, "1", scale=1.0)
      {'w': Array([3.], dtype=float32)}
    """
    index = _task_index(tv, task)

    def pick(delta: Any) -> Any:
        if delta is None:
            return None
        if isinstance(delta, LowRank):
            return jax.tree.map(lambda x: x[index : index + 1], delta)
        return delta[index : index + 1]

    one = tv.with_deltas([pick(d) for _, d in tv.flat().values()], zero_sum=False)
    return combine(replace(one, tasks=(tv.tasks[index],)), scale=scale, dtype=dtype)


def _task_vectors(
    named: Mapping[str, Params], leaf_fn: Any, block_fn: Any, *base: Params
) -> TaskVectors:
    """Origins and deltas leaf by leaf, after all trees were found to be the same."""
    trees = dict(named)
    if base:
        name = base_name(trees)
        trees[name] = base[0]
        structure, rows = align(trees, any_dtype=(name,))
    else:
        structure, rows = align(trees)
    origins, deltas, dtypes = [], [], []
    for leaves in rows.values():
        if not is_merged(leaves[0]):
            origins.append(leaves[0])
            deltas.append(None)
            dtypes.append(None)
            continue
        if all(map(on_host, leaves)):
            origin, delta = _on_host(leaves, block_fn)
        else:
            origin, delta = leaf_fn(leaves)
        origins.append(origin)
        deltas.append(delta)
        dtypes.append(np.dtype(dtype_of(leaves[0])))
    return TaskVectors(
        origin=structure.unflatten(origins),
        deltas=structure.unflatten(deltas),
        tasks=tuple(named),
        dtypes=tuple(dtypes),
        zero_sum=not base,
    )


@jax.jit
def _center_leaf(
    leaves: tuple[Float[Array | np.ndarray, "*shape"], ...],
) -> tuple[Float[Array, "*shape"], Float[Array, "tasks *shape"]]:
    first, *others = widened(leaves)
    # Relative to one expert, differences of similar numbers are exact and the mean
    # loses nothing; equal experts are their own mean to the last bit. Written leaf by
    # leaf, not on their stack, XLA does it in two passes over the memory.
    offset = sum((x - first for x in others), jnp.zeros_like(first)) / len(leaves)
    deltas = [(x - first) - offset for x in (first, *others)]
    return first + offset, jnp.stack(deltas)


@jax.jit
def _subtract_leaf(
    leaves: tuple[Float[Array | np.ndarray, "*shape"], ...],
) -> tuple[Float[Array, "*shape"], Float[Array, "tasks *shape"]]:
    *experts, base = widened(leaves)
    return base, jnp.stack([x - base for x in experts])


@np.errstate(over="ignore", invalid="ignore")  # as silent as under jax.jit
def _on_host(
    leaves: tuple[Any, ...], block_fn: Any
) -> tuple[Float[Array, "*shape"], Float[Array, "tasks *shape"]]:
    """The same in NumPy, block by block, so that memory is passed over once."""
    dtype = compute_dtype(dtype_of(leaves[0]))
    shape = np.shape(leaves[0])
    flat = [np.asarray(leaf).reshape(-1) for leaf in leaves]
    tasks = len(leaves) - (block_fn is _subtract_block)
    origin, deltas = empty(shape, dtype), empty((tasks, *shape), dtype)
    into, rows = origin.reshape(-1), deltas.reshape(tasks, -1)
    for start in range(0, into.size, BLOCK):
        part = slice(start, start + BLOCK)
        block = [x[part].astype(dtype, copy=False) for x in flat]
        block_fn(block, into[part], rows[:, part])
    return as_jax(origin, leaves[0]), as_jax(deltas, leaves[0])


def _center_block(
    block: list[np.ndarray], origin: np.ndarray, deltas: np.ndarray
) -> None:
    first, *others = block
    offset = np.zeros_like(first)
    for x in others:
        offset += x - first
    offset /= first.dtype.type(len(block))
    np.add(first, offset, out=origin)
    for x, delta in zip(block, deltas, strict=True):
        np.subtract(x, first, out=delta)
        np.subtract(delta, offset, out=delta)


def _subtract_block(
    block: list[np.ndarray], origin: np.ndarray, deltas: np.ndarray
) -> None:
    *experts, base = block
    origin[:] = base
    for x, delta in zip(experts, deltas, strict=True):
        np.subtract(x, base, out=delta)


@jax.jit
def _add_dense(
    origin: Float[Array, "*shape"],
    delta: Float[Array, "tasks *shape"],
    weights: Float[Array, "*tasks"],
) -> Float[Array, "*shape"]:
    weights = jnp.broadcast_to(weights, delta.shape[:1])
    return origin + jnp.tensordot(weights, delta, axes=1, precision=_HIGHEST)


def _add_low_rank(
    origin: Float[Array, "*shape"], delta: LowRank, weights: Float[Array, "*tasks"]
) -> Float[Array, "*shape"]:
    view = delta.view
    if view is None:
        raise StructureError("factors without a view cannot be added to a leaf")
    total = _sum_low_rank(delta.u, delta.s, delta.vh, weights)
    return origin + view.from_matrix(total)


@jax.jit
def _sum_low_rank(
    u: Float[Array, "tasks *batch m k"],
    s: Float[Array, "tasks *batch k"],
    vh: Float[Array, "tasks *batch k n"],
    weights: Float[Array, "*tasks"],
) -> Float[Array, "*batch m n"]:
    """`sum_t weight_t * u_t diag(s_t) vh_t` as one product with inner length t k."""
    shape = (-1, *(1,) * (s.ndim - 1))
    weights = jnp.broadcast_to(weights, s.shape[:1]).reshape(shape)
    us = u * (weights * s)[..., None, :]
    return jnp.einsum("t...mk,t...kn->...mn", us, vh, precision=_HIGHEST)


def check_dtype(dtype: Any) -> None:
    """Checks the type asked of a result; None is that of the experts.

    Raises:
      ParameterError: It is not floating, or float64 without `jax_enable_x64`.
    """
    if dtype is None:
        return
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ParameterError(f"dtype is a floating type, got {dtype}")
    if np.dtype(dtype) == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ParameterError(f"dtype float64: {X64}")


def _task_index(tv: TaskVectors, task: str | int) -> int:
    if isinstance(task, str) and task in tv.tasks:
        return tv.tasks.index(task)
    if type(task) is int and 0 <= task < len(tv.tasks):
        return task
    raise ParameterError(
        f"no task {task!r}: there are {', '.join(tv.tasks)}, numbered from 0"
    )
