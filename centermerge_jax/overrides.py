"""The rank and scale of every leaf, from a recipe, its overrides and its gradients.

A gradient is several values instead of one, spread evenly over the layers of a model,
with straight lines between them.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

from centermerge_jax.errors import ParameterError, listing
from centermerge_jax.ranks import check_rank
from centermerge_jax.recipe import Override, Recipe
from centermerge_jax.trees import layer_depths, layer_of

_HALF = Fraction(1, 2)


def leaf_settings(
    recipe: Recipe,
    leaves: Sequence[str],
    *,
    matrices: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """The rank and the scale of each leaf.

    What the first override that matches a leaf gives, else what the recipe gives. A
    leaf's layer is the first part of its name, between `/` or `.`, that is a number.

    Args:
      recipe: Its `rank`, `scale` and `overrides` are looked at.
      leaves: Names of the leaves that are merged.
      matrices: Names of those that have a rank; by default all.

    Returns:
      For each leaf `{"rank": ..., "scale": ...}`: a number, for `scale` perhaps a
      mapping from task to number, or None for what is not given or, as the rank of
      what is no matrix, has no meaning.

    Raises:
      ParameterError: An override has no effect; a gradient speaks of leaves in no
        layer, of stacks of layers that differ in depth, or of one layer; or a rank is
        out of range.

    Example:
      >>> recipe = Recipe(experts=(), scale=(1.0, 2.0), rank=0.1)
      >>> leaf_settings(recipe, ["layer/0/w", "layer/1/w", "layer/2/w"])["layer/1/w"]
      {'rank': 0.1, 'scale': 1.5}
    """
    ranked = set(leaves if matrices is None else matrices)
    taken = _taken(recipe.overrides, leaves, ranked)
    ranks = _values(recipe.rank, "rank", taken, [x for x in leaves if x in ranked])
    scales = _values(recipe.scale, "scale", taken, leaves)
    of_rank = _spread("rank", ranks, leaves, _rank_at)
    of_scale = _spread("scale", scales, leaves, _scale_at)
    return {x: {"rank": of_rank.get(x), "scale": of_scale[x]} for x in leaves}


def rank_gradient(ranks: Sequence[Any]) -> tuple[int | float, ...]:
    """Checks ranks that are to be spread over the layers.

    Raises:
      ParameterError: There is none, one is out of range, or shares and numbers of
        directions are mixed.

    Example:
      >>> rank_gradient([0.04, 0.08])
      (0.04, 0.08)
    """
    checked = tuple(check_rank(rank) for rank in ranks)
    if not checked:
        raise ParameterError("rank over the layers: there is no value")
    if len({type(rank) for rank in checked}) > 1:
        raise ParameterError(
            f"ranks over the layers are all shares or all numbers of directions (1.0 "
            f"is everything, 1 is one direction); got {list(checked)}"
        )
    return checked


def _taken(
    overrides: Sequence[Override], leaves: Sequence[str], ranked: Collection[str]
) -> dict[str, Override]:
    """The override that speaks for each leaf; each has to speak for one."""
    taken: dict[str, Override] = {}
    idle = []
    for override in overrides:
        matching = [x for x in leaves if re.fullmatch(override.match, x)]
        free = [x for x in matching if x not in taken]
        taken.update(dict.fromkeys(free, override))
        if not matching:
            idle.append(f"{override.match!r} matches no leaf")
        elif not free:
            idle.append(f"{override.match!r}: earlier ones take all its leaves")
        elif override.scale is None and not any(x in ranked for x in free):
            idle.append(f"{override.match!r} gives a rank, but no leaf is a matrix")
    if idle:
        some = ", ".join(leaves[-3:])
        raise ParameterError(
            listing(
                "{n} override{s} without effect",
                idle,
                f"A pattern matches whole names, such as {some}; the first one wins",
            )
        )
    return taken


def _values(
    general: Any, field: str, taken: Mapping[str, Override], leaves: Sequence[str]
) -> dict[str, Any]:
    """For each leaf what the file says: the override's value or the general one."""
    values = {}
    for leaf in leaves:
        own = getattr(taken[leaf], field) if leaf in taken else None
        values[leaf] = general if own is None else own
    return values


def _spread(
    field: str,
    values: Mapping[str, Any],
    leaves: Sequence[str],
    at: Callable[[Sequence[Any], Fraction], Any],
) -> dict[str, Any]:
    """The values, with one of its own for each leaf under a gradient."""
    under = [leaf for leaf, value in values.items() if isinstance(value, tuple)]
    if not under:
        return dict(values)
    depth = _depth(field, under, leaves)
    found = dict(values)
    for leaf in under:
        _, layer = layer_of(leaf)
        found[leaf] = at(values[leaf], Fraction(layer, depth - 1))
    return found


def _depth(field: str, under: Sequence[str], leaves: Sequence[str]) -> int:
    """How many layers the stacks have to which leaves under a gradient belong."""
    if outside := [leaf for leaf in under if layer_of(leaf)[1] < 0]:
        raise ParameterError(
            listing(
                f"{field} over the layers: {{n}} leaf name{{s}} in no layer",
                outside,
                f"Give them one {field} by an override, after more specific ones",
            )
        )
    stacks = {layer_of(leaf)[0] for leaf in under}
    depths = {x: n for x, n in layer_depths(leaves).items() if x in stacks}
    if len(set(depths.values())) > 1:
        raise ParameterError(
            listing(
                f"{field} over the layers of {{n}} stacks that differ in depth",
                [f"{prefix}: {depth} layers" for prefix, depth in depths.items()],
                f"Give the leaves of all but one a {field} by overrides",
            )
        )
    depth = max(depths.values())
    if depth == 1:
        raise ParameterError(
            f"{field} over the layers, but there is one layer ({under[0]}): give one "
            "number"
        )
    return depth


def _scale_at(values: Sequence[float], position: Fraction) -> float:
    if not values or not all(map(math.isfinite, values)):
        raise ParameterError(
            f"scale over the layers is a list of finite numbers, got {list(values)}"
        )
    return float(_on_line(values, position))


def _rank_at(values: Sequence[int | float], position: Fraction) -> int | float:
    ranks = rank_gradient(values)
    rank = _on_line(ranks, position)
    # Half a direction is rounded up; a share stays one.
    return float(rank) if isinstance(ranks[0], float) else math.floor(rank + _HALF)


def _on_line(values: Sequence[int | float], position: Fraction) -> Fraction:
    """The exact value at a position from 0 to 1 on the line through the values."""
    whole, part = divmod(position * (len(values) - 1), 1)
    here = Fraction(values[whole])
    return here + part * (Fraction(values[whole + 1]) - here) if part else here
