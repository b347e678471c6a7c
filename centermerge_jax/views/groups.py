"""Which leaves are solved together: joined ones, and matrices of equal shape."""

import math
from collections import defaultdict
from collections.abc import Mapping

from centermerge_jax.errors import ViewError
from centermerge_jax.views.matrix_view import MatrixView

Bundle = tuple[str, ...]
"""Leaves that make up one matrix (or one batch of matrices) together."""


def groups(
    table: Mapping[str, MatrixView | None],
    dtypes: Mapping[str, object],
    *,
    most: int | float = math.inf,
) -> list[list[Bundle]]:
    """Bundles of equal matrices, as many at a time as allowed.

    Args:
      table: View of each leaf; leaves without one are left out.
      dtypes: Type of each leaf that has a view; matrices of two types are not stacked.
      most: Numbers (elements) that the leaves of a group may hold, unless a single
        bundle has more. Groups of one shape are of nearly equal length, so that few
        programs are compiled.

    Raises:
      ViewError: Leaves of one joined matrix differ in type.

    Example:
      >>> view = MatrixView((4, 4), rows=(0,), cols=(1,))
      >>> groups({"a": view, "b": view, "c": view}, dict.fromkeys("abc"), most=32)
      [[('a',), ('b',)], [('c',)]]
    """
    bundles: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for name, view in table.items():
        if view is not None:
            # A joined matrix may be called as some leaf is.
            joined = view.join is not None
            bundles[joined, view.join.group if view.join else name].append(name)
    alike: dict[tuple[object, ...], list[Bundle]] = defaultdict(list)
    sizes: dict[tuple[object, ...], int] = {}
    for members in bundles.values():
        types = {dtypes[name] for name in members}
        if len(types) > 1:
            raise ViewError(f"joined leaves of different types: {', '.join(members)}")
        views = [view for name in members if (view := table[name]) is not None]
        kind = (*views[0].joint_shape, views[0].batch_shape, *types)
        alike[kind].append(tuple(members))
        sizes[kind] = sum(math.prod(view.shape) for view in views)
    found = []
    for kind, members in alike.items():
        length = max(1, int(min(len(members), most // max(1, sizes[kind]))))
        length = -(-len(members) // -(-len(members) // length))
        found += [members[i : i + length] for i in range(0, len(members), length)]
    return found
