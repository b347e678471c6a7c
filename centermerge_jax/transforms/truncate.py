"""Keep the leading singular directions of every matrix of every task vector."""

import functools
import math
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError, ViewError
from centermerge_jax.linalg import (
    MEMORY,
    SOLVERS,
    LowRank,
    Solver,
    truncated_svd,
)
from centermerge_jax.ranks import Rank, check_fits, check_rank, resolve_rank
from centermerge_jax.task_vectors import TaskVectors
from centermerge_jax.views import MatrixView, Views, resolve


def truncate(
    tv: TaskVectors,
    *,
    rank: Rank,
    views: Views | None = None,
    solver: Solver = "auto",
    memory: int = MEMORY,
) -> TaskVectors:
    """Keeps the leading singular directions of each matrix, task by task.

        delta_t  ->  SVD_k(delta_t) = sum_{i <= k} s_i u_i v_i^T

    Leaves that are no matrices keep their full delta. Matrices of equal shape, over
    layers and tasks, are solved in one batched call. Truncating what is truncated
    already slices its factors, so a sweep over ranks pays for one factorisation.

    Args:
      tv: Task vectors.
      rank: Share of `min(m, n)` in (0, 1], `k = max(1, floor(share * min(m, n)))`, or a
        number of directions; a matrix that has fewer is kept whole.
      views: Which leaves are matrices; `cm.views.auto` by default. Factors remember
        their view, so for truncated task vectors it is not needed.
      solver: As for `cm.truncated_svd`.
      memory: Bytes of work space of one batched factorisation.

    Returns:
      Task vectors whose matrix leaves are `LowRank`.

    Raises:
      ParameterError: The rank is out of range, above the size of every matrix, or above
        what truncated factors still hold; or there is no matrix.
      ViewError: A leaf of two or more axes has no view.

    Note:
      For joined leaves (fused queries, keys and values) the joint matrix is factorised,
      and each leaf holds its slice of the joined side's factor.
    """
    rank = check_rank(rank)
    if solver not in SOLVERS:
        raise ParameterError(f"solver is one of {', '.join(SOLVERS)}; got {solver!r}")
    deltas: dict[str, Any] = {n: delta for n, (_, delta) in tv.flat().items()}
    table = _view_table(tv, deltas, views)
    matrices = {name: view for name, view in table.items() if view is not None}
    check_fits(rank, {name: view.size for name, view in matrices.items()})

    # Leaves that make up one matrix; a joined matrix may be called as some leaf is.
    bundles: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for name, view in matrices.items():
        delta = deltas[name]
        if isinstance(delta, LowRank):
            deltas[name] = _slice(name, delta, resolve_rank(rank, view.size))
        else:
            joined = view.join is not None
            bundles[joined, view.join.group if view.join else name].append(name)
    # Matrices of one shape are solved together.
    groups: dict[tuple[Any, ...], list[list[str]]] = defaultdict(list)
    for parts in bundles.values():
        dtypes = {deltas[leaf].dtype for leaf in parts}
        if len(dtypes) > 1:
            raise ViewError(f"joined leaves of different types: {', '.join(parts)}")
        groups[(*matrices[parts[0]].joint_shape, *dtypes)].append(parts)
    for names in groups.values():
        factors = _factorise(
            tuple(tuple(deltas[leaf] for leaf in parts) for parts in names),
            layouts=tuple(tuple(matrices[leaf] for leaf in parts) for parts in names),
            k=resolve_rank(rank, matrices[names[0][0]].size),
            solver=solver,
            memory=memory,
        )
        for parts, results in zip(names, factors, strict=True):
            deltas.update(zip(parts, results, strict=True))
    return tv.with_deltas(list(deltas.values()), zero_sum=tv.zero_sum)


def _view_table(
    tv: TaskVectors, deltas: dict[str, Any], views: Views | None
) -> dict[str, MatrixView | None]:
    """The views to truncate by; those that factors were made with take precedence."""
    stored = {name: d.view for name, d in deltas.items() if isinstance(d, LowRank)}
    if not stored:
        return resolve(tv.origin, views)
    if views is not None:
        wanted = resolve(tv.origin, views)
        unlike = [name for name, v in wanted.items() if v != stored.get(name)]
        if unlike:
            raise ViewError(
                f"these task vectors were truncated under other views ({unlike[0]}): "
                "truncate the full ones, or leave out views"
            )
    return dict(stored)


def _slice(name: str, delta: LowRank, k: int) -> LowRank:
    if k > delta.rank:
        raise ParameterError(
            f"{name} holds {delta.rank} of {delta.size} directions, not {k}: "
            "truncate the full task vectors"
        )
    return delta.keep(k)


@functools.partial(jax.jit, static_argnames=("layouts", "k", "solver", "memory"))
def _factorise(
    stacks: tuple[tuple[Float[Array, "tasks ..."], ...], ...],
    *,
    layouts: tuple[tuple[MatrixView, ...], ...],
    k: int,
    solver: Solver,
    memory: int,
) -> list[list[LowRank]]:
    """Factors of leaves whose (joint) matrices all have one shape, in one solve."""
    joint = [_joined(*bundle) for bundle in zip(stacks, layouts, strict=True)]
    flat = jnp.concatenate([x.reshape(-1, *x.shape[-2:]) for x in joint])
    solved = truncated_svd(flat, rank=k, solver=solver, memory=memory)
    results, start = [], 0
    for x, views in zip(joint, layouts, strict=True):
        stop = start + math.prod(x.shape[:-2])
        u, s, vh = (
            y[start:stop].reshape(*x.shape[:-2], *y.shape[1:])
            for y in (solved.u, solved.s, solved.vh)
        )
        results.append([_member(u, s, vh, view) for view in views])
        start = stop
    return results


def _joined(
    leaves: tuple[Float[Array, "tasks ..."], ...], views: tuple[MatrixView, ...]
) -> Float[Array, "tasks *batch m n"]:
    parts = [view.to_matrix(x) for x, view in zip(leaves, views, strict=True)]
    return jnp.concatenate(parts, axis=-1 if views[0].joins_cols else -2)


def _member(
    u: Float[Array, "*batch m k"],
    s: Float[Array, "*batch k"],
    vh: Float[Array, "*batch k n"],
    view: MatrixView,
) -> LowRank:
    """A leaf's own part of the factors of the matrix that it is joined in."""
    if view.join is None:
        return LowRank(u, s, vh, view)
    start = view.join.start
    if view.joins_cols:
        return LowRank(u, s, vh[..., start : start + view.n], view)
    return LowRank(u[..., start : start + view.m, :], s, vh, view)
