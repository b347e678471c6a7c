"""Accuracy over rank and scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from centermerge_jax.plots.style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    STYLE,
    new_figure,
    plain,
)

CENTRED = {"cart": "centred (CART)", "truncated_task_arithmetic": "not centred"}
"""The two methods whose rank curves are compared, and what they are called there."""

TESTED = "centred, on test examples"
"""What CART's accuracies on test examples are called in rank curves."""

_SERIES = ((BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^-."))
_STYLES = ("-", "--", ":", "-.")
_SPAN = 10  # points that a map's colours tell apart; all below look alike
_MOST_NUMBERS = 12  # in a row of a map: more do not fit


@rc_context(STYLE)
def rank_curve(
    shares: Sequence[int | float],
    curves: Mapping[str, Sequence[int | float | None]],
    *,
    lines: Mapping[str, int | float],
    title: str = "",
) -> Figure:
    """Accuracy against the share of rank kept, one curve a method.

    Args:
      shares: Shares of rank in [0, 1], ascending; evenly spaced along the axis.
      curves: Mean accuracies in [0, 1], by method; None where one was not measured.
      lines: Accuracies that do not depend on rank, drawn across.
      title: Above the picture.
    """
    figure = new_figure(3.6)
    axes = figure.subplots()
    for (name, accuracies), (colour, line) in zip(
        curves.items(), _SERIES, strict=False
    ):
        points = [(i, 100 * x) for i, x in enumerate(accuracies) if x is not None]
        places, percent = np.array(points).reshape(-1, 2).T
        axes.plot(places, percent, line, color=colour, label=plain(name))
    for (name, accuracy), style in zip(lines.items(), _STYLES, strict=False):
        axes.axhline(
            100 * accuracy, color=MUTED, linestyle=style, label=plain(name), lw=1.2
        )
    axes.set_xticks(range(len(shares)), [f"{100 * share:g}" for share in shares])
    axes.set_xlabel("rank kept of each matrix (% of full rank)")
    axes.set_ylabel("mean accuracy (%)")
    axes.set_title(plain(title, most=80))
    axes.legend()
    return figure


def accuracy_over_rank(comparison: Mapping[str, Any]) -> Figure:
    """Of each method, the best validation accuracy over scales at each rank.

    CART without a direction and with all of them is the average of the experts: where
    its ends were not measured, they are those of the weight average. Where CART was
    tested with the best scale at each rank (`tested`), that is a curve of its own.

    Args:
      comparison: With `curves`, and the weight average among its methods if it is to
        be shown.

    Returns:
      As `rank_curve`.
    """
    best = {
        name: dict(
            zip(curve["shares"], map(_best, curve["accuracy"]), strict=True)
        )  # by share
        for name, curve in comparison["curves"].items()
        if name in CENTRED
    }
    lines = {}
    average = comparison["methods"].get("weight_average", {})
    found = [run.get("validation") for run in average.get("runs", ())]
    if known := [accuracy for accuracy in found if accuracy is not None]:
        mean = sum(known) / len(known)
        lines["weight average"] = mean
        if "cart" in best:
            best["cart"] = {0.0: mean, 1.0: mean} | best["cart"]
    shares = sorted({share for curve in best.values() for share in curve})
    curves = {
        CENTRED[name]: [best[name].get(share) for share in shares]
        for name in CENTRED
        if name in best
    }
    cart = comparison["curves"].get("cart", {})
    if found := cart.get("tested"):
        tested = dict(zip(cart["shares"], found, strict=True))
        curves[TESTED] = [tested.get(share) for share in shares]
    return rank_curve(shares, curves, lines=lines)


def grid_of_points(points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The points of a search as a grid of shares of rank and scales.

    Returns:
      `shares`, `scales` and `accuracy[share][scale]`, None where there is no point; or
      None if the points do not differ in rank and scale, and in nothing else.

    Example:
      >>> grid_of_points([
      ...     {"setting": {"rank": 0.5, "scale": 1.0}, "validation": 0.7},
      ...     {"setting": {"rank": 1.0, "scale": 2.0}, "validation": 0.8},
      ... ])
      {'shares': [0.5, 1.0], 'scales': [1.0, 2.0],
       'accuracy': [[0.7, None], [None, 0.8]]}
    """
    found = {}
    for point in points:
        setting = point["setting"]
        numbers = [setting.get(key) for key in ("rank", "scale")]
        if len(setting) != 2 or not all(_is_number(x) for x in numbers):
            return None
        found[tuple(numbers)] = point["validation"]
    shares = sorted({share for share, _ in found})
    scales = sorted({scale for _, scale in found})
    if len(shares) < 2 or len(scales) < 2 or shares[-1] > 1:
        return None
    accuracy = [[found.get((share, scale)) for scale in scales] for share in shares]
    return {"shares": shares, "scales": scales, "accuracy": accuracy}


@rc_context(STYLE)
def scale_rank_map(curve: Mapping[str, Any], *, title: str = "") -> Figure:
    """Accuracy at every rank (a column) and scale (a row), the best one framed.

    Colours are of the ten points below the best.

    Args:
      curve: `shares`, `scales` and `accuracy[share][scale]` in [0, 1], None where there
        is none: an entry of a comparison's `curves`, or from `grid_of_points`.
      title: Above the picture.
    """
    percent = 100 * np.array(curve["accuracy"], float).T
    figure = new_figure(1.3 + 0.34 * len(curve["scales"]))
    axes = figure.subplots()
    heat_map(
        axes,
        percent,
        columns=[f"{100 * share:g}" for share in curve["shares"]],
        rows=[f"{scale:g}" for scale in curve["scales"]],
        form="{:.1f}",
        limits=(float(np.nanmax(percent)) - _SPAN, None),
    )
    row, column = np.unravel_index(np.nanargmax(percent), percent.shape)
    axes.add_patch(_frame(int(row), int(column)))
    axes.set_xlabel("rank kept of each matrix (% of full rank)")
    axes.set_ylabel("scale")
    axes.set_title(plain(title, most=80))
    return figure


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "rows columns"],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    form: str,
    limits: tuple[int | float | None, int | float | None] = (None, None),
    colours: str = "cividis",
) -> Any:
    """Draws cells with their numbers in them; cells without a value stay empty.

    Returns:
      What a colour bar is made of.
    """
    cells = axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        edgecolors="none",
    )
    cells.update_scalarmappable()
    if len(columns) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ground = np.asarray(cells.to_rgba(value))
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    form.format(value),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    # Not of the palette: the cell under it is the same in the dark.
                    color="#111111" if _luminance(ground) > 0.2 else "#fafafa",
                )
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return cells


def _best(accuracies: Sequence[int | float | None]) -> int | float | None:
    return max((x for x in accuracies if x is not None), default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _luminance(colour: Float[np.ndarray, "4"]) -> float:
    """Relative luminance, as contrast is computed from."""
    linear = colour[:3] ** 2.2
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _frame(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    place = (column + 0.04, row + 0.04)
    return Rectangle(place, 0.92, 0.92, fill=False, edgecolor=ORANGE, lw=2.2)
