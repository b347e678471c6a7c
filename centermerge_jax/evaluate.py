"""Accuracy with its uncertainty: per task, mean over tasks, normalised to the experts.

Everything is computed from the answer to every test item, so that two models can be
compared on the same items: the interval of a difference is far narrower than two
intervals side by side suggest. `Outcomes` say which items were right, which is enough
for accuracy; `Answers` say which class was answered, for other metrics.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from centermerge_jax.errors import ParameterError
from centermerge_jax.metrics import METRICS, Answers

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

Outcomes = Mapping[str, Bool[np.ndarray, "_"]]
"""For each task, which of its items were classified rightly."""


def classified_rightly(
    predict: Callable[[Any], Any],
    inputs: Float[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"],
    *,
    batch: int = 250,
) -> Bool[np.ndarray, " n"]:
    """Which items a model classifies rightly.

    Args:
      predict: `inputs [batch, ...] -> logits [batch, classes]`. It sees one batch size
        only, so that it compiles once: the last batch is padded.
      inputs: What the model takes.
      labels: Index of the right class.
      batch: Items at a time.

    Example:
      >>> classified_rightly(lambda x: x, np.eye(3), np.array([0, 1, 0]), batch=2)
      array([ True,  True, False])
    """
    right = []
    for start in range(0, len(labels), batch):
        part = inputs[start : start + batch]
        padding = [(0, batch - len(part))] + [(0, 0)] * (part.ndim - 1)
        logits = np.asarray(predict(np.pad(part, padding)))[: len(part)]
        right.append(logits.argmax(axis=-1) == labels[start : start + batch])
    return np.concatenate(right)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `correct` among `count` items.

    Args:
      correct: 0 to `count`.
      count: At least 1.

    Returns:
      Lower and upper end, in [0, 1].

    References:
      Wilson, "Probable inference, the law of succession, and statistical inference",
      1927.

    Example:
      >>> [round(end, 3) for end in wilson(90, 100)]
      [0.826, 0.945]
    """
    if not 0 <= correct <= count or count < 1:
        raise ParameterError(f"{correct} of {count} items is no share")
    share, z2 = correct / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = Z95 * spread / (1 + z2 / count)
    # At 0 and 1 the ends are exact but for rounding.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mean_accuracy(outcomes: Outcomes) -> tuple[float, float]:
    """The mean over tasks of the accuracy, and the half-width of its 95 % interval.

    The tasks are given; the interval is over their test items. Each task's error is
    counted with at least half an item on either side, so that 100 % has one too.

    Example:
      >>> right = np.array([True] * 90 + [False] * 10)
      >>> [round(x, 3) for x in mean_accuracy({"a": right, "b": right})]
      [0.9, 0.042]
    """
    shares = {name: right.mean() for name, right in outcomes.items()}
    variance = 0.0
    for name, right in outcomes.items():
        count = len(right)
        share = min(max(shares[name], 0.5 / count), 1 - 0.5 / count)
        variance += share * (1 - share) / count
    tasks = len(outcomes)
    return float(np.mean(list(shares.values()))), Z95 * math.sqrt(variance) / tasks


def mean_difference(a: Outcomes, b: Outcomes) -> tuple[float, float]:
    """How much more of the same items `a` has right than `b`, and its 95 % half-width.

    Args:
      a: Outcomes of one model.
      b: Outcomes of another on the same items in the same order.

    Returns:
      Mean over tasks of the difference in accuracy, and the half-width of its interval
      from the paired items.

    Example:
      >>> a, b = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool)
      >>> round(mean_difference({"a": a}, {"a": b})[0], 2)
      0.25
    """
    means, variance = [], 0.0
    for name, right in a.items():
        change = right.astype(float) - b[name]
        means.append(change.mean())
        variance += change.var() / len(change)
    return float(np.mean(means)), Z95 * math.sqrt(variance) / len(means)


def normalised(outcomes: Outcomes, experts: Outcomes) -> float:
    """The mean over tasks of the accuracy as a share of the expert's own.

    It is the mean of the ratios, as the literature has it, not the ratio of the means.

    Example:
      >>> half, whole = np.array([True, False]), np.array([True, True])
      >>> normalised({"a": half, "b": whole}, {"a": whole, "b": whole})
      0.75
    """
    if helpless := [name for name in outcomes if not experts[name].any()]:
        raise ParameterError(
            f"{', '.join(helpless)}: the expert has no item right, so nothing is a "
            "share of it"
        )
    ratios = [right.mean() / experts[name].mean() for name, right in outcomes.items()]
    return float(np.mean(ratios))


def bootstrap(
    answers: Mapping[str, Answers],
    others: Mapping[str, Answers] | None = None,
    *,
    statistic: Literal["mean", "difference", "normalised"] = "mean",
    replicates: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a mean over tasks, from resampled test items.

    Each replicate draws as many items of each task as it has, with replacement, and
    scores both models on the same draw. The interval lies between the 2.5 % and 97.5 %
    points of the replicates.

    Args:
      answers: Of one model, by task.
      others: Of another model to the same items in the same order.
      statistic: `mean`: of the scores of the first; `difference`: of first minus
        second; `normalised`: of first as a share of second.
      replicates: How many draws.
      seed: Of the draws.

    Returns:
      Lower and upper end.

    Raises:
      ParameterError: The second model is missing or answered other items, or scores
        nothing where it is divided by.

    Note:
      A model that is always right, or never, has an interval without width: use
      `mean_accuracy` or `wilson`.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    if others is None and statistic != "mean":
        raise ParameterError(f"{statistic} compares two models; only one was given")
    rng = np.random.default_rng(seed)
    values = []
    for name, one in answers.items():
        other = one if others is None else _same_items(name, one, others)
        a, b = _resampled(one, other, replicates, rng)
        if statistic == "normalised":
            if other.score <= 0:
                raise ParameterError(f"{name}: shares of a score of {other.score:g}")
            a = np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
        values.append(a - b if statistic == "difference" else a)
    low, high = np.nanquantile(np.mean(values, axis=0), [0.025, 0.975])
    return float(low), float(high)


def _same_items(name: str, one: Answers, others: Mapping[str, Answers]) -> Answers:
    other = others.get(name)
    if other is None:
        raise ParameterError(f"{name}: only one of the two models was evaluated on it")
    if other.metric != one.metric or not np.array_equal(other.labels, one.labels):
        raise ParameterError(f"{name}: the two models were not given the same items")
    return other


def _resampled(
    one: Answers, other: Answers, replicates: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, " replicates"], Float64[np.ndarray, " replicates"]]:
    """Scores of both models on the same drawn items.

    Items with the same label and the same two answers are alike, so how many of each
    kind are drawn is multinomial: no item is drawn one by one.
    """
    if one.metric == "accuracy":  # right or wrong is all that counts
        labels, classes = np.ones(len(one.labels), np.int64), 2
        first, second = one.correct.astype(np.int64), other.correct.astype(np.int64)
    else:
        labels, classes = one.labels.astype(np.int64), one.classes
        first, second = one.predictions, other.predictions
    kinds = (labels * classes + first) * classes + second
    shares = np.bincount(kinds, minlength=classes**3) / len(kinds)
    drawn = rng.multinomial(len(kinds), shares, size=replicates)
    tables = drawn.reshape(replicates, classes, classes, classes)
    score = METRICS[one.metric]
    return score(tables.sum(axis=3)), score(tables.sum(axis=2))
