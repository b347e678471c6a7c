"""The view table of a tree: from rules or a preset to one view for each leaf."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from centermerge_jax.errors import ViewError, listing
from centermerge_jax.ranks import Rank, resolve_rank
from centermerge_jax.trees import Params, leaf_shapes
from centermerge_jax.views.matrix_view import MatrixView
from centermerge_jax.views.presets import auto
from centermerge_jax.views.rules import Rule, apply_rules

Table = Mapping[str, MatrixView | None]
"""Views by leaf name; None for a floating leaf that is no matrix."""

Views = Callable[[Params], Table] | Sequence[Rule] | Table
"""What functions take as `views`: a preset, rules, or an already resolved table."""


def resolve(tree: Params, views: Views | None = None) -> dict[str, MatrixView | None]:
    """The view of every floating leaf of a tree.

    Args:
      tree: Parameters, or anything with their shapes and dtypes.
      views: Rules (the first whose pattern matches the whole name wins), a preset
        such as `auto` (the default), or a table that was resolved before.

    Raises:
      ViewError: A leaf of two or more axes is covered by no rule, a rule matches
        nothing, or a table is not one of this tree.

    Example:
      >>> import numpy as np
      >>> tree = {"dense": {"kernel": np.ones((4, 3)), "bias": np.ones(3)}}
      >>> views = resolve(tree, [Rule(".*/kernel", rows=(0,), cols=(1,))])
      >>> views["dense/bias"], views["dense/kernel"].size
      (None, 3)
    """
    if views is None:
        views = auto
    if isinstance(views, Mapping):
        return _check_table(tree, views)
    if callable(views):
        return _check_table(tree, views(tree))
    rules, shapes = tuple(views), leaf_shapes(tree)
    table, used = apply_rules(rules, shapes)
    if idle := [repr(rule.pattern) for rule in rules if rule not in used]:
        matrices = [name for name, shape in shapes.items() if len(shape) > 1]
        more = f" and {len(matrices) - 10} more" if len(matrices) > 10 else ""
        raise ViewError(
            listing(
                "{n} view rule{s} without a matching leaf that no earlier rule took",
                idle,
                f"Leaves of two or more axes: {', '.join(matrices[:10])}{more}",
            )
        )
    return table


def _check_table(tree: Params, table: Table) -> dict[str, MatrixView | None]:
    shapes = leaf_shapes(tree)
    problems = [f"{name}: not in the table" for name in shapes.keys() - table.keys()]
    problems += [f"{name}: not in the tree" for name in table.keys() - shapes.keys()]
    problems += [
        f"{name}: has shape {list(shapes[name])}, its view {list(view.shape)}"
        for name, view in table.items()
        if view is not None and name in shapes and view.shape != shapes[name]
    ]
    if problems:
        raise ViewError(
            listing("{n} difference{s} between view table and tree", sorted(problems))
        )
    return {name: table[name] for name in shapes}


def digest(table: Table) -> str:
    """SHA-256 of a resolved table: equal digests mean the same matrices."""
    plain = {name: view and asdict(view) for name, view in table.items()}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One line of the view table: a leaf and what is factorised of it.

    Attributes:
      leaf: Name of the leaf.
      shape: Its shape.
      matrices: `batch x m x n` of the factorised matrices, None if it is no matrix.
      rank: Directions kept of each, if a rank was given.
      group: Name of the joint matrix, if the leaf is part of one.
      solver: What they are factorised by, if that is known.
    """

    leaf: str
    shape: tuple[int, ...]
    matrices: tuple[int, int, int] | None = None
    rank: int | None = None
    group: str | None = None
    solver: str | None = None


def rows(
    tree: Params, views: Views | None = None, *, rank: Rank | None = None
) -> list[Row]:
    """The view table of a tree, a row for each floating leaf.

    Example:
      >>> import numpy as np
      >>> print(format_rows(rows({"mlp": {"kernel": np.ones((8, 4))}}, rank=0.5)))
      leaf        shape   batch x m x n  rank
      mlp/kernel  [8, 4]  1 x 8 x 4         2
    """
    lines = []
    shapes = leaf_shapes(tree)
    for name, view in resolve(tree, views).items():
        if view is None:
            lines.append(Row(name, shapes[name]))
            continue
        kept = None if rank is None else resolve_rank(rank, view.size)
        group = view.join.group if view.join else None
        matrices = (math.prod(view.batch_shape), *view.joint_shape)
        lines.append(Row(name, view.shape, matrices, kept, group))
    return lines


def format_rows(lines: Sequence[Row]) -> str:
    """The view table as text."""
    cells = [("leaf", "shape", "batch x m x n", "rank", "solver")]
    for row in lines:
        matrix = " x ".join(map(str, row.matrices)) if row.matrices else "-"
        matrix += f" ({row.group})" if row.group else ""
        rank, solver = str(row.rank or "-"), row.solver or "-"
        cells.append((row.leaf, str(list(row.shape)), matrix, rank, solver))
    if not any(row.solver for row in lines):
        cells = [cell[:-1] for cell in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{text:>{width}}" if column == 3 else f"{text:{width}}"
            for column, (text, width) in enumerate(zip(cell, widths, strict=True))
        ).rstrip()
        for cell in cells
    )
