"""Experts that are low-rank changes of one base, merged without dense deltas.

An adapter changes a matrix by `b_t @ a_t`. All changes of a matrix lie in the span of
the stacked factors `[b_1 .. b_T]` and `[a_1; ..; a_T]`, so that in orthonormal bases of
the two each task vector is a small core, and its SVD that of the core:

    Q_b R_b = [b_1 .. b_T],  Q_a R_a = [a_1; ..; a_T]^T
    delta_t = Q_b (R_b W_t R_a^T) Q_a^T

with `W_t` diagonal: 1 on the columns of task `t` and 0 elsewhere; around the mean each
less `1/T`. With `r` directions a task this costs `(m + n) (T r)^2` instead of the
`T m n min(m, n)` of as many full decompositions.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from centermerge_jax.errors import ParameterError, StructureError, listing
from centermerge_jax.linalg import LowRank
from centermerge_jax.task_vectors import TaskVectors
from centermerge_jax.trees import (
    Params,
    align,
    compute_dtype,
    dtype_of,
    is_merged,
    named_experts,
)
from centermerge_jax.views import MatrixView, Views, resolve

Adapter = Mapping[str, tuple[Any, Any]]
"""`(b, a)` by leaf name: `[*batch, m, r]` and `[*batch, r, n]`, multiplied out `b @ a`
what is added to the leaf, as the matrix of its view. Scales are in the factors."""

Adapters = Mapping[str, Adapter] | Sequence[Adapter]
"""By task name, or in a sequence (then named '0', '1', ...)."""

_Pair = tuple[np.ndarray, np.ndarray]
"""`[*batch, m, r]` and `[*batch, r, n]`, where `r` differs between tasks."""


def subtract_factors(
    base: Params, adapters: Adapters, *, views: Views | None = None
) -> TaskVectors:
    """Task vectors of adapters around their base, as `cm.subtract` of whole experts.

        origin = base,  delta_t = b_t @ a_t

    Args:
      base: The parameters that the adapters change.
      adapters: Factors of each task's change; leaves that it leaves alone are left out.
      views: Which leaves are matrices; `cm.views.auto` by default.

    Returns:
      Task vectors in float32 (float64 for float64 leaves). Leaves that some adapter
      changes are `LowRank`; all of them hold as many directions as the largest change
      has, or `min(m, n)`, so that `cm.truncate` takes any integer rank up to that. The
      others have deltas of zero, which take no memory.

    Raises:
      StructureError: Factors belong to no leaf, or do not fit the matrix of its view;
        every one is listed.
      ParameterError: There is no adapter, or none changes anything.
      ViewError: As `cm.truncate`.

    Note:
      Give the result to `cm.truncate` without views: factors remember theirs.

    Example:
      >>> base = {"w": {"kernel": jnp.eye(3)}}
      >>> change = {"w/kernel": (np.ones((3, 1)), np.array([[0.0, 2.0, 0.0]]))}
      >>> tv = subtract_factors(base, {"mnist": change})
      >>> tv.deltas["w"]["kernel"].rank
      1
    """
    return _task_vectors(base, adapters, views, centered=False)


def center_factors(
    base: Params, adapters: Adapters, *, views: Views | None = None
) -> TaskVectors:
    """Task vectors of adapters around their mean, as `cm.center` of whole experts.

        origin = base + mean_t b_t @ a_t,  delta_t = base + b_t @ a_t - origin

    Truncated and combined they are CART of the adapted models:

        tv = cm.truncate(center_factors(base, adapters), rank=8)
        params = cm.combine(tv, scale=1.5)

    Args:
      base: As for `subtract_factors`.
      adapters: As for `subtract_factors`.
      views: As for `subtract_factors`.

    Returns:
      Task vectors as from `subtract_factors`. A centred matrix has no more directions
      than all tasks' changes together. So many of the leaf that has the most, or
      `min(m, n)`, are held of each leaf, and `cm.truncate` takes no rank above that.
      Shares refer to `min(m, n)`, as always: give an integer.

    Raises:
      StructureError: As `subtract_factors`.
      ParameterError: As `subtract_factors`.
      ViewError: As `subtract_factors`.
    """
    return _task_vectors(base, adapters, views, centered=True)


def _task_vectors(
    base: Params, adapters: Adapters, views: Views | None, *, centered: bool
) -> TaskVectors:
    named = named_experts(adapters)
    structure, rows = align({"base": base})
    leaves = {name: row[0] for name, row in rows.items()}
    table = resolve(base, views)
    _check(named, leaves, table)
    bundles = _bundles(table)
    held = {
        key: _held([_rank(adapter, members) for adapter in named.values()], centered)
        for key, members in bundles.items()
    }
    most = max(held.values(), default=0)
    if most == 0:
        raise ParameterError("the adapters change no leaf")

    tasks = len(named)
    origins = {name: _widened(leaf) for name, leaf in leaves.items()}
    deltas: dict[str, Any] = {
        name: np.broadcast_to(np.zeros((), leaf.dtype), (tasks, *np.shape(leaf)))
        if is_merged(leaf)
        else None
        for name, leaf in origins.items()
    }
    for key, members in bundles.items():
        if held[key] == 0:
            continue
        size = next(iter(members.values())).size
        dtype = compute_dtype(dtype_of(leaves[next(iter(members))]))
        pairs = [_joint(adapter, members, dtype) for adapter in named.values()]
        factors = _factorise(pairs, rank=min(most, size), centered=centered)
        for name, view in members.items():
            if centered:
                origins[name] = origins[name] + _mean(pairs, view)
            touched = any(name in adapter for adapter in named.values())
            deltas[name] = _own(*factors, view, touched=touched)
    return TaskVectors(
        origin=structure.unflatten(origins.values()),
        deltas=structure.unflatten(deltas.values()),
        tasks=tuple(named),
        dtypes=tuple(
            np.dtype(dtype_of(leaf)) if is_merged(leaf) else None
            for leaf in leaves.values()
        ),
        zero_sum=True,  # of the dense deltas, which are all zero
    )


def _check(
    named: Mapping[str, Adapter],
    leaves: Mapping[str, Any],
    table: Mapping[str, MatrixView | None],
) -> None:
    """Refuses factors that belong to no matrix, do not fit it, or are not finite."""
    problems = []
    for task, adapter in named.items():
        for leaf, (b, a) in adapter.items():
            view = table.get(leaf)
            if leaf not in leaves:
                fault = "is not in the base"
            elif view is None:
                fault = "is no matrix under these views"
            else:
                fault = _misfit(view, b, a)
            if fault:
                problems.append(f"{task}: {leaf} {fault}")
    if problems:
        raise StructureError(
            listing("{n} change{s} that cannot be added to the base", problems)
        )


def _misfit(view: MatrixView, b: Any, a: Any) -> str:
    shapes, rank = (np.shape(b), np.shape(a)), np.shape(b)[-1:]
    wanted = (*view.batch_shape, view.m, *rank), (*view.batch_shape, *rank, view.n)
    if not rank or shapes != wanted:
        return (
            f"is {[*view.batch_shape, view.m, view.n]} as its view has it, which "
            f"factors {list(shapes[0])} and {list(shapes[1])} do not give"
        )
    if not np.isfinite(np.asarray(b)).all() or not np.isfinite(np.asarray(a)).all():
        return "has factors that are not finite"
    return ""


def _bundles(
    table: Mapping[str, MatrixView | None],
) -> dict[tuple[bool, str], dict[str, MatrixView]]:
    """Matrices, by the leaves that make each of them up."""
    bundles: dict[tuple[bool, str], dict[str, MatrixView]] = defaultdict(dict)
    for name, view in table.items():
        if view is not None:
            joined = view.join is not None
            bundles[joined, view.join.group if view.join else name][name] = view
    return bundles


def _rank(adapter: Adapter, members: Mapping[str, MatrixView]) -> int:
    """Directions of a task's change of one (joint) matrix."""
    return sum(np.shape(adapter[name][0])[-1] for name in members if name in adapter)


def _held(ranks: Sequence[int], centered: bool) -> int:
    """Directions that the task vectors of one matrix have at most."""
    return sum(ranks) if centered else max(ranks)


def _widened(leaf: Any) -> Any:
    """A leaf of the base as its origin: in the type that is computed in."""
    if not is_merged(leaf):
        return leaf
    # A JAX array of this type already need not be copied: nobody can write to it.
    dtype = compute_dtype(dtype_of(leaf))
    return jnp.array(leaf, dtype, copy=not isinstance(leaf, jax.Array))


def _joint(adapter: Adapter, members: Mapping[str, MatrixView], dtype: Any) -> _Pair:
    """Factors of a task's change of one matrix, zero where leaves joined in it end."""
    first = next(iter(members.values()))
    m, n = first.joint_shape
    columns = [np.zeros((*first.batch_shape, m, 0), dtype)]
    rows = [np.zeros((*first.batch_shape, 0, n), dtype)]
    for name, view in members.items():
        if name not in adapter:
            continue
        b, a = (np.asarray(x).astype(dtype) for x in adapter[name])
        if view.join is not None:
            start, rank = view.join.start, b.shape[-1]
            if view.joins_cols:
                whole = np.zeros((*view.batch_shape, rank, n), dtype)
                whole[..., start : start + view.n] = a
                a = whole
            else:
                whole = np.zeros((*view.batch_shape, m, rank), dtype)
                whole[..., start : start + view.m, :] = b
                b = whole
        columns.append(b)
        rows.append(a)
    return np.concatenate(columns, axis=-1), np.concatenate(rows, axis=-2)


def _factorise(
    pairs: Sequence[_Pair], *, rank: int, centered: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading singular triplets of each task's change: `u`, `s` and `vh`.

    `rank` is at most `min(m, n)`; directions that the changes do not have are zero.
    """
    ranks = [b.shape[-1] for b, _ in pairs]
    total, tasks = sum(ranks), len(pairs)
    # Zero factors make up for directions that are missing: their part of an orthonormal
    # basis is as good as any.
    padding = max(0, rank - total)
    b = np.concatenate([b for b, _ in pairs], axis=-1)
    a = np.concatenate([a for _, a in pairs], axis=-2).swapaxes(-1, -2)
    left, core_b = np.linalg.qr(_padded(b, padding))
    right, core_a = np.linalg.qr(_padded(a, padding))
    weights = np.repeat(np.eye(tasks, dtype=b.dtype), ranks, axis=1)
    if centered:
        weights -= np.asarray(1 / tasks, b.dtype)
    weights = _padded(weights, padding)
    weights = weights.reshape(tasks, *(1,) * (b.ndim - 1), total + padding)
    u, s, vh = np.linalg.svd(
        (core_b * weights) @ core_a.swapaxes(-1, -2), full_matrices=False
    )
    # Beyond what the factors can span there is rounding only.
    s[..., total if centered else max(ranks) :] = 0
    return (
        left @ u[..., :rank],
        s[..., :rank],
        vh[..., :rank, :] @ right.swapaxes(-1, -2),
    )


def _padded(
    x: Float[np.ndarray, "*batch rows before"], columns: int
) -> Float[np.ndarray, "*batch rows after"]:
    """With so many columns of zeros more."""
    return np.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, columns)])


def _mean(pairs: Sequence[_Pair], view: MatrixView) -> Any:
    """The mean of the changes of a leaf: the one dense product."""
    b = np.concatenate([b for b, _ in pairs], axis=-1)
    a = np.concatenate([a for _, a in pairs], axis=-2) / np.asarray(len(pairs), b.dtype)
    b, a = _slice(b, a, view)
    return jnp.asarray(view.from_matrix(b @ a))


def _own(
    u: np.ndarray, s: np.ndarray, vh: np.ndarray, view: MatrixView, *, touched: bool
) -> LowRank:
    """A leaf's own part of the factors of its matrix."""
    u, vh = _slice(u, vh, view)
    if not touched:  # others joined with it are: what rounding left here is no change
        u, vh = (u, vh * 0) if view.joins_cols else (u * 0, vh)
    return LowRank(jnp.asarray(u), jnp.asarray(s), jnp.asarray(vh), view)


def _slice(
    left: np.ndarray, right: np.ndarray, view: MatrixView
) -> tuple[np.ndarray, np.ndarray]:
    """A leaf's rows and columns of the factors of the matrix that it is joined in."""
    if view.join is None:
        return left, right
    start = view.join.start
    if view.joins_cols:
        return left, right[..., start : start + view.n]
    return left[..., start : start + view.m, :], right
