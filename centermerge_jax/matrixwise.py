"""Merging matrix by matrix: a function of all task vectors of one matrix at a time.

Functions see matrices as the literature writes them, `[out, in]`, whatever the layout
of the leaves: a Flax kernel comes transposed, joined queries, keys and values as one
matrix, stacked layers one after the other.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.host_memory import on_host
from centermerge_jax.linalg import (
    MEMORY,
    LowRank,
    Solver,
    check_solver,
    record_frames,
)
from centermerge_jax.parts import Leaves, in_parts
from centermerge_jax.ranks import Rank, check_fits, resolve_rank
from centermerge_jax.scales import one_scale
from centermerge_jax.task_vectors import (
    Experts,
    TaskVectors,
    center,
    check_dtype,
    subtract,
)
from centermerge_jax.transforms import truncate
from centermerge_jax.transforms.spectra import absent
from centermerge_jax.trees import Params, base_name, named_experts, named_leaves
from centermerge_jax.views import MatrixView, Table, Views, groups, resolve

Rest = Literal["sum", "mean", "scaled_mean", "base"]
RESTS: tuple[Rest, ...] = ("sum", "mean", "scaled_mean", "base")
"""What leaves that are no matrices become: the base and the sum of their task vectors,
scaled; the experts' mean; the base and the mean of their task vectors, scaled; the
base."""

Function = Callable[..., Any]
"""From the task vectors of one matrix, an array `[tasks, out, in]` or their `LowRank`
factors, to its merged one; or to that and the smallest singular value of frames that
were made orthogonal, for the record. It is traced by JAX."""

Share = Rank | Callable[[int], int]
"""A rank, or a function from `min(m, n)` to a number of directions."""


def merge_matrices(
    function: Function,
    experts: Experts,
    base: Params | None,
    *,
    scale: Any,
    rest: Rest = "mean",
    rank: Share | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    how: Mapping[str, Any] | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Adds task vectors to their origin, made one for each matrix by a function.

        theta = origin + scale * function(delta_1, ..., delta_T)

    Args:
      function: Of the task vectors of a matrix.
      experts: Fine-tuned parameters of at least one expert.
      base: The origin; None for the mean of the experts.
      scale: One number, or one for each leaf, as a tree prefix.
      rest: What leaves that are no matrices become; around the mean they are the mean.
      rank: If given, the function gets factors truncated to it.
      given: For each task something for each matrix by name, `[*batch, a, b]`, that the
        function gets as second argument, `[tasks, a, b]`; of joined leaves the first
        one's counts, and matrices that it lacks are treated as `rest` says.
      how: Further arguments of the function, of hashable values.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: Of the truncation.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: Something is out of range.

    Example:
      >>> base = {"kernel": np.zeros((2, 2), np.float32)}
      >>> experts = [{"kernel": np.float32([[2, 0], [0, 1]])}]
      >>> merge_matrices(lambda x: x.sum(0), experts, base, scale=3.0)["kernel"]
      Array([[6., 0.],
             [0., 3.]], dtype=float32)
    """
    check_rest(rest)
    check_solver(solver, memory=memory)
    check_dtype(dtype)
    trees = named_experts(experts)
    tasks = tuple(trees)
    first = next(iter(trees.values()))
    scales = one_scale(scale, first, tasks)
    by_leaf = dict(zip(named_leaves(first), scales, strict=True))
    name = base_name(trees)
    if base is not None:
        trees = trees | {name: base}
    table = resolve(first, views)
    sizes = {leaf: view.size for leaf, view in table.items() if view is not None}
    if sizes or not isinstance(views, Mapping):
        # A table that was resolved before may be of a part of a tree, without matrices.
        check_fits(rank if isinstance(rank, int | float) else 1, sizes)

    def merge_part(part: Mapping[str, Leaves], seen: Table) -> Leaves:
        own = {task: part[task] for task in tasks}
        tv = center(own) if base is None else subtract(own, part[name])
        matrices = {leaf: view for leaf, view in seen.items() if view is not None}
        if given is not None:
            matrices = _with_given(matrices, given)
        merged: Mapping[str, Any] = {}
        if matrices:
            if rank is not None:
                size = next(iter(matrices.values())).size
                k = rank(size) if callable(rank) else resolve_rank(rank, size)
                tv = truncate(
                    tv, rank=k, views=seen, solver=solver, memory=memory, donate=True
                )
            merged = matrixwise(function, tv, matrices, given=given, how=how)
        return _add(tv, merged, by_leaf, rest, dtype)

    any_dtype = () if base is None else (name,)
    return in_parts(merge_part, trees, views=table, memory=memory, any_dtype=any_dtype)


def matrixwise(
    function: Function,
    tv: TaskVectors,
    views: Mapping[str, MatrixView],
    *,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    how: Mapping[str, Any] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """Applies a function to the task vectors of each matrix.

    Args:
      function: As for `merge_matrices`.
      tv: Task vectors, dense or in factors.
      views: Of the leaves to look at.
      given: As for `merge_matrices`.
      how: As for `merge_matrices`.

    Returns:
      For each of these leaves what the function made of it, `[*shape]`.
    """
    deltas = {leaf: delta for leaf, (_, delta) in tv.flat().items()}
    dtypes = {
        leaf: (d.u if isinstance(d := deltas[leaf], LowRank) else d).dtype
        for leaf in views
    }
    alike: dict[Any, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
    for bundles in groups(views, dtypes):
        for names in bundles:
            arrays = (
                joint_matrices([deltas[n] for n in names], [views[n] for n in names]),
            )
            if given is not None:
                one = [jnp.asarray(given[task][names[0]]) for task in tv.tasks]
                _check_given(names[0], one, tv.tasks, arrays[0].shape[-1])
                gram = jnp.stack(one).astype(dtypes[names[0]])
                arrays += (gram.reshape(len(tv.tasks), -1, *gram.shape[-2:]),)
            shapes = [x.shape[:1] + x.shape[2:] for x in jax.tree.leaves(arrays)]
            alike[str(shapes), dtypes[names[0]]].append((names, arrays))
    merged = {}
    for found in alike.values():
        lengths = [jax.tree.leaves(arrays)[0].shape[1] for _, arrays in found]
        stacked = jax.tree.map(
            lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x, axis=1),
            *(arrays for _, arrays in found),
        )
        result = _recorded(
            _apply(function, stacked, tuple(sorted((how or {}).items())))
        )
        ends = np.cumsum(lengths)
        for (names, _), stop, length in zip(found, ends, lengths, strict=True):
            own = result[stop - length : stop]
            merged.update(_split(own, {name: views[name] for name in names}))
    return merged


def check_rest(rest: str) -> None:
    """Refuses what no leaf can become.

    Raises:
      ParameterError: `rest` is not one of `RESTS`.
    """
    if rest not in RESTS:
        raise ParameterError(f"rest is one of {', '.join(RESTS)}; got {rest!r}")


def rest_scale(rest: Rest, scale: Any, tasks: int) -> Any:
    """The scale of the summed task vectors of a leaf that is no matrix.

    Example:
      >>> [rest_scale(rest, 2.0, 4) for rest in RESTS]
      [2.0, 0.25, 0.5, 0.0]
    """
    if rest == "sum":
        return scale
    if rest == "scaled_mean":
        return scale / tasks
    return 1 / tasks if rest == "mean" else 0.0


def _with_given(
    views: Mapping[str, MatrixView], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, MatrixView]:
    """The matrices for which every task has something; joined ones go together."""
    lacking = {
        view.join.group if view.join else leaf
        for leaf, view in views.items()
        if not all(leaf in known for known in given.values())
    }
    return {
        leaf: view
        for leaf, view in views.items()
        if (view.join.group if view.join else leaf) not in lacking
    }


def _check_given(
    leaf: str, given: Sequence[Any], tasks: Sequence[str], inputs: int
) -> None:
    for task, x in zip(tasks, given, strict=True):
        if x.shape[-2:] != (inputs, inputs):
            raise ParameterError(
                f"{task}: {leaf} has {inputs} inputs, its statistics are "
                f"{list(x.shape)} in size"
            )


def _add(
    tv: TaskVectors,
    merged: Mapping[str, Any],
    scales: Mapping[str, Any],
    rest: Rest,
    dtype: Any,
) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for (leaf, (origin, delta)), stored in zip(
        tv.flat().items(), tv.dtypes, strict=True
    ):
        if delta is None:
            leaves[leaf] = origin
            continue
        if leaf in merged:
            whole = origin + jnp.asarray(scales[leaf], origin.dtype) * merged[leaf]
        elif tv.zero_sum:
            whole = origin
        else:
            dense = delta.dense() if isinstance(delta, LowRank) else delta
            weight = rest_scale(rest, scales[leaf], len(tv.tasks))
            whole = origin + jnp.asarray(weight, origin.dtype) * jnp.sum(dense, axis=0)
        leaves[leaf] = whole.astype(stored if dtype is None else dtype)
    return leaves


def joint_matrices(deltas: Sequence[Any], views: Sequence[MatrixView]) -> Any:
    """The (joint) matrices of some leaves, `[tasks, count, out, in]`, or factors."""
    view = views[0]
    flipped = view.inputs == "rows"
    if isinstance(deltas[0], LowRank):
        u, s, vh = deltas[0].u, deltas[0].s, deltas[0].vh
        if len(deltas) > 1 and view.joins_cols:
            vh = jnp.concatenate([d.vh for d in deltas], axis=-1)
        elif len(deltas) > 1:
            u = jnp.concatenate([d.u for d in deltas], axis=-2)
        u, vh = (x.reshape(len(x), -1, *x.shape[-2:]) for x in (u, vh))
        s = s.reshape(len(s), -1, s.shape[-1])
        return LowRank(vh.mT, s, u.mT) if flipped else LowRank(u, s, vh)
    parts = [jnp.asarray(v.to_matrix(d)) for d, v in zip(deltas, views, strict=True)]
    axis = -1 if view.joins_cols else -2
    x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)
    x = x.reshape(len(x), -1, *x.shape[-2:])
    return x.mT if flipped else x


def _split(
    merged: Float[Array, "count out in"], views: Mapping[str, MatrixView]
) -> dict[str, Float[Array, "..."]]:
    """The leaves that (joint) matrices are made of."""
    leaves = {}
    for name, view in views.items():
        x = merged.mT if view.inputs == "rows" else merged
        start = view.join.start if view.join else 0
        if view.joins_cols:
            x = x[..., start : start + view.n]
        else:
            x = x[..., start : start + view.m, :]
        shaped = x.reshape(*view.batch_shape, view.m, view.n)
        leaves[name] = jnp.asarray(view.from_matrix(shaped))
    return leaves


def _apply(function: Function, arrays: Any, how: tuple[tuple[str, Any], ...]) -> Any:
    """The function of each matrix: all at once, or on the CPU one after the other."""
    every = jax.tree.leaves(arrays)
    if not all(map(on_host, every)):
        return _at_once(function, arrays, how)
    count = every[0].shape[1]
    found = [
        _one(function, jax.tree.map(lambda x: x[:, i], arrays), how)  # noqa: B023  called at once
        for i in range(count)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def _recorded(result: Any) -> Float[Array, "count out in"]:
    """The merged matrices, after what is known of their frames went to the record."""
    if not isinstance(result, tuple):
        return result
    merged, smallest = result
    if not isinstance(smallest, Tracer):
        m, n = merged.shape[-2:]
        lack = absent((m, n), merged.dtype)
        record_frames(np.asarray(smallest), m=m, n=n, lack=lack)
    return merged


@functools.partial(jax.jit, static_argnums=(0, 2))
def _one(function: Function, arrays: Any, how: tuple[tuple[str, Any], ...]) -> Any:
    return function(*arrays, **dict(how))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _at_once(function: Function, arrays: Any, how: tuple[tuple[str, Any], ...]) -> Any:
    return jax.vmap(lambda x: function(*x, **dict(how)), in_axes=1)(arrays)
