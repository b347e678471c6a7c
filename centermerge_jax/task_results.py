"""What is measured of a model on a task, from what is known of every item.

Whoever ran the model brings rows of items in any order, from any number of processes;
here they are put into the order of the source, checked, and summed up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from centermerge_jax.errors import DataError
from centermerge_jax.evaluate import wilson
from centermerge_jax.metrics import Answers, Calibration, Metric, calibration

Columns = Mapping[str, np.ndarray]
"""One array per quantity, with a row for each item."""


@dataclass(frozen=True)
class Timing:
    """Where the time of an evaluation went.

    Attributes:
      first_seconds: The first batch, compilation included.
      seconds: All others.
      waiting_seconds: Of these, waiting for the input pipeline.
      items: Items in these others, over all processes.
    """

    first_seconds: float
    seconds: float
    waiting_seconds: float
    items: int

    @property
    def items_per_second(self) -> float | None:
        """After the first batch; None where there was no other."""
        return self.items / self.seconds if self.items else None


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What was measured of one model on one task.

    Attributes:
      name: The task.
      answers: To every item, in the order of `index`.
      index: Places of the items in the source, ascending.
      interval: Wilson's 95 % interval of the accuracy.
      negative_log_likelihood: Mean over items, in nats.
      calibration: Expected calibration error and its bins.
      timing: How long it took.
    """

    name: str
    answers: Answers
    index: Int32[np.ndarray, " n"]
    interval: tuple[float, float]
    negative_log_likelihood: float
    calibration: Calibration
    timing: Timing

    @property
    def accuracy(self) -> float:
        """Share of items that were classified rightly."""
        return float(self.answers.correct.mean())


def task_result(
    name: str,
    columns: Columns,
    classes: int,
    metric: Metric,
    *,
    bins: int,
    timing: Timing,
) -> TaskResult:
    """Measures a task from the rows of its items, in any order.

    Args:
      name: The task.
      columns: `index`, `label`, `prediction`, `confidence`, `loss`, `finite` by item.
      classes: Number of classes.
      metric: How the task is scored.
      bins: Of the calibration error.
      timing: How long it took.

    Raises:
      DataError: Logits are not finite, a label is outside the classes, an item came
        twice, or there is none.
    """
    order = np.argsort(columns["index"], kind="stable")
    columns = {field: values[order] for field, values in columns.items()}
    _check(name, columns, classes)
    answers = Answers(columns["label"], columns["prediction"], classes, metric)
    correct = answers.correct
    return TaskResult(
        name=name,
        answers=answers,
        index=columns["index"],
        interval=wilson(int(correct.sum()), len(correct)),
        negative_log_likelihood=float(columns["loss"].mean(dtype=np.float64)),
        calibration=calibration(columns["confidence"], correct, bins=bins),
        timing=timing,
    )


def _check(name: str, columns: Columns, classes: int) -> None:
    index, labels = columns["index"], columns["label"]
    if not len(index):
        raise DataError(f"{name}: there is no item to evaluate")
    bad = np.flatnonzero(~columns["finite"])
    if len(bad):
        raise DataError(
            f"{name}: the logits of {len(bad)} of {len(index)} items are not finite "
            f"(first: item {index[bad[0]]}); the parameters hold NaN or infinity, or "
            "overflow in their type"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise DataError(
            f"{name}: the labels of {len(outside)} items are outside 0 to "
            f"{classes - 1} (first: item {index[outside[0]]} has "
            f"{labels[outside[0]]})"
        )
    twice = index[1:][index[1:] == index[:-1]]
    if len(twice):
        raise DataError(
            f"{name}: {len(twice)} items came more than once (first: item {twice[0]}); "
            "processes must be given different shards"
        )
