"""Keep the leading singular directions of every matrix of every task vector."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError, ViewError
from centermerge_jax.host_memory import on_host
from centermerge_jax.linalg import (
    BYTES_PER_NUMBER,
    MEMORY,
    TOLERANCE,
    LowRank,
    Solved,
    Solver,
    check_solver,
    noise_edge,
    solve,
)
from centermerge_jax.ranks import Rank, check_fits, check_ranks, resolve_rank
from centermerge_jax.task_vectors import TaskVectors
from centermerge_jax.transforms.spectra import absent
from centermerge_jax.views import MatrixView, Views, groups, resolve


def truncate(
    tv: TaskVectors,
    *,
    rank: Rank | Mapping[str, Rank],
    energy: float | None = None,
    noise: float | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    key: Any = None,
    memory: int = MEMORY,
    donate: bool = False,
) -> TaskVectors:
    """Keeps the leading singular directions of each matrix, task by task.

        delta_t  ->  SVD_k(delta_t) = sum_{i <= k} s_i u_i v_i^T

    Leaves that are no matrices keep their full delta. Matrices of equal shape, over
    layers and tasks, are solved in one batched call. Truncating what is truncated
    already slices its factors, so a sweep over ranks pays for one factorisation.

    Args:
      tv: Task vectors.
      rank: Share of `min(m, n)` in (0, 1], `k = max(1, floor(share * min(m, n)))`, or a
        number of directions; a matrix that has fewer is kept whole. Or a mapping from
        each task's name to its rank: others' directions are then stored as zeros.
      energy: If given, of these directions only the fewest that make up this share in
        (0, 1] of the squares of the singular values, matrix by matrix; the others are
        stored as zeros. With `rank=1.0` it alone decides.
      noise: If given, of these directions only those whose singular value is above so
        many times the edge of noise, `linalg.noise_edge` times the median of them all;
        1.0 is the edge itself. Where none is, as in a matrix of nothing but noise and
        in every one with `min(m, n)` of 1 or 2, the delta becomes zero. A matrix of
        less than half its rank has no noise, and keeps all directions that it has.
      views: Which leaves are matrices; `cm.views.auto` by default. Factors remember
        their view, so for truncated task vectors it is not needed.
      solver: As for `cm.truncated_svd`.
      tolerance: As for `cm.truncated_svd`.
      key: As for `cm.truncated_svd`.
      memory: Bytes of deltas and work space in one batched factorisation.
      donate: Delete each delta from `tv` once its factors are there, as
        `jax.jit(donate_argnums=...)` would: factors and the deltas not yet truncated
        are then all that is held. An array that is the delta of two leaves cannot be
        donated.

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
    ranks = check_ranks(rank, tv.tasks)
    check_energy(energy)
    check_noise(noise)
    check_solver(solver, tolerance, memory)
    deltas: dict[str, Any] = {n: delta for n, (_, delta) in tv.flat().items()}
    table = _view_table(tv, deltas, views)
    matrices = {name: view for name, view in table.items() if view is not None}
    for each in ranks:
        check_fits(each, {name: view.size for name, view in matrices.items()})

    dense: dict[str, MatrixView] = {}
    for name, view in matrices.items():
        delta = deltas[name]
        if isinstance(delta, LowRank):
            if energy is not None or noise is not None:
                raise ParameterError(
                    f"{name} is truncated already: its whole spectrum is not known"
                )
            kept = [resolve_rank(each, view.size) for each in ranks]
            deltas[name] = _slice(name, delta, kept)
        else:
            dense[name] = view
    how = {"solver": solver, "tolerance": tolerance, "memory": memory}
    how |= {"energy": energy, "noise": noise}
    dtypes = {name: deltas[name].dtype for name in dense}
    # Under jax.jit the solver itself goes through a group in chunks: one program then
    # holds one solver for each shape, however deep the model.
    traced = any(isinstance(deltas[name], Tracer) for name in dense)
    most = math.inf if traced else memory / (BYTES_PER_NUMBER * len(tv.tasks))
    for bundles in groups(dense, dtypes, most=most):
        stacks = [[deltas[name] for name in bundle] for bundle in bundles]
        layouts = [[dense[name] for name in bundle] for bundle in bundles]
        kept = tuple(resolve_rank(each, layouts[0][0].size) for each in ranks)
        factors = _factorise(stacks, layouts, kept=kept, key=key, **how)
        for bundle, stack, results in zip(bundles, stacks, factors, strict=True):
            deltas.update(zip(bundle, results, strict=True))
            if donate:
                _delete(stack)
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


def check_energy(energy: float | None) -> None:
    """Refuses what is no share of energy.

    Raises:
      ParameterError: It is not in (0, 1].
    """
    if energy is not None and not 0 < energy <= 1:  # NaN too
        raise ParameterError(f"energy is a share in (0, 1]; got {energy}")


def check_noise(noise: float | None) -> None:
    """Refuses what is no multiple of the noise's edge.

    Raises:
      ParameterError: It is not positive and finite.
    """
    if noise is not None and not 0 < noise < math.inf:  # NaN too
        raise ParameterError(f"noise is a positive multiple of its edge; got {noise}")


def _slice(name: str, delta: LowRank, kept: Sequence[int]) -> LowRank:
    k = max(kept)
    if k > delta.rank:
        raise ParameterError(
            f"{name} holds {delta.rank} of {delta.size} directions, not {k}: "
            "choose a smaller rank, or truncate full task vectors"
        )
    low = delta.keep(k)
    if min(kept) == max(kept):
        return low
    return replace(low, s=_cut(low.s, _leading(low.s, kept)))


def _cut(s: Any, stay: Any) -> Any:
    """Singular values, with those that are not kept at zero."""
    xp = np if isinstance(s, np.ndarray) else jnp
    return xp.where(stay, s, xp.zeros_like(s))


def _leading(s: Any, kept: Sequence[int]) -> Any:
    """Where singular values `[tasks, *batch, k]` are among so many of each task."""
    xp = np if isinstance(s, np.ndarray) else jnp
    place = xp.arange(s.shape[-1]).reshape(*(1,) * (s.ndim - 1), -1)
    return place < xp.asarray(kept).reshape(-1, *(1,) * (s.ndim - 1))


def _chosen(
    found: Solved,
    x: Any,
    kept: Sequence[int],
    energy: float | None,
    noise: float | None,
) -> Solved:
    """Factors with the singular values that are not kept at zero.

    Args:
      found: Of the matrices; with `noise` all of their singular values.
      x: The matrices, `[tasks, *batch, m, n]`.
      kept: How many of each task at most.
      energy: Share of the squares that is enough.
      noise: Multiple of the noise's edge that singular values have to be above.
    """
    s = found.s
    xp = np if isinstance(s, np.ndarray) else jnp
    if energy is None and noise is None and min(kept) == max(kept):
        return found
    stay = _leading(s, kept)
    if energy is not None:
        squares = s * s
        total = xp.sum(xp.square(x), axis=(-2, -1), dtype=s.dtype)[..., None]
        stay = stay & (xp.cumsum(squares, axis=-1) - squares < energy * total)
    if noise is not None:
        edge = noise * noise_edge(*x.shape[-2:]) * xp.median(s, axis=-1, keepdims=True)
        stay = stay & (s > xp.maximum(edge, absent(x.shape, s.dtype) * s[..., :1]))
    k = max(kept)
    return found._replace(
        u=found.u[..., :k], s=_cut(s, stay)[..., :k], vh=found.vh[..., :k, :]
    )


def _factorise(
    stacks: list[list[Any]], layouts: list[list[MatrixView]], *, key: Any, **how: Any
) -> list[list[LowRank]]:
    """Factors of leaves whose (joint) matrices all have one shape, in one solve."""
    if all(on_host(leaf) for stack in stacks for leaf in stack):
        stacks = [[np.asarray(leaf) for leaf in stack] for stack in stacks]
        return _solve_joint(stacks, layouts, key, **how)
    static = tuple(tuple(views) for views in layouts)
    return _solve_joint_jitted(stacks, static, key, **how)


def _solve_joint(
    stacks: Sequence[Sequence[Any]],
    layouts: Sequence[Sequence[MatrixView]],
    key: Any,
    *,
    kept: tuple[int, ...],
    energy: float | None,
    noise: float | None,
    **how: Any,
) -> list[list[LowRank]]:
    joint = [_joined(*bundle) for bundle in zip(stacks, layouts, strict=True)]
    # The median is of all singular values.
    rank = max(kept) if noise is None else layouts[0][0].size
    solved = [
        _chosen(found, x, kept, energy, noise)
        for found, x in zip(solve(joint, rank=rank, key=key, **how), joint, strict=True)
    ]
    return [
        [_member(result, view) for view in views]
        for result, views in zip(solved, layouts, strict=True)
    ]


_solve_joint_jitted = functools.partial(
    jax.jit,
    static_argnums=(1,),
    static_argnames=("kept", "energy", "noise", "solver", "tolerance", "memory"),
)(_solve_joint)


def _joined(
    leaves: Sequence[Any], views: Sequence[MatrixView]
) -> Float[Array | np.ndarray, "tasks *batch m n"]:
    parts = [view.to_matrix(x) for x, view in zip(leaves, views, strict=True)]
    if len(parts) == 1:
        return parts[0]
    xp = np if isinstance(parts[0], np.ndarray) else jnp
    return xp.concatenate(parts, axis=-1 if views[0].joins_cols else -2)


def _member(solved: Solved, view: MatrixView) -> LowRank:
    """A leaf's own part of the factors of the matrix that it is joined in."""
    u, s, vh = solved.u, solved.s, solved.vh
    if view.join is None:
        return LowRank(u, s, vh, view)
    start = view.join.start
    if view.joins_cols:
        return LowRank(u, s, vh[..., start : start + view.n], view)
    return LowRank(u[..., start : start + view.m, :], s, vh, view)


def _delete(leaves: list[Any]) -> None:
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            leaf.delete()
