"""Figures that compare methods, from objects of the kind "comparison"."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from centermerge_jax.evaluate import wilson
from centermerge_jax.plots.style import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    STYLE,
    new_figure,
    plain,
)

REFERENCES = ("pretrained", "experts", "joint")
"""Methods that merge nothing, and that merges are compared with."""

GROUPS = {
    "average": (AMBER, "D"),
    "task vectors": (ORANGE, "s"),
    "spectral": (BLUE, "o"),
    "learned": (PURPLE, "^"),
    "data-free": (GREEN, "v"),
    "other": (MUTED, "X"),
}
"""Colour and marker of each group of merging methods."""

_BARS = ("weight_average", "task_arithmetic", "cart", "joint", "experts")
_BAR_COLOURS = (AMBER, ORANGE, BLUE, GREEN, PURPLE, MUTED, INK)


def is_reference(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a method of a comparison is no merge but what merges are held against."""
    return name in REFERENCES or row.get("group") == "reference"


def merges(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The merging methods, the most accurate first."""
    rows = comparison["methods"].items()
    found = {name: row for name, row in rows if not is_reference(name, row)}
    return dict(sorted(found.items(), key=lambda item: -item[1]["mean"]))


def label(name: str, row: Mapping[str, Any]) -> str:
    """What a method is called where people read."""
    return row.get("label") or name.replace("_", " ")


def task_interval(
    row: Mapping[str, Any], task: str
) -> tuple[int | float, int | float] | None:
    """The 95 % interval of a method's accuracy on a task.

    Returns:
      Over seeds and test items where the comparison says so (`accuracy_half_width`),
      else over the test items of one seed; None if their number is not known.

    Example:
      >>> row = {"accuracy": {"dtd": 0.9}, "accuracy_half_width": {"dtd": 0.05}}
      >>> [round(end, 2) for end in task_interval(row, "dtd")]
      [0.85, 0.95]
    """
    accuracy = row["accuracy"][task]
    half = (row.get("accuracy_half_width") or {}).get(task)
    if half is not None:
        return max(0.0, accuracy - half), min(1.0, accuracy + half)
    counts = [(run.get("items") or {}).get(task) for run in row.get("runs", ())]
    known = [count for count in counts if count]
    return wilson(round(accuracy * known[0]), known[0]) if known else None


def bars_shown(comparison: Mapping[str, Any]) -> list[str]:
    """The methods that `accuracy_bars` shows unless told: at most six.

    The weight average, task arithmetic, CART, the best other merge, and the references
    joint training and experts, as far as they are there.
    """
    shown = [name for name in _BARS if name in comparison["methods"]]
    others = [name for name in merges(comparison) if name not in shown]
    if others:
        after = [i for i, name in enumerate(shown) if name not in REFERENCES]
        shown.insert(after[-1] + 1 if after else 0, others[0])
    return shown


@rc_context(STYLE)
def accuracy_bars(
    comparison: Mapping[str, Any], methods: Sequence[str] | None = None
) -> Figure:
    """Accuracy on every task: a group of bars a task, a bar a method, with intervals.

    Args:
      comparison: With `tasks` and `methods`.
      methods: Which; by default those of `bars_shown`.
    """
    tasks, rows = comparison["tasks"], comparison["methods"]
    shown = list(methods) if methods is not None else bars_shown(comparison)
    thick = 0.8 / max(len(shown), 1)
    inches = 0.13 if len(tasks) <= 10 else 0.09  # of a bar
    figure = new_figure(0.9 + len(tasks) * (inches * len(shown) + 0.12))
    axes = figure.subplots()
    for i, name in enumerate(shown):
        accuracy = np.array([rows[name]["accuracy"][task] for task in tasks])
        places = np.arange(len(tasks)) + thick * (i - (len(shown) - 1) / 2)
        axes.barh(
            places,
            100 * accuracy,
            thick * 0.88,
            color=_BAR_COLOURS[i % len(_BAR_COLOURS)],
            label=plain(label(name, rows[name])),
        )
        for task, place in zip(tasks, places, strict=True):
            if (ends := task_interval(rows[name], task)) is not None:
                axes.plot([100 * end for end in ends], [place] * 2, color=INK, lw=1)
    axes.set_yticks(range(len(tasks)), [plain(task) for task in tasks])
    axes.set_ylim(len(tasks) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy on test examples (%)")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def gaps(
    comparison: Mapping[str, Any], name: str, reference: str
) -> tuple[int | float, int | float] | None:
    """How far a method is above a reference, and the half-width of its interval.

    Args:
      comparison: With `methods`.
      name: Of the method.
      reference: "joint" or "experts".

    Returns:
      Points, that is 100 times the difference of mean accuracies, and 0 for a
      half-width that is not known; None without the reference.

    Example:
      >>> rows = {"cart": {"mean": 0.88}, "joint": {"mean": 0.9}}
      >>> [round(x, 3) for x in gaps({"methods": rows}, "cart", "joint")]
      [-2.0, 0.0]
    """
    rows = comparison["methods"]
    if reference not in rows:
        return None
    gap = 100 * (rows[name]["mean"] - rows[reference]["mean"])
    return gap, 100 * (rows[name].get(f"over_{reference}_half_width") or 0.0)


@rc_context(STYLE)
def gap_bars(comparison: Mapping[str, Any]) -> Figure:
    """How many points each merge is from joint training and from the experts.

    The best merge is on top; the band is where the paper says that CART is: 1 to 3 %
    below joint training.
    """
    rows = merges(comparison)
    references = [x for x in ("joint", "experts") if x in comparison["methods"]]
    figure = new_figure(1.0 + 0.2 * len(rows))
    panels = figure.subplots(
        1, len(references), squeeze=False, sharex=True, sharey=True
    )[0]
    places = np.arange(len(rows))
    for axes, reference in zip(panels, references, strict=True):
        found = [gaps(comparison, name, reference) or (0, 0) for name in rows]
        colours = [BLUE if name == "cart" else MUTED for name in rows]
        axes.barh(
            places,
            [gap for gap, _ in found],
            0.66,
            color=colours,
            xerr=[half for _, half in found],
            error_kw={"ecolor": INK, "elinewidth": 1},
        )
        if reference == "joint":
            axes.axvspan(-3, -1, color=GREEN, alpha=0.2, lw=0, zorder=0)
        axes.axvline(0, color=INK, lw=1)
        title = "joint training" if reference == "joint" else "individual experts"
        axes.set_title(f"against {title}")
        axes.grid(visible=False, axis="y")
    names = [plain(label(name, row)) for name, row in rows.items()]
    panels[0].set_yticks(places, names)
    panels[0].invert_yaxis()
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel("difference of mean accuracy (points)", fontsize=9)
    for text, name in zip(panels[0].get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if name == "cart" else "normal")
    return figure
