"""Figures from results."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def rank_curve(
    shares: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    lines: Mapping[str, float],
    path: Path,
    title: str = "",
) -> None:
    """Accuracy against the share of rank kept, one curve a method.

    Args:
      shares: Shares of rank in [0, 1], ascending; evenly spaced along the axis.
      curves: Mean accuracies in [0, 1], by method.
      lines: Accuracies that do not depend on rank, drawn across.
      path: Where the picture goes; its ending decides the format.
      title: Above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(shares))
    for (name, accuracies), colour in zip(curves.items(), _COLOURS, strict=False):
        percent = [100 * accuracy for accuracy in accuracies]
        axes.plot(places, percent, "o-", color=colour, label=name, markersize=4)
    for (name, accuracy), style in zip(lines.items(), _STYLES, strict=False):
        axes.axhline(100 * accuracy, color="0.4", linestyle=style, label=name, lw=1)
    axes.set_xticks(places, [f"{100 * share:g}" for share in shares])
    axes.set_xlabel("rank kept of each matrix (% of full rank)")
    axes.set_ylabel("mean accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)


_COLOURS = ("#1f5fa8", "#c8501e", "#3a8a4d")
_STYLES = ("-", "--", ":", "-.")
