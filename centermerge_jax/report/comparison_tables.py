"""Tables of methods: accuracy, cost, settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from centermerge_jax.plots.comparison import (
    gaps,
    is_reference,
    label,
    merges,
    task_interval,
)
from centermerge_jax.plots.cost import merge_seconds
from centermerge_jax.progress import size_text
from centermerge_jax.report.document import Cell, Table
from centermerge_jax.report.wording import (
    percent,
    range_text,
    seconds,
    setting_text,
    signed,
)

_LAST = math.inf  # places empty cells after all others


def accuracy_table(comparison: Mapping[str, Any]) -> Table:
    """Methods by tasks, the best merge of each column in bold."""
    tasks, names = comparison["tasks"], _ordered(comparison)
    rows = [comparison["methods"][name] for name in names]
    head, columns, of_experts = ["method", "mean"], [], ""
    columns.append(
        [
            Cell(percent(row["mean"]), _half(row.get("mean_half_width")), row["mean"])
            for row in rows
        ]
    )
    if any(row.get("normalised") is not None for row in rows):
        head.append("of experts")
        columns.append([_share(row.get("normalised")) for row in rows])
        of_experts = (
            " “of experts” is the mean over tasks of the accuracy as a share of that "
            "of each task's own expert."
        )
    head += tasks
    columns += [_task_column(rows, task) for task in tasks]
    return _table(
        "Accuracy on test examples in percent, with the half-width of the 95 % "
        f"interval after ±.{of_experts} In bold: the best merge of the column. "
        "References, which merge nothing, come first.",
        head,
        comparison,
        [_marked_best(comparison, names, column) for column in columns],
    )


def cost_table(comparison: Mapping[str, Any]) -> Table:
    """What methods cost, and how far they are from the references."""
    names = _ordered(comparison)
    rows = [comparison["methods"][name] for name in names]
    columns = {"group": [Cell(row.get("group") or "") for row in rows]}
    for reference, title in (("joint", "joint training"), ("experts", "experts")):
        if reference in comparison["methods"]:
            columns[f"against {title}"] = [
                _gap(comparison, name, reference) for name in names
            ]
    columns["one merge"] = [_time(merge_seconds(row)) for row in rows]
    columns["search"] = [
        _time(_mean(row.get("runs", ()), "search_seconds")) for row in rows
    ]
    columns["peak memory"] = [
        _size(_mean(row.get("runs", ()), "peak_bytes")) for row in rows
    ]
    kept = {
        name: cells
        for name, cells in columns.items()
        if any(cell.text for cell in cells)
    }
    memory = ", and the most memory of the process" * ("peak memory" in kept)
    return _table(
        "How far each method is from joint training and from the individual experts, "
        "in points with the half-width of the 95 % interval, and what it costs: the "
        f"time of one merge, and of the whole search for its settings{memory}, as "
        "means over seeds.",
        ["method", *kept],
        comparison,
        list(kept.values()),
        left=[1] if "group" in kept else [],
    )


def settings_table(comparison: Mapping[str, Any]) -> Table | None:
    """What was chosen on validation examples; None if nothing was."""
    rows, marked = [], []
    for name, row in merges(comparison).items():
        chosen: dict[str, list[Mapping[str, Any]]] = {}
        for run in row.get("runs", ()):
            if text := setting_text(run.get("setting"), _settings(run)):
                chosen.setdefault(text, []).append(run)
        for text, runs in chosen.items():
            seeds = [str(run["seed"]) for run in runs if run.get("seed") is not None]
            tried = _mean(runs, "points", len)
            if name == "cart":
                marked.append(len(rows))
            rows.append(
                (
                    Cell(label(name, row)),
                    Cell(text),
                    Cell(", ".join(seeds)),
                    Cell("" if tried is None else f"{tried:g}", order=tried or 0.0),
                    Cell(range_text(_settings(runs[0]))),
                    _share(_mean(runs, "validation")),
                )
            )
    if not rows:
        return None
    return Table(
        "The settings chosen for each method by their accuracy on validation examples: "
        "with which seeds, among how many in which range, and that accuracy as the "
        "mean over these seeds. A star marks the smallest or the largest number that "
        "was tried: beyond it there may be more.",
        ("method", "setting", "seeds", "tried", "range", "validation (%)"),
        rows,
        marked,
        left=[1, 4],
    )


def _settings(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a run has tried."""
    return [point.get("setting") or {} for point in run.get("points") or ()]


def _ordered(comparison: Mapping[str, Any]) -> list[str]:
    rows = comparison["methods"]
    first = [name for name, row in rows.items() if is_reference(name, row)]
    return [*first, *merges(comparison)]


def _table(
    caption: str,
    head: Sequence[str],
    comparison: Mapping[str, Any],
    columns: Sequence[Sequence[Cell]],
    left: Sequence[int] = (),
) -> Table:
    names = _ordered(comparison)
    cells = [Cell(label(name, comparison["methods"][name])) for name in names]
    rows = list(zip(cells, *columns, strict=True))
    marked = [i for i, name in enumerate(names) if name == "cart"]
    return Table(caption, head, rows, marked, left)


def _task_column(rows: Sequence[Mapping[str, Any]], task: str) -> list[Cell]:
    cells = []
    for row in rows:
        ends = task_interval(row, task)
        half = None if ends is None else (ends[1] - ends[0]) / 2
        accuracy = row["accuracy"][task]
        cells.append(Cell(percent(accuracy), _half(half), accuracy))
    return cells


def _marked_best(
    comparison: Mapping[str, Any], names: Sequence[str], column: Sequence[Cell]
) -> list[Cell]:
    """The cells, the best of merges marked; and all that look as good."""
    known = merges(comparison)
    found = [
        cell
        for name, cell in zip(names, column, strict=True)
        if name in known and cell.text
    ]
    top = max(found, key=lambda cell: cell.order or 0.0).text if found else None
    return [
        Cell(cell.text, cell.note, cell.order, name in known and cell.text == top)
        for name, cell in zip(names, column, strict=True)
    ]


def _gap(comparison: Mapping[str, Any], name: str, reference: str) -> Cell:
    found = gaps(comparison, name, reference)
    if found is None or name == reference:
        return Cell("", order=-_LAST)
    return Cell(signed(found[0]), f"± {found[1]:.1f}" if found[1] else "", found[0])


def _mean(
    runs: Sequence[Mapping[str, Any]], key: str, measure: Callable[[Any], float] = float
) -> int | float | None:
    known = [measure(run[key]) for run in runs if run.get(key)]
    return fmean(known) if known else None


def _half(half: int | float | None) -> str:
    return "" if half is None else f"± {percent(half)}"


def _share(value: int | float | None) -> Cell:
    return Cell("", order=-_LAST) if value is None else Cell(percent(value), "", value)


def _time(value: int | float | None) -> Cell:
    return Cell("", order=_LAST) if value is None else Cell(seconds(value), "", value)


def _size(value: int | float | None) -> Cell:
    shown = "" if value is None else size_text(int(value))
    return Cell(shown, order=_LAST if value is None else value)
