"""Choosing rank and scale on validation data, factorising once for each origin."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from centermerge_jax.demo.settings import Settings
from centermerge_jax.methods.task_arithmetic import rest_scales
from centermerge_jax.progress import Report
from centermerge_jax.task_vectors import center, combine, combine_leaves, subtract
from centermerge_jax.transforms import truncate
from centermerge_jax.trees import Params

Flat = Mapping[str, Params]


@dataclass(frozen=True)
class Trial:
    """One method at one setting.

    Attributes:
      method: Its name in `METHODS`.
      rank: Share of rank, if it has one; 0 is the origin itself.
      scale: Scale, if it has one.
      accuracy: Mean over tasks on validation data.
    """

    method: str
    rank: float | None
    scale: float | None
    accuracy: float


def search(
    experts: Mapping[str, Flat],
    base: Flat,
    settings: Settings,
    evaluate: Callable[[Flat], float],
    *,
    progress: Report,
) -> list[Trial]:
    """Evaluates every method at every setting of the grid.

    Ranks are slices of one factorisation and scales cost nothing: what takes the time
    is the evaluation.
    """
    trials = []
    ranks = len(settings.ranks)
    total = 3 + (1 + ranks) * len(settings.uncentered_scales)
    total += ranks * len(settings.centered_scales)
    for method, rank, scale, params in _candidates(experts, base, settings):
        trials.append(Trial(method, rank, scale, evaluate(params)))
        progress(f"validating {method}", len(trials) / total)
    return trials


def _candidates(
    experts: Mapping[str, Flat], base: Flat, settings: Settings
) -> Iterator[tuple[str, float | None, float | None, Flat]]:
    centered = center(experts)
    yield "weight_average", None, None, combine(centered, scale=1.0)
    around_base = subtract(experts, base)
    for scale in settings.uncentered_scales:
        yield "task_arithmetic", None, scale, combine(around_base, scale=scale)
    factors = truncate(around_base, rank=1.0)
    without = rest_scales(factors, scale=0.0, rest="mean")
    yield "truncated_task_arithmetic", 0.0, 0.0, combine_leaves(factors, without)
    for rank in settings.ranks:
        kept = truncate(factors, rank=rank)
        for scale in settings.uncentered_scales:
            scales = rest_scales(kept, scale=scale, rest="mean")
            params = combine_leaves(kept, scales)
            yield "truncated_task_arithmetic", rank, scale, params
    yield "cart", 0.0, 0.0, combine(centered, scale=0.0)
    factors = truncate(centered, rank=1.0)
    for rank in settings.ranks:
        kept = truncate(factors, rank=rank)
        for scale in settings.centered_scales:
            yield "cart", rank, scale, combine(kept, scale=scale)


def best(trials: list[Trial], method: str) -> Trial:
    """The trial with the highest accuracy; of equal ones the first, the smallest.

    Rank 0 is the end of a curve, not a setting that could be chosen.
    """
    return _highest(t for t in trials if t.method == method and t.rank != 0)


def best_at_rank(trials: list[Trial], method: str, rank: float) -> Trial:
    """The same among the trials of one rank."""
    return _highest(t for t in trials if t.method == method and t.rank == rank)


def _highest(trials: Iterable[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.accuracy)
