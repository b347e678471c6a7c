"""The section of a report about a search of settings."""

from collections.abc import Mapping
from typing import Any

from centermerge_jax import plots
from centermerge_jax.report.document import Block, Cell, Picture, Section, Table
from centermerge_jax.report.wording import (
    counted,
    percent,
    seconds,
    setting_text,
    with_interval,
)


def title(sweep: Mapping[str, Any]) -> str:
    """What a search is called."""
    return f"Search of settings: {_method(sweep)}"


def summary(sweep: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    chosen, test = sweep["chosen"], sweep.get("test")
    setting = setting_text(chosen["setting"]) or "the only one"
    tried = counted(len(sweep["points"]), "setting")
    best = f"{setting}, with {percent(chosen['validation'])} %"
    said = [f"{tried} of {_method(sweep)}; the best on validation examples is {best}."]
    if test:
        mean = with_interval(test["mean"], test.get("mean_half_width"))
        said.append(f"On test examples, which chose nothing, it has {mean}.")
    return said


def section(sweep: Mapping[str, Any], slug: str) -> Section:
    """Tables and a figure.

    Args:
      sweep: The JSON object.
      slug: Begins the names of figures, and is the address of the section.
    """
    blocks: list[Block] = []
    if (grid := plots.grid_of_points(sweep["points"])) is not None:
        blocks.append(
            Picture(
                f"{slug}-scale-rank",
                plots.scale_rank_map(grid),
                f"{_method(sweep)}: mean {_metric(sweep)} on validation examples in "
                "percent, for every rank (a column) and scale (a row) that was tried. "
                "Yellow is best, dark is ten points below it or more, and the best one "
                "has a frame.",
                f"Map of the {_metric(sweep)} of {_method(sweep)} over rank and scale.",
            )
        )
    if test := sweep.get("test"):
        blocks.append(_tested(sweep, test))
    blocks.append(_tried(sweep))
    return Section(title(sweep), slug, blocks)


def _tested(sweep: Mapping[str, Any], test: Mapping[str, Any]) -> Table:
    items = test.get("items") or {}
    rows = [
        (
            Cell(task),
            Cell(str(items.get(task, "")), order=items.get(task)),
            Cell(percent(accuracy), order=accuracy),
        )
        for task, accuracy in test["accuracy"].items()
    ]
    half = test.get("mean_half_width")
    note = "" if half is None else f"± {percent(half)}"
    rows.append((Cell("mean"), Cell(""), Cell(percent(test["mean"]), note)))
    return Table(
        f"The chosen setting on test examples: {_metric(sweep)} in percent; ± the "
        "half-width of the 95 % interval over test examples.",
        ("task", "examples", f"{_metric(sweep)} (%)"),
        rows,
    )


def _tried(sweep: Mapping[str, Any]) -> Table:
    points = sorted(sweep["points"], key=lambda point: -point["validation"])
    top = points[0]["validation"]
    rows = []
    for point in points:
        validation, time = point["validation"], point.get("seconds")
        per_task = point.get("per_task") or {}
        rows.append(
            (
                Cell(setting_text(point["setting"]) or "as it is"),
                Cell(percent(validation), "", validation, best=validation == top),
                *(
                    Cell(percent(per_task[task]), "", per_task[task])
                    if task in per_task
                    else Cell("")
                    for task in sweep["tasks"]
                ),
                Cell("" if time is None else seconds(time), order=time),
            )
        )
    return Table(
        f"All settings that were tried: {_metric(sweep)} on validation examples in "
        "percent, the best first, and the time of merging and evaluating.",
        ("setting", "mean", *sweep["tasks"], "time"),
        rows,
    )


def _method(sweep: Mapping[str, Any]) -> str:
    name = sweep["method"]
    return "CART" if name == "cart" else name.replace("_", " ")


def _metric(sweep: Mapping[str, Any]) -> str:
    return sweep.get("metric") or "accuracy"
