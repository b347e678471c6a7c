"""What methods cost and what they give."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from centermerge_jax.plots.comparison import GROUPS, label, merges
from centermerge_jax.plots.labels import place_labels
from centermerge_jax.plots.style import INK, MUTED, STYLE, new_figure, plain

_LINES = {"experts": "-", "joint": "--", "pretrained": ":"}


def merge_seconds(row: Mapping[str, Any]) -> int | float | None:
    """How long one merge takes, as the mean over seeds; None if it was not measured."""
    found = [run.get("merge_seconds") for run in row.get("runs", ())]
    known = [seconds for seconds in found if seconds]
    return sum(known) / len(known) if known else None


@rc_context(STYLE)
def cost_against_accuracy(comparison: Mapping[str, Any]) -> Figure:
    """Mean accuracy against the seconds that one merge takes: a point a method.

    Error bars are 95 % intervals, lines across the references; methods whose time is
    not known are left out.
    """
    rows = {
        name: (row, seconds)
        for name, row in merges(comparison).items()
        if (seconds := merge_seconds(row)) is not None
    }
    figure = new_figure(3.6 + 0.1 * min(len(rows), 30), width=7.2)
    axes = figure.subplots()
    bars = []
    for name, (row, seconds) in rows.items():
        group = row["group"] if row.get("group") in GROUPS else "other"
        colour, marker = GROUPS[group]
        mean, half = 100 * row["mean"], 100 * (row.get("mean_half_width") or 0.0)
        axes.errorbar(
            seconds,
            mean,
            yerr=half,
            color=colour,
            marker=marker,
            markersize=9 if name == "cart" else 5.5,
            markeredgecolor=INK if name == "cart" else colour,
            elinewidth=0.8,
            linestyle="none",
        )
        bars.append(np.array([seconds, mean - half, seconds, mean + half]))
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.12)
    left, right = axes.get_xlim()
    for name, style in _LINES.items():
        if name in comparison["methods"]:
            mean = 100 * comparison["methods"][name]["mean"]
            axes.axhline(mean, color=MUTED, linestyle=style, lw=1)
            bars.append(np.array([left, mean, right, mean]))
    axes.set_xlabel("seconds for one merge")
    axes.set_ylabel("mean accuracy on test examples (%)")
    _legend(axes, comparison, {row.get("group") for row, _ in rows.values()})
    if rows:
        place_labels(
            axes,
            [(seconds, 100 * row["mean"]) for row, seconds in rows.values()],
            [plain(label(name, row)) for name, (row, _) in rows.items()],
            bold=[plain(label(name, rows[name][0])) for name in rows if name == "cart"],
            obstacles=bars,
        )
    return figure


def _legend(axes: Any, comparison: Mapping[str, Any], groups: set[Any]) -> None:
    """Groups and references, above the points rather than over them."""
    handles = []
    for group, (colour, marker) in GROUPS.items():
        if group in groups or (group == "other" and groups - GROUPS.keys()):
            handles += axes.plot(
                [], [], linestyle="none", color=colour, marker=marker, label=group
            )
    for name, style in _LINES.items():
        if name in comparison["methods"]:
            text = plain(label(name, comparison["methods"][name]))
            handles += axes.plot([], [], color=MUTED, linestyle=style, label=text)
    axes.get_figure().legend(handles=handles, loc="outside upper left", ncols=4)
