"""Rules that give views to leaves by name: the first full match wins."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from centermerge_jax.errors import ViewError, listing
from centermerge_jax.views.matrix_view import Join, MatrixView, Side


@dataclass(frozen=True)
class Rule:
    r"""Says how the leaves with a certain name are to be seen.

    A rule without rows and columns says "not a matrix".

    Attributes:
      pattern: Regular expression that has to match the *whole* leaf name.
      rows: Axes that make up the rows; negative ones count from the end.
      cols: Axes that make up the columns.
      batch: Axes that count matrices. Each axis of a leaf is named exactly once.
      ndim: If given, the rule only speaks of leaves with so many axes.
      join: If given, leaves for which this template (with `\1`, `\2`, ... from the
        pattern) gives the same text are parts of one matrix, in tree order.
      parts: If given, the leaf is so many matrices of equal size.
      side: Along which side joined leaves, or parts, lie next to each other.
      inputs: The side that the layer's inputs are multiplied with; by default `cols`
        for leaves called `weight` or `..._weight`, as in PyTorch, and `rows` for all
        others, as in Flax.

    Example:
      >>> rule = Rule(r".*/kernel", rows=(0,), cols=(1,))
      >>> joined = Rule(r"(.*)/[qkv]/kernel", rows=(0,), cols=(1,), join=r"\1/qkv")
      >>> parted = Rule(r".*/qkv/kernel", rows=(0,), cols=(1,), parts=3)
    """

    pattern: str
    rows: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    ndim: int | None = None
    join: str | None = None
    parts: int = 1
    side: Side = "cols"
    inputs: Side | None = None

    def __post_init__(self):
        """Refuses what cannot be a rule before any leaf is looked at."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ViewError(f"view rule {self.pattern!r}: {error}") from None
        if bool(self.rows) != bool(self.cols):
            raise ViewError(
                f"view rule {self.pattern!r}: a matrix has rows and columns, got "
                f"rows={self.rows} cols={self.cols}; leave out both for 'no matrix'"
            )
        for key, value in (("side", self.side), ("inputs", self.inputs or "rows")):
            if value not in ("rows", "cols"):
                raise ViewError(
                    f"view rule {self.pattern!r}: {key} is 'rows' or 'cols', not "
                    f"{value!r}"
                )
        if self.parts < 1 or (self.parts > 1 and (self.join or not self.rows)):
            raise ViewError(
                f"view rule {self.pattern!r}: parts is at least 1, of a matrix, and "
                f"without join; got {self.parts}"
            )

    def covers(self, name: str, ndim: int) -> bool:
        """Whether the rule speaks of a leaf with this name and so many axes."""
        return self.ndim in (None, ndim) and bool(re.fullmatch(self.pattern, name))

    def view(self, name: str, shape: tuple[int, ...]) -> MatrixView | None:
        """The view of a leaf whose name matches (None: it is no matrix).

        Raises:
          ViewError: The axes of the rule are not those of the leaf.
        """
        if not self.rows:
            return None
        ndim = len(shape)
        given = (*self.batch, *self.rows, *self.cols)
        axes = [axis + ndim if axis < 0 else axis for axis in given]
        if sorted(axes) != list(range(ndim)):
            raise ViewError(
                f"view rule {self.pattern!r} names the axes {list(given)}, but {name} "
                f"has shape {list(shape)}: name each of its {ndim} axes once"
            )
        sides = iter(axes)
        batch, rows, cols = (
            tuple(next(sides) for _ in part)
            for part in (self.batch, self.rows, self.cols)
        )
        join = None
        if self.join is not None:
            match = re.fullmatch(self.pattern, name)
            assert match is not None  # the caller matched it
            try:
                join = Join(match.expand(self.join), self.side)
            except (re.error, IndexError) as error:
                raise ViewError(
                    f"view rule {self.pattern!r}: join {self.join!r}: {error}"
                ) from None
        inputs = self.inputs or ("cols" if name.endswith("weight") else "rows")
        whole = MatrixView(tuple(shape), rows, cols, batch, join, inputs=inputs)
        length = whole.m if self.side == "rows" else whole.n
        if length % self.parts:
            raise ViewError(
                f"view rule {self.pattern!r}: the {length} {self.side} of {name} are "
                f"no {self.parts} equal parts"
            )
        if self.parts == 1:
            return whole
        return replace(whole, parts=self.parts, side=self.side)


def apply_rules(
    rules: Sequence[Rule],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    layer_axes: Mapping[str, int] | None = None,
) -> tuple[dict[str, MatrixView | None], set[Rule]]:
    """The view that the first matching rule gives to each leaf.

    Args:
      rules: Tried in order; a vector needs none.
      shapes: Shapes of the leaves by name.
      layer_axes: For leaves stacked over layers, the axis that counts the layers. Rules
        see such a leaf without that axis.

    Returns:
      The view table, and the rules that were of use.

    Raises:
      ViewError: Listing every leaf of two or more axes that no rule covers.
    """
    table: dict[str, MatrixView | None] = {}
    used: set[Rule] = set()
    uncovered = []
    for name, shape in shapes.items():
        layer = (layer_axes or {}).get(name)
        inner = shape if layer is None else shape[:layer] + shape[layer + 1 :]
        # A vector (or an empty leaf) is no matrix, whatever a broad pattern says.
        matrix_like = len(inner) > 1 and 0 not in inner
        rule = next((rule for rule in rules if rule.covers(name, len(inner))), None)
        view = rule.view(name, inner) if rule and matrix_like else None
        if rule and (view or not rule.rows):
            used.add(rule)
        elif not rule and matrix_like:
            uncovered.append((name, inner))
        if view is not None and layer is not None:
            view = _stacked(view, shape, layer)
        table[name] = view
    if uncovered:
        raise ViewError(
            listing(
                "{n} matrix-like leaf name{s} without a view rule",
                [f"{name} {list(shape)}" for name, shape in uncovered],
                f"Add a rule such as {_suggestion(*uncovered[0])}, or "
                f"Rule({re.escape(uncovered[0][0])!r}) if it is not a matrix.",
            )
        )
    return _place_joined(table), used


def _stacked(view: MatrixView, shape: tuple[int, ...], layer: int) -> MatrixView:
    """The view of one layer as the view of all layers, counted by one more axis."""

    def shifted(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + (axis >= layer) for axis in axes)

    return replace(
        view,
        shape=tuple(shape),
        rows=shifted(view.rows),
        cols=shifted(view.cols),
        batch=(layer, *shifted(view.batch)),
    )


def _suggestion(name: str, shape: tuple[int, ...]) -> str:
    batch = f", batch={tuple(range(len(shape) - 2))}" if len(shape) > 2 else ""
    return f"Rule({re.escape(name)!r}, rows=(-2,), cols=(-1,){batch})"


def _place_joined(
    table: dict[str, MatrixView | None],
) -> dict[str, MatrixView | None]:
    """Gives every member of a joined matrix its place in it."""
    groups: dict[str, dict[str, MatrixView]] = defaultdict(dict)
    for name, view in table.items():
        if view is not None and view.join is not None:
            groups[view.join.group][name] = view
    for group, members in groups.items():
        fits = {
            (
                v.join and v.join.side,
                v.batch_shape,
                v.m if v.joins_cols else v.n,
                v.inputs,
            )
            for v in members.values()
        }
        if len(fits) > 1:
            raise ViewError(
                listing(
                    f"{{n}} leaves of the joined matrix {group!r} do not fit",
                    [f"{name} {list(v.shape)}" for name, v in members.items()],
                )
            )
        lengths = [v.n if v.joins_cols else v.m for v in members.values()]
        for i, (name, view) in enumerate(members.items()):
            assert view.join is not None
            place = replace(view.join, start=sum(lengths[:i]), total=sum(lengths))
            table[name] = replace(view, join=place)
    return table
