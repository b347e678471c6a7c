"""What a task's answers are worth: accuracy, F1, Matthews correlation, calibration.

Scores are functions of a *table of confusion*, which says how many items of each class
were answered with which: any number of tables at once, so that resampled ones are
scored together. All in float64 on the host.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from centermerge_jax.errors import ParameterError

Metric = Literal["accuracy", "f1", "matthews"]
"""How a task is scored; a key of `METRICS`."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered to every item of a task.

    Attributes:
      labels: The right class of each item.
      predictions: The class that the model gave, in the same order.
      classes: Number of classes.
      metric: How the task is scored.
    """

    labels: Int[np.ndarray, " n"]
    predictions: Int[np.ndarray, " n"]
    classes: int
    metric: Metric = "accuracy"

    @property
    def correct(self) -> Bool[np.ndarray, " n"]:
        """Which items were answered rightly."""
        return self.labels == self.predictions

    @property
    def score(self) -> float:
        """The task's metric: at most 1."""
        return float(METRICS[self.metric](self.confusion))

    @property
    def confusion(self) -> Int64[np.ndarray, "classes classes"]:
        """How many items of each class (rows) were answered with each (columns)."""
        return confusion(self.labels, self.predictions, classes=self.classes)


def confusion(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    *,
    classes: int,
) -> Int64[np.ndarray, "classes classes"]:
    """How many items of each class (rows) were answered with each (columns).

    Example:
      >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), classes=2).tolist()
      [[1, 0], [1, 1]]
    """
    cells = labels.astype(np.int64) * classes + predictions
    table = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return table.astype(np.int64)


def accuracy(
    table: Int64[np.ndarray, "*batch classes classes"],
) -> Float64[np.ndarray, "*batch"]:
    """The share of right answers in tables of confusion."""
    right = np.trace(table, axis1=-2, axis2=-1)
    return np.asarray(right / table.sum(axis=(-2, -1)))


def f1(
    table: Int64[np.ndarray, "*batch classes classes"],
) -> Float64[np.ndarray, "*batch"]:
    """Harmonic mean of precision and recall of class 1 of two; 0 without any of it.

    Example:
      >>> float(f1(np.array([[50, 10], [10, 30]])))
      0.75
    """
    if table.shape[-1] != 2:
        raise ParameterError(f"F1 is for two classes; got {table.shape[-1]}")
    both = table[..., 1, :].sum(axis=-1) + table[..., :, 1].sum(axis=-1)
    return np.asarray(2 * table[..., 1, 1] / np.maximum(both, 1))


def matthews(
    table: Int64[np.ndarray, "*batch classes classes"],
) -> Float64[np.ndarray, "*batch"]:
    """Correlation of labels and predictions; 0 where one of them is constant.

    References:
      Gorodkin, "Comparing two K-category assignments by a K-category correlation
      coefficient", 2004, equation 8; for two classes Matthews, 1975.

    Example:
      >>> float(matthews(np.array([[50, 0], [0, 50]])))
      1.0
    """
    given = table.sum(axis=-1).astype(np.float64)
    answered = table.sum(axis=-2).astype(np.float64)
    count = given.sum(axis=-1)
    right = np.trace(table, axis1=-2, axis2=-1)
    shared = right * count - (given * answered).sum(axis=-1)
    spread = (count**2 - (given**2).sum(-1)) * (count**2 - (answered**2).sum(-1))
    return np.asarray(shared / np.sqrt(np.where(spread > 0, spread, np.inf)))


METRICS: Mapping[Metric, Callable[[Any], Any]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
}
"""Functions of tables of confusion, whose last two axes are true and answered class."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether a model is right as often as it is sure, by how sure it is.

    Attributes:
      counts: Items in each bin of confidence.
      accuracy: Share of them that were right; 0 in an empty bin.
      confidence: Mean probability of the answered class; 0 in an empty bin.
      error: Expected calibration error: the mean distance of the two, by count.
    """

    counts: Int64[np.ndarray, " bins"]
    accuracy: Float64[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]
    error: float


def calibration(
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    *,
    bins: int = 15,
) -> Calibration:
    """Expected calibration error = sum_b n_b/n |accuracy_b - confidence_b|.

    Args:
      confidence: Probability of the answered class, in [0, 1].
      correct: Whether it was the right one.
      bins: Of equal width; the upper edge of each belongs to it. The published numbers
        are of 15.

    References:
      Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.

    Example:
      >>> sure, right = np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0], bool)
      >>> round(calibration(sure, right, bins=5).error, 3)
      0.1
    """
    if not len(confidence) or not (confidence.min() >= 0 and confidence.max() <= 1):
        raise ParameterError("confidences are at least one, each between 0 and 1")
    edges = np.linspace(0, 1, bins + 1)
    # The first bin has its lower edge too, where no answer with a class can be.
    place = np.clip(np.searchsorted(edges, confidence) - 1, 0, None)
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    per_item = 1 / np.maximum(counts, 1)
    right = np.bincount(place, weights=correct, minlength=bins) * per_item
    sure = np.bincount(place, weights=confidence, minlength=bins) * per_item
    error = float((counts * np.abs(right - sure)).sum() / len(confidence))
    return Calibration(counts, right, sure, error)
