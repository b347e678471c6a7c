"""Published numbers, with where they are from and how far to trust that.

`published.json` holds the tables as they were read; here they are cells that can be
asked for. Numbers are per cent. Those over different families of checkpoints are not
comparable: the same method differs by up to four points.

    python -m experiments.configs.published    # all cells
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Metric = Literal["accuracy", "normalised", "mean score"]
"""Mean accuracy over the tasks; the mean of its ratios to the experts'; or the mean of
the GLUE metrics, one of which is a correlation."""


@dataclass(frozen=True)
class Source:
    """Where numbers were published.

    Attributes:
      where: Repository, commit and file, or article.
      trust: Whether the original was read, or what others say of it.
      note: What to know of it.
    """

    where: str
    trust: Literal["primary", "secondary"]
    note: str = ""


@dataclass(frozen=True)
class Family:
    """Checkpoints over which numbers are comparable.

    Attributes:
      checkpoints: Where they are from.
      note: What to know of them.
    """

    checkpoints: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One published number.

    Attributes:
      model: Name of the architecture as open_clip spells it.
      suite: Key of `centermerge_jax.data.registry.SUITES`.
      method: `individual` is each expert on its own task, `pretrained` the base; the
        others are merging methods.
      value: Per cent.
      metric: What was measured.
      source: Key of `SOURCES`.
      family: Key of `FAMILIES`; None where it is not known.
    """

    model: str
    suite: str
    method: str
    value: float
    metric: Metric
    source: str
    family: str | None


@dataclass(frozen=True, kw_only=True)
class PerTask:
    """Accuracies of experts on their own tasks, per cent.

    Attributes:
      model: Name of the architecture.
      split: Of which images.
      values: By name of the task.
      source: Key of `SOURCES`.
      family: Key of `FAMILIES`.
    """

    model: str
    split: Literal["validation", "test"]
    values: Mapping[str, float]
    source: str
    family: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Hyperparameters of CART as its authors used them.

    Attributes:
      model: Name of the architecture.
      suite: Key of the suites.
      method: Always `cart`: those of other methods were not published.
      rank: Share of min(m, n).
      scale: Factor of the sum of the truncated task vectors.
      source: Key of `SOURCES`.
    """

    model: str
    suite: str
    method: str
    rank: float
    scale: float
    source: str


def _cells(tables: list[dict[str, Any]]) -> Iterator[Cell]:
    for table in tables:
        for method, values in table["rows"].items():
            for (model, suite), value in zip(table["columns"], values, strict=True):
                yield Cell(
                    model=model,
                    suite=suite,
                    method=method,
                    value=value,
                    metric=table.get("metric", "accuracy"),
                    source=table["source"],
                    family=table["family"],
                )


_CONTENT = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

SOURCES: Mapping[str, Source] = {
    name: Source(**fields) for name, fields in _CONTENT["sources"].items()
}
"""Sources by the name that cells call them by."""

FAMILIES: Mapping[str, Family] = {
    name: Family(**fields) for name, fields in _CONTENT["families"].items()
}
"""Families of checkpoints by name."""

CELLS: tuple[Cell, ...] = tuple(_cells(_CONTENT["tables"]))
"""All published means."""

PER_TASK: tuple[PerTask, ...] = tuple(
    PerTask(**fields) for fields in _CONTENT["per_task"]
)
"""What was published task by task."""

SETTINGS: tuple[Setting, ...] = tuple(
    Setting(**fields) for fields in _CONTENT["settings"]
)
"""All published ranks and scales."""


def cells(**wanted: str | None) -> tuple[Cell, ...]:
    """Cells whose fields are these, in the order of the tables.

    Example:
      >>> [c.value for c in cells(model="ViT-B-32", suite="clip8", method="cart")]
      [84.7, 83.0]
    """
    return tuple(
        cell
        for cell in CELLS
        if all(getattr(cell, field) == value for field, value in wanted.items())
    )


if __name__ == "__main__":
    for cell in CELLS:
        print(
            f"{cell.model:12} {cell.suite:6} {cell.method:26} {cell.value:6g} "
            f"{cell.metric:10} {cell.family or 'unknown':11} {cell.source} "
            f"({SOURCES[cell.source].trust})"
        )
