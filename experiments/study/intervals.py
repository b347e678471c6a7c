"""Accuracies and their differences over test items and seeds, with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped
from scipy import stats

from centermerge_jax.evaluate import Z95

Run = Mapping[str, Shaped[np.ndarray, " items"]]
"""Of one seed, for each task, a number for each test item: whether it is right."""


def interval(runs: Sequence[Run]) -> tuple[float, float]:
    """The mean over items, tasks and seeds, and the half-width of its 95 % interval.

    The variance of the mean has two parts: that of the items, each with its mean over
    seeds, and that of the seeds' means, which few seeds tell badly. So the quantile is
    Student's, with the degrees of freedom of Satterthwaite (1946): it covers 95 % where
    seeds differ by a few points, and with two seeds 88 % where they differ by ten. What
    of the seeds' spread is that of the same items counts twice, which errs on the safe
    side. With one seed the second part is missing.

    Args:
      runs: One for each seed. Those that have a task have the same items of it.

    Example:
      >>> right = np.array([True] * 90 + [False] * 10)
      >>> [round(x, 3) for x in interval([{"a": right}, {"a": right}])]
      [0.9, 0.059]
      >>> [round(x, 3) for x in interval([{"a": right}, {"a": ~right}])]
      [0.5, 5.082]
    """
    of_items = 0.0
    for task in {task: None for run in runs for task in run}:
        shares = [run[task] / len(run) for run in runs if task in run]
        items = np.stack(shares).sum(axis=0, dtype=np.float64) / len(runs)
        of_items += float(items.var(ddof=1)) / len(items)
    means = [float(np.mean([x.mean() for x in run.values()])) for run in runs]
    quantile, of_seeds = Z95, 0.0
    if len(runs) > 1:
        of_seeds = float(np.var(means, ddof=1)) / len(runs)
    if of_seeds:
        freedom = (len(runs) - 1) * ((of_items + of_seeds) / of_seeds) ** 2
        quantile = stats.t.ppf(0.975, freedom)
    return float(np.mean(means)), float(quantile * np.sqrt(of_items + of_seeds))


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
