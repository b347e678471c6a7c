"""The demo's results as data, a table, a figure and a few sentences."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from centermerge_jax import plots
from centermerge_jax.demo.search import Trial, best, best_at_rank
from centermerge_jax.demo.settings import Settings
from centermerge_jax.evaluate import (
    Outcomes,
    mean_accuracy,
    mean_difference,
    normalised,
    wilson,
)
from centermerge_jax.packages import versions

_NAMES = {
    "pretrained": "pretrained",
    "experts": "experts",
    "weight_average": "weight average",
    "task_arithmetic": "task arithmetic",
    "truncated_task_arithmetic": "not centred",
    "cart": "CART",
}
_CURVES = {"cart": "centred (CART)", "truncated_task_arithmetic": "not centred"}


def results(
    rows: Mapping[str, Outcomes],
    validation: Mapping[str, float],
    trials: list[Trial],
    settings: Settings,
    *,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that was measured, as JSON values."""
    methods = {}
    for name, outcomes in rows.items():
        mean, half = mean_accuracy(outcomes)
        gain, gain_half = mean_difference(outcomes, rows["weight_average"])
        trial = best(trials, name) if name in {t.method for t in trials} else None
        methods[name] = {
            "rank": trial.rank if trial else None,
            "scale": trial.scale if trial else None,
            "validation": validation[name],
            "accuracy": {task: float(r.mean()) for task, r in outcomes.items()},
            "interval": {
                task: wilson(int(r.sum()), len(r)) for task, r in outcomes.items()
            },
            "mean": mean,
            "mean_half_width": half,
            "normalised": normalised(outcomes, rows["experts"]),
            "over_weight_average": gain,
            "over_weight_average_half_width": gain_half,
        }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions("centermerge_jax", "jax", "flax", "optax", "numpy"),
        "settings": dataclasses.asdict(settings),
        "test_items": {task: len(r) for task, r in rows["experts"].items()},
        "methods": methods,
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "curve_ranks": [0.0, *settings.ranks],
        "curves": {
            method: [
                best_at_rank(trials, method, rank).accuracy
                for rank in (0.0, *settings.ranks)
            ]
            for method in _CURVES
        },
        "seconds": dict(seconds),
    }


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Writes the figure, the table as Markdown, and last the results as JSON."""
    methods = found["methods"]
    validation = {
        name: methods[name]["validation"]
        for name in ("weight_average", "task_arithmetic")
    }
    figure = plots.rank_curve(
        found["curve_ranks"],
        {_CURVES[name]: curve for name, curve in found["curves"].items()},
        lines={_NAMES[name]: value for name, value in validation.items()},
        title="validation accuracy, best scale at each rank",
    )
    plots.save(figure, folder / "rank-curve.png")
    (folder / "results.md").write_text(markdown(found), encoding="utf-8")
    text = json.dumps(found, indent=2) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")


def table(found: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    head, *lines = _cells(found)
    shown = Table(title="accuracy on test images (%)", box=None, padding=(0, 0, 0, 2))
    for i, name in enumerate(head):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        shown.add_row(*line)
    return shown


def markdown(found: Mapping[str, Any]) -> str:
    """The same table in Markdown."""
    head, *lines = _cells(found)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def _cells(found: Mapping[str, Any]) -> list[Sequence[str]]:
    tasks = list(found["test_items"])
    rows: list[Sequence[str]] = [("method", *tasks, "mean", "norm.", "rank", "scale")]
    for name, row in found["methods"].items():
        rows.append(
            (
                _NAMES[name],
                *(f"{100 * row['accuracy'][task]:.1f}" for task in tasks),
                f"{100 * row['mean']:.1f} ±{100 * row['mean_half_width']:.1f}",
                f"{100 * row['normalised']:.1f}",
                "" if row["rank"] is None else f"{100 * row['rank']:g} %",
                "" if row["scale"] is None else f"{row['scale']:g}",
            )
        )
    return rows


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What the table says, in sentences with the numbers in them."""
    methods, ranks = found["methods"], found["curve_ranks"]
    lines = [
        "Each expert is on its own task; norm. is the mean of the ratios to them,",
        "± the 95 % interval over test images. Rank and scale were chosen on",
        "validation images. Gain over the weight average on the same test images:",
    ]
    for name in ("task_arithmetic", "truncated_task_arithmetic", "cart"):
        gain = 100 * methods[name]["over_weight_average"]
        half = 100 * methods[name]["over_weight_average_half_width"]
        sure = "" if abs(gain) > half else " (within noise)"
        lines.append(f"  {_NAMES[name]}: {gain:+.1f} ± {half:.1f} points{sure}")
    curve = found["curves"]["cart"]
    top = max(range(1, len(ranks)), key=lambda i: curve[i])
    ends = [
        f"{100 * curve[i]:.1f} % at rank {100 * ranks[i]:g} %" for i in (0, top, -1)
    ]
    average = 100 * methods["weight_average"]["validation"]
    lines += [
        f"CART on validation: {ends[0]}, {ends[1]} (best),",
        f"{ends[2]}; the average has {average:.1f} %.",
    ]
    leader = max(
        (n for n in methods if n not in ("experts", "pretrained")),
        key=lambda n: methods[n]["mean"],
    )
    if methods[leader]["mean"] > methods["cart"]["mean"]:
        lines.append(
            f"On these test images {_NAMES[leader]} is ahead of CART "
            f"({100 * methods[leader]['mean']:.1f} against "
            f"{100 * methods['cart']['mean']:.1f} %)."
        )
    return lines
