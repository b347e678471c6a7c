"""Results over tasks: means with intervals, and a table."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from centermerge_jax.evaluate import bootstrap, mean_accuracy
from centermerge_jax.metrics import Answers
from centermerge_jax.task_results import TaskResult

Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""

_SHOWN = {"accuracy": "", "f1": " (F1)", "matthews": " (Matthews)"}


@dataclass(frozen=True)
class Summary:
    """Means over tasks.

    Attributes:
      score: Mean of the tasks' scores.
      interval: Of it, by the bootstrap.
      half_width: Of it, by the normal approximation; None unless every task is scored
        by its accuracy.
      normalised: Mean of the scores as shares of the experts' own; None without them.
      normalised_interval: Of it, by the bootstrap with paired items.
      seed: Of the bootstrap.
      replicates: Of the bootstrap.
    """

    score: float
    interval: Interval
    half_width: float | None
    normalised: float | None
    normalised_interval: Interval | None
    seed: int
    replicates: int


def summarise(
    results: Mapping[str, TaskResult],
    experts: Mapping[str, Answers] | None = None,
    *,
    seed: int = 0,
    replicates: int = 10_000,
) -> Summary:
    """Means over tasks of a model.

    Args:
      results: By task.
      experts: Each task's own expert on the same items, as from
        `evaluation_files.read_answers`.
      seed: Of the bootstrap.
      replicates: Of the bootstrap.

    Raises:
      ParameterError: The experts were evaluated on other tasks or items.
    """
    answers = {name: result.answers for name, result in results.items()}
    plain = all(one.metric == "accuracy" for one in answers.values())
    correct = {name: one.correct for name, one in answers.items()}
    normalised = shares = None
    if experts is not None:
        shares = bootstrap(
            answers, experts, statistic="normalised", replicates=replicates, seed=seed
        )
        ratios = [one.score / experts[name].score for name, one in answers.items()]
        normalised = float(np.mean(ratios))
    return Summary(
        score=float(np.mean([one.score for one in answers.values()])),
        interval=bootstrap(answers, replicates=replicates, seed=seed),
        half_width=mean_accuracy(correct)[1] if plain else None,
        normalised=normalised,
        normalised_interval=shares,
        seed=seed,
        replicates=replicates,
    )


def table(
    results: Mapping[str, TaskResult],
    summary: Summary,
    experts: Mapping[str, Answers] | None = None,
) -> Table:
    """The results for a terminal, in percent; tasks are rows."""
    shown = Table(box=None, padding=(0, 0, 0, 2))
    heads = ["task", "items", "score", "95 % interval"]
    heads += ["expert", "share"] if experts is not None else []
    for i, head in enumerate([*heads, "ECE", "NLL", "items/s"]):
        shown.add_column(head, justify="right" if i else "left", no_wrap=True)
    for name, result in results.items():
        answers = result.answers
        own = experts[name].score if experts is not None else None
        rate = result.timing.items_per_second
        shown.add_row(
            name + _SHOWN[answers.metric],
            str(len(answers.labels)),
            _percent(answers.score),
            _span(result.interval) if answers.metric == "accuracy" else "",
            *(() if own is None else (_percent(own), _percent(answers.score / own))),
            _percent(result.calibration.error),
            f"{result.negative_log_likelihood:.3f}",
            "" if rate is None else f"{rate:.1f}",
        )
    means = ["mean", "", _percent(summary.score), _span(summary.interval)]
    if summary.normalised is not None:
        means += ["", _percent(summary.normalised)]
    shown.add_section()
    shown.add_row(*means)
    return shown


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _span(interval: Interval) -> str:
    return " to ".join(_percent(end) for end in interval)
