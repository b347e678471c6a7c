"""Accuracies and their differences over test items and seeds, with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from centermerge_jax.evaluate import Z95

Run = Mapping[str, Shaped[np.ndarray, " items"]]
"""Of one seed, for each task, a number for each test item: whether it is right."""


def interval(runs: Sequence[Run]) -> tuple[float, float]:
    """The mean over items, tasks and seeds, and the half-width of its 95 % interval.

    The variance of the mean has two parts: that of the items, each with its mean over
    seeds, and that of the seeds' means. With two or three seeds the second is a rough
    estimate; with one it is missing.

    Args:
      runs: One for each seed, all of the same items.

    Example:
      >>> right = np.array([True] * 90 + [False] * 10)
      >>> [round(x, 3) for x in interval([{"a": right}, {"a": right}])]
      [0.9, 0.059]
      >>> [round(x, 3) for x in interval([{"a": right}, {"a": ~right}])]
      [0.5, 0.784]
    """
    tasks = list(runs[0])
    variance = 0.0
    for task in tasks:
        items = np.stack([run[task] for run in runs]).mean(axis=0, dtype=np.float64)
        variance += items.var(ddof=1) / len(items) / len(tasks) ** 2
    means = [float(np.mean([run[task].mean() for task in tasks])) for run in runs]
    if len(runs) > 1:
        variance += float(np.var(means, ddof=1)) / len(runs)
    return float(np.mean(means)), float(Z95 * np.sqrt(variance))


def difference(a: Sequence[Run], b: Sequence[Run]) -> tuple[float, float]:
    """How much more of the same items `a` has right than `b`, seed by seed.

    Example:
      >>> a, b = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool)
      >>> round(difference([{"a": a}], [{"a": b}])[0], 2)
      0.25
    """
    return interval(
        [
            {task: one[task].astype(float) - other[task] for task in one}
            for one, other in zip(a, b, strict=True)
        ]
    )
