"""Figures of what task vectors look like, from the objects of `centermerge analyse`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib import colors, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from centermerge_jax.plots.ranks import heat_map
from centermerge_jax.plots.style import BLUE, ORANGE, STYLE, new_figure, plain

ORIGINS = {"mean": "centred", "base": "not centred"}
"""What the origins of task vectors are called in figures."""

PANELS = {
    "interference_top": "I(k), top k",
    "interference_whole": "I(k), whole spectrum",
    "interference_none": "I(k), not normalised",
    "reconstruction": "R(k), share lost",
}
"""What is shown of each origin against rank, and how it is called."""

_SERIES = {"mean": (BLUE, "o-"), "base": (ORANGE, "s--")}
# Both ends and the middle can be seen on white and on black.
_LAYERS = colors.LinearSegmentedColormap.from_list(
    "layers", ["#2f6fd0", "#8b8794", "#d97706"]
)
_KINDS = 8  # panels of spectra: more are left out
_TICKS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0)


def mean_curve(
    analysis: Mapping[str, Any], origin: str, name: str
) -> list[int | float | None] | None:
    """A measure of one origin at every share of rank, as the mean over matrices.

    Of the reconstruction error it is the share of the task vectors' energy.

    Args:
      analysis: With `mean_over_matrices`.
      origin: "mean" or "base".
      name: One of `PANELS`.

    Returns:
      None if it was not measured.
    """
    found = analysis["mean_over_matrices"].get(origin, {})
    if name == "reconstruction":
        return found.get("reconstruction_relative", found.get(name))
    return found.get(name)


def panels_shown(analysis: Mapping[str, Any]) -> list[str]:
    """Which of `PANELS` were measured around any origin."""
    return [
        name
        for name in PANELS
        if any(mean_curve(analysis, origin, name) is not None for origin in ORIGINS)
    ]


@rc_context(STYLE)
def interference(analysis: Mapping[str, Any]) -> Figure:
    """Interference I(k) in each normalisation, and reconstruction error R(k), by rank.

    Means over matrices; centred, and not centred where there is a base.
    """
    shown = panels_shown(analysis)
    rows = -(-len(shown) // 2)
    figure = new_figure(2.5 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for axes, name in zip(panels, shown, strict=False):
        for origin, (colour, line) in _SERIES.items():
            values = mean_curve(analysis, origin, name)
            if values is not None:
                axes.plot(
                    analysis["shares"],
                    np.array(values, float),
                    line,
                    color=colour,
                    label=ORIGINS[origin],
                    markersize=3.5,
                )
        axes.set_title(PANELS[name])
        axes.set_ylim(bottom=0)
        _share_axis(axes, analysis["shares"])
    for axes in list(figure.axes)[len(shown) :]:
        axes.remove()
    figure.axes[0].legend()
    figure.supxlabel("rank k (% of full rank)", fontsize=9)
    return figure


@rc_context(STYLE)
def trade_off(analysis: Mapping[str, Any]) -> Figure:
    """What is lost, R(k), against what interferes, I(k): a point for each rank.

    I(k) is that over the whole spectrum, which grows with rank.
    """
    figure = new_figure(3.6)
    axes = figure.subplots()
    for origin, (colour, line) in _SERIES.items():
        across = mean_curve(analysis, origin, "interference_whole")
        up = mean_curve(analysis, origin, "reconstruction")
        if across is None or up is None:
            continue
        across, up = np.array(across, float), np.array(up, float)
        axes.plot(across, up, line, color=colour, label=ORIGINS[origin])
        for share, x, y in zip(analysis["shares"], across, up, strict=True):
            if share in _TICKS[:5:2] and np.isfinite([x, y]).all():
                axes.annotate(
                    f"{100 * share:g} %",
                    (x, y),
                    textcoords="offset points",
                    xytext=(6, 3),
                    fontsize=7.5,
                    color=colour,
                )
    axes.set_xlabel("interference I(k), normalised over the whole spectrum")
    axes.set_ylabel("R(k), share of the squared norm lost")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def kind_of(name: str, layer: int | None) -> str:
    """What matrices of different layers have in common: the name without the layer.

    Example:
      >>> kind_of("blocks/10/attn/q/kernel", 10)
      'blocks/*/attn/q/kernel'
      >>> kind_of("h.1.attn.c_attn.weight", 1)
      'h.*.attn.c_attn.weight'
    """
    if layer is None:
        return name
    return re.sub(rf"(?<![0-9A-Za-z_]){layer}(?![0-9A-Za-z_])", "*", name)


def spectrum_lines(
    analysis: Mapping[str, Any], origin: str
) -> dict[
    str, dict[int | None, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]
]:
    """Of each kind of matrix and each layer: places in [0, 1] and singular values.

    A place is the number of the value, from 1, as a share of the full rank. Values are
    means over tasks, and over the matrices of one kind and layer. Layers that no task
    has changed are left out.
    """
    gathered: dict[str, dict[int | None, list[Any]]] = {}
    for name, matrix in analysis["matrices"].items():
        measured, layer = matrix[origin], matrix["layer"]
        values = np.array(measured["singular_values"], float).mean(0)
        if not values.any():
            continue  # a layer that was not trained
        indices = measured.get("indices", matrix.get("indices", range(len(values))))
        places = (np.array(indices) + 1) / min(matrix["shape"])
        kind = gathered.setdefault(kind_of(name, layer), {})
        kind.setdefault(layer, []).append((places, values))
    return {
        kind: {
            layer: (some[0][0], np.mean([values for _, values in some], 0))
            for layer, some in layers.items()
        }
        for kind, layers in gathered.items()
    }


@rc_context(STYLE)
def spectra(
    analysis: Mapping[str, Any], origin: Literal["mean", "base"] = "mean"
) -> Figure:
    """Singular values of the task vectors: a panel a kind of matrix, a line a layer.

    Of more than eight kinds, those with the most layers are shown.
    """
    lines = spectrum_lines(analysis, origin)
    kinds = sorted(sorted(lines), key=lambda kind: -len(lines[kind]))[:_KINDS]
    layers = sorted({x for kind in kinds for x in lines[kind] if x is not None})
    first, last = (layers[0], layers[-1]) if layers else (0, 0)
    scale = colors.Normalize(first, max(last, first + 1))
    rows = -(-len(kinds) // 2)
    figure = new_figure(0.4 + 2.1 * rows)
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for layer, (places, values) in sorted(
            lines[kind].items(), key=lambda item: (item[0] is not None, item[0])
        ):
            colour = _LAYERS(scale(first if layer is None else layer))
            axes.semilogy(100 * places, values, color=colour, lw=1.2)
        # What is 0 but for rounding would stretch the axis over decades.
        highest = max(values.max() for _, values in lines[kind].values())
        axes.set_ylim(2e-4 * highest, 1.5 * highest)
        axes.set_title(_short(kind), fontsize=8.5)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    if len(layers) > 1:
        bar = figure.colorbar(
            ScalarMappable(scale, _LAYERS), ax=figure.axes, aspect=40, pad=0.02
        )
        bar.set_label("layer")
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    figure.supxlabel("number of the singular value (% of full rank)", fontsize=9)
    figure.supylabel("singular value", fontsize=9)
    return figure


@rc_context(STYLE)
def task_map(
    analysis: Mapping[str, Any],
    quantity: Literal["alignment", "cosine"] = "alignment",
) -> Figure:
    """How alike tasks are, each with each: a panel an origin, means over matrices.

    Args:
      analysis: With `mean_over_matrices`.
      quantity: "alignment" of the subspaces of the top singular vectors, in [0, 1]; or
        "cosine" between whole task vectors, in [-1, 1].
    """
    tasks, names = analysis["tasks"], [plain(x, most=16) for x in analysis["tasks"]]
    means = analysis["mean_over_matrices"]
    origins = [name for name in ORIGINS if quantity in means.get(name, {})]
    side = min(0.9 + 0.3 * len(tasks), 5.0)
    figure = new_figure(
        max(side, 2.4), width=max(5.0, 1.2 + 0.95 * side * len(origins))
    )
    panels = figure.subplots(1, len(origins), squeeze=False, sharey=True)[0]
    lowest, colours = (0, "cividis") if quantity == "alignment" else (-1, "PuOr")
    cells = None
    for axes, origin in zip(panels, origins, strict=True):
        cells = heat_map(
            axes,
            np.array(means[origin][quantity], float),
            columns=names,
            rows=names,
            form="{:.2f}",
            limits=(lowest, 1),
            colours=colours,
        )
        axes.tick_params("x", rotation=45 if len(tasks) > 3 else 0)
        for label in axes.get_xticklabels():
            label.set_ha("right" if len(tasks) > 3 else "center")
            label.set_rotation_mode("anchor")
        axes.set_title(ORIGINS[origin])
    panels[0].invert_yaxis()
    if cells is not None:
        bar = figure.colorbar(cells, ax=list(panels), shrink=0.8, pad=0.02)
        bar.set_label(quantity)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _share_axis(axes: Axes, shares: Sequence[int | float]) -> None:
    """Shares of rank, each twice the one before as far apart as any other."""
    ticks = [share for share in _TICKS if min(shares) <= share <= max(shares)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{100 * share:g}" for share in ticks])
    axes.minorticks_off()


def _short(kind: str) -> str:
    """The end of a name, which says what a matrix is for."""
    kind = re.sub(r"[/.](kernel|weight)\b", "", kind)
    return plain(kind if len(kind) <= 32 else f"…{kind[-31:]}", most=32)
