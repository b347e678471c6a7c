"""Results over tasks: means with intervals, a table, and a file to repeat them from.

The file holds the answer to every item, so that a later evaluation of another model can
be compared with it item by item, and as a share of it, without running it again.
"""

import base64
import dataclasses
import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64
from rich.table import Table

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.errors import CheckpointError, ParameterError, listing
from centermerge_jax.evaluate import bootstrap, mean_accuracy
from centermerge_jax.metrics import METRICS, Answers
from centermerge_jax.task_results import TaskResult

Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""

_PACKAGES = ("centermerge_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers")
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
      experts: Each task's own expert on the same items, as from `read_answers`.
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


def document(
    results: Mapping[str, TaskResult],
    summary: Summary,
    *,
    settings: Mapping[str, Any],
    items: bool = True,
) -> dict[str, Any]:
    """Everything that was measured, and what is needed to measure it again, as JSON.

    Args:
      results: By task.
      summary: Their means.
      settings: What else the results depend on, in JSON values: the command, the
        preprocessing, digests of parameters, heads and data.
      items: Whether to keep the answers to the items, a few bytes for each.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "settings": dict(settings),
        "summary": dataclasses.asdict(summary),
        "tasks": {name: _task(result, items) for name, result in results.items()},
    }


def _task(result: TaskResult, items: bool) -> dict[str, Any]:
    answers, bins = result.answers, result.calibration
    kept = {"labels": answers.labels, "predictions": answers.predictions}
    return {
        "metric": answers.metric,
        "score": answers.score,
        "accuracy": result.accuracy,
        "accuracy_interval": result.interval,
        "classes": answers.classes,
        "items": len(answers.labels),
        "negative_log_likelihood": result.negative_log_likelihood,
        "calibration": {
            "error": bins.error,
            "counts": bins.counts.tolist(),
            "accuracy": bins.accuracy.tolist(),
            "confidence": bins.confidence.tolist(),
        },
        "confusion": _rows(answers.confusion),
        "timing": {
            **dataclasses.asdict(result.timing),
            "items_per_second": result.timing.items_per_second,
        },
        "answers": {k: _packed(x) for k, x in kept.items()} if items else None,
    }


def _rows(table: Int64[np.ndarray, "classes classes"]) -> list[str]:
    """One text for each true class: the classes that were answered, and how often.

    Example:
      >>> _rows(np.array([[9, 0, 1], [0, 5, 0], [0, 0, 0]]))
      ['0:9 2:1', '1:5', '']
    """
    return [
        " ".join(f"{answer}:{row[answer]}" for answer in np.flatnonzero(row))
        for row in table
    ]


def _versions() -> dict[str, str | None]:
    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    found = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **found}


def write_results(found: Mapping[str, Any], path: str | Path) -> None:
    """Writes a document: whoever looks sees the former file or the whole new one.

    Raises:
      CheckpointError: The folder is missing or cannot be written to.
    """
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(Path(path), text.encode())


def read_answers(path: str | Path) -> dict[str, Answers]:
    """The answers that an earlier evaluation kept, by task.

    Raises:
      CheckpointError: It is no such file, or one without the answers.
    """
    try:
        tasks = json.loads(Path(path).read_text(encoding="utf-8"))["tasks"]
        kept = {name: task["answers"] for name, task in tasks.items()}
        found = {
            name: Answers(
                _unpacked(kept[name]["labels"]),
                _unpacked(kept[name]["predictions"]),
                task["classes"],
                _metric(task["metric"]),
            )
            for name, task in tasks.items()
            if kept[name] is not None
        }
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise CheckpointError(f"{path} holds no results of an evaluation") from error
    if missing := tasks.keys() - found.keys():
        raise CheckpointError(
            f"{path} was written without the answers to {', '.join(sorted(missing))}"
        )
    return found


def experts_of(
    tasks: Sequence[str], paths: Sequence[str | Path]
) -> dict[str, Answers] | None:
    """Answers of each task's expert, from files of several evaluations.

    Returns:
      None if no file is given.

    Raises:
      CheckpointError: A file holds no results.
      ParameterError: A task has none, or two, or its expert has nothing right: a share
        of that is no number.
    """
    if not paths:
        return None
    found: dict[str, list[Answers]] = {task: [] for task in tasks}
    for path in paths:
        for task, answers in read_answers(path).items():
            if task in found:
                found[task].append(answers)
    problems = [
        f"{task}: {len(own)} results of an expert, expected one"
        for task, own in found.items()
        if len(own) != 1
    ]
    problems += [
        f"{task}: the expert has nothing right"
        for task, own in found.items()
        if len(own) == 1 and own[0].score == 0
    ]
    if problems:
        raise ParameterError(listing("{n} problem{s} with the experts", problems))
    return {task: own[0] for task, own in found.items()}


def _metric(name: str) -> Any:
    if name not in METRICS:
        raise ValueError(name)
    return name


def _packed(values: np.ndarray) -> str:
    raw = np.ascontiguousarray(values, "<i4").tobytes()
    return base64.b64encode(zlib.compress(raw, level=9)).decode("ascii")


def _unpacked(text: str) -> Int32[np.ndarray, " n"]:
    raw = zlib.decompress(base64.b64decode(text, validate=True))
    return np.frombuffer(raw, "<i4").astype(np.int32)
