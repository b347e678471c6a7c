"""As long as what was merged: scales of truncated task vectors, found without data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import LowRank
from centermerge_jax.task_vectors import TaskVectors
from centermerge_jax.views import MatrixView, groups

Match = Literal["projection", "length"]
Per = Literal["matrix", "model"]

_CANCELLED = 1e-6
"""Share of the squares of task vectors below which those of their sum are what solvers
leave uncertain (`linalg.TOLERANCE` of each), and no direction to go in."""

_MOST = 100.0
"""Largest factor. Less than a tenth of the length is then left of a sum; where it goes
on to vanish, so does what is merged, and nothing is blown up on the way."""


def rescale(
    tv: TaskVectors,
    *,
    match: Match = "projection",
    per: Per = "matrix",
    whole: TaskVectors | None = None,
) -> TaskVectors:
    """Scales truncated task vectors so that their sum is as long as they are.

    With L_t the truncated vectors and S their sum, the factor c of all of them is

        projection:  sum_t <c S, L_t> = sum_t |L_t|^2
        length:      |c S| = mean_t |theta_t - origin|

    and c at most 100, so that after it the scale 1 is right by that rule. `projection`
    wants the merged model as far along the tasks' own directions as the experts are, on
    average: c is 1 if these are orthogonal to each other, and larger the more the sum
    cancels. `length` wants it as far from the origin as the experts are.

    Leaves that are no matrices are left as they are. Where the sum cancels altogether,
    as around the mean of two experts or at full rank, the vectors become zero: the
    merge is then the origin.

    Args:
      tv: Truncated task vectors.
      match: `projection` or `length`.
      per: `matrix` for a factor for each (joined) matrix, `model` for a single one.
      whole: The same task vectors before they were truncated, which `length` needs.

    Returns:
      Task vectors with other singular values.

    Raises:
      ParameterError: There is no such rule, nothing is truncated, or `whole` is needed
        and lacks.

    Note:
      Around the mean, the squares of `mean_t |theta_t - theta_0|^2` are those of
      `|mean - theta_0|^2` and of `mean_t |theta_t - mean|^2` together. So `length`
      also gives the distance of the experts to the base (of root mean square), as far
      as S is orthogonal to what the mean moved, and it needs no base.

    Example:
      >>> import centermerge_jax as cm
      >>> x = [jnp.diag(jnp.array(d)) for d in ([3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0])]
      >>> tv = cm.center([{"kernel": kernel} for kernel in x])
      >>> low = rescale(cm.truncate(tv, rank=1))
      >>> abs(cm.combine(low, scale=1.0)["kernel"].round().astype(int))
      Array([[3, 0, 0],
             [0, 3, 0],
             [0, 0, 3]], dtype=int32)
    """
    for name, value, choices in (("match", match, Match), ("per", per, Per)):
        if value not in get_args(choices):
            known = " or ".join(get_args(choices))
            raise ParameterError(f"{name} is {known}; got {value!r}")
    if match == "length" and whole is None:
        raise ParameterError("match='length' needs the whole task vectors too: whole=")
    deltas: dict[str, Any] = {name: delta for name, (_, delta) in tv.flat().items()}
    before: dict[str, Any] = {}
    if match == "length" and whole is not None:
        before = {name: delta for name, (_, delta) in whole.flat().items()}
    low = {name: x for name, x in deltas.items() if isinstance(x, LowRank)}
    if not low:
        raise ParameterError("no task vector is truncated, so there is none to rescale")
    dtypes = {name: x.s.dtype for name, x in low.items()}
    views = {name: x.view for name, x in low.items() if x.view is not None}
    bundles = [bundle for group in groups(views, dtypes) for bundle in group]
    largest = [
        jnp.max(low[names[0]].s, axis=(0, -1), keepdims=True, initial=0)
        for names in bundles
    ]
    if per == "model":
        top = _stacked([jnp.max(x, initial=0) for x in largest]).max()
        largest = [jnp.full_like(x, top, top.dtype) for x in largest]
    squares = [
        _squares(
            [low[n] for n in names],
            [before.get(n) for n in names],
            [views[n] for n in names],
            unit,
        )
        for names, unit in zip(bundles, largest, strict=True)
    ]
    if per == "model":
        squares = [_together(squares)] * len(squares)
    for names, found in zip(bundles, squares, strict=True):
        s = low[names[0]].s
        factor = jnp.broadcast_to(_factor(found, match), s.shape[1:-1])
        s = s * factor[None, ..., None].astype(s.dtype)
        deltas.update((n, replace(low[n], s=s)) for n in names)
    return tv.with_deltas(list(deltas.values()), zero_sum=tv.zero_sum)


class _Squares(NamedTuple):
    """Squared lengths of a matrix, in some common unit.

    Attributes:
      total: Of the sum of truncated task vectors, `[*batch]`.
      kept: Of each of these, `[tasks, *batch]`.
      whole: Of each before it was truncated; 0 if that is not known.
    """

    total: Float[Array, "*batch"]
    kept: Float[Array, "tasks *batch"]
    whole: Float[Array, "tasks *batch"]


def _squares(
    low: Sequence[LowRank],
    before: Sequence[Any],
    views: Sequence[MatrixView],
    unit: Any,
) -> _Squares:
    """Of the leaves of one (joined) matrix, which share its singular values.

    Args:
      low: Truncated task vectors.
      before: The same before they were truncated, or None.
      views: Of the leaves.
      unit: `[1, *batch, 1]`, as squares of very large or small numbers would leave the
        range.
    """
    unit = jnp.where(unit > 0, unit, 1)

    def of_factors(one: LowRank) -> Float[Array, "tasks *batch"]:
        return jnp.sum(jnp.square(one.s / unit), axis=-1)

    kept = of_factors(low[0])
    total, whole = jnp.zeros_like(kept[0]), jnp.zeros_like(kept)
    for one, delta, view in zip(low, before, views, strict=True):
        total += _of_sum(one.u, one.s / unit, one.vh)
        if isinstance(delta, LowRank):
            whole += of_factors(delta) if one is low[0] else 0
        elif delta is not None:
            whole += _of_matrices(jnp.asarray(view.to_matrix(delta)), unit)
    return _Squares(total, kept, whole)


@jax.jit
def _of_matrices(
    x: Float[Array, "tasks *batch m n"], unit: Float[Array, "1 *batch 1"]
) -> Float[Array, "tasks *batch"]:
    return jnp.sum(jnp.square(x / unit[..., None]), axis=(-2, -1))


@jax.jit
def _of_sum(
    u: Float[Array, "tasks *batch m k"],
    s: Float[Array, "tasks *batch k"],
    vh: Float[Array, "tasks *batch k n"],
) -> Float[Array, "*batch"]:
    us = u * s[..., None, :]
    x = jnp.einsum("t...mk,t...kn->...mn", us, vh, precision=Precision.HIGHEST)
    return jnp.sum(jnp.square(x), axis=(-2, -1))


def _together(squares: Sequence[_Squares]) -> _Squares:
    """Of all matrices as one vector."""
    tasks = len(squares[0].kept)
    return _Squares(
        _stacked([x.total.sum() for x in squares]).sum(),
        _stacked([x.kept.reshape(tasks, -1).sum(1) for x in squares]).sum(0),
        _stacked([x.whole.reshape(tasks, -1).sum(1) for x in squares]).sum(0),
    )


def _stacked(arrays: Sequence[Array]) -> Array:
    dtype = jnp.result_type(*arrays)
    return jnp.stack([x.astype(dtype) for x in arrays])


def _factor(squares: _Squares, match: Match) -> Float[Array, "*batch"]:
    total, kept, whole = squares
    there = total > _CANCELLED * kept.sum(0)
    length = jnp.sqrt(jnp.where(there, total, 1))
    if match == "length":
        factor = jnp.sqrt(whole).mean(0) / length
    else:
        factor = kept.sum(0) / jnp.square(length)
    return jnp.where(there, jnp.minimum(factor, _MOST), 0)
