"""Merging a tree part by part: the memory of one part is then enough for all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.core import Tracer

from centermerge_jax.host_memory import give_back
from centermerge_jax.linalg import BYTES_PER_NUMBER
from centermerge_jax.trees import Params, align, dtype_of
from centermerge_jax.views import Table, groups

Leaves = Mapping[str, Any]
"""Some leaves of a tree, by name: a tree like any other."""

MergePart = Callable[[Mapping[str, Leaves], Table], Leaves]
"""`(trees, views) -> merged leaves`, for a part whose matrices all have one shape."""


def in_parts(
    merge_part: MergePart,
    trees: Mapping[str, Params],
    *,
    views: Table,
    memory: int,
    any_dtype: tuple[str, ...] = (),
) -> Params:
    """Applies a merge to a few leaves at a time.

    Right for every method that treats each (joined) matrix by itself. Equal to
    `merge_part` on whole trees but for rounding.

    Args:
      merge_part: Merges leaves that were taken from all trees under the same names.
      trees: Experts by task name, and perhaps a base.
      views: The table of their views, resolved.
      memory: Bytes that the task vectors of a part and their factorisation may take;
        at least one matrix of each tree is taken. Under `jax.jit`, where XLA decides
        what is alive when, parts are as large as they can be.
      any_dtype: As for `trees.align`.

    Returns:
      Parameters like those of the first tree.

    Raises:
      StructureError: The trees are not the same.
    """
    structure, rows = align(trees, any_dtype=any_dtype)
    traced = any(isinstance(leaf, Tracer) for row in rows.values() for leaf in row)
    most = float("inf") if traced else memory / (BYTES_PER_NUMBER * len(trees))
    merged: dict[str, Any] = {}
    for names in _parts(rows, views, most):
        part = {
            tree: {name: rows[name][i] for name in names}
            for i, tree in enumerate(trees)
        }
        table = {name: views[name] for name in names if name in views}
        merged |= merge_part(part, table)
        if not traced:
            give_back()
    return structure.unflatten([merged[name] for name in rows])


def _parts(
    rows: Mapping[str, tuple[Any, ...]], views: Table, most: float
) -> Iterator[list[str]]:
    dtypes = {name: dtype_of(rows[name][0]) for name, view in views.items() if view}
    for bundles in groups(views, dtypes, most=most):
        yield [name for bundle in bundles for name in bundle]
    for name in rows:
        if views.get(name) is None:
            yield [name]
