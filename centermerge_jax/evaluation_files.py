"""Files of results: everything that was measured, and what it takes to repeat it.

They hold the answer to every item, so that a later evaluation of another model can be
compared item by item, and as a share, without running it again.
"""

import base64
import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from centermerge_jax import packages
from centermerge_jax.atomic_files import write_whole
from centermerge_jax.errors import CheckpointError, ParameterError, listing
from centermerge_jax.evaluation_report import Summary
from centermerge_jax.metrics import METRICS, Answers, Calibration
from centermerge_jax.task_results import TaskResult, Timing

_PACKAGES = ("centermerge_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers")


def document(
    results: Mapping[str, TaskResult],
    summary: Summary | None,
    *,
    settings: Mapping[str, Any],
    items: bool = True,
    date: str | None = None,
) -> dict[str, Any]:
    """Everything that was measured, and what is needed to measure it again, as JSON.

    Args:
      results: By task.
      summary: Their means; None before all tasks are finished.
      settings: What else the results depend on, in JSON values: the command, the
        preprocessing, digests of parameters, heads and data.
      items: Whether to keep the answers to the items, a few bytes for each.
      date: When the evaluation began; now by default.
    """
    return {
        "date": date or now(),
        "versions": versions(),
        "settings": dict(settings),
        "summary": None if summary is None else dataclasses.asdict(summary),
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


def _result(name: str, stored: Mapping[str, Any]) -> TaskResult:
    """What `_task` made this of; every number has all its bits in JSON."""
    answers, bins = _answers(stored), stored["calibration"]
    low, high = stored["accuracy_interval"]
    timing = {f.name: stored["timing"][f.name] for f in dataclasses.fields(Timing)}
    return TaskResult(
        name=name,
        answers=answers,
        index=np.arange(len(answers.labels), dtype=np.int32),
        interval=(low, high),
        negative_log_likelihood=stored["negative_log_likelihood"],
        calibration=Calibration(
            np.array(bins["counts"], np.int64),
            np.array(bins["accuracy"], np.float64),
            np.array(bins["confidence"], np.float64),
            bins["error"],
        ),
        timing=Timing(**timing),
    )


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


def now() -> str:
    """The date and time for a document."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Of the packages that results depend on."""
    return packages.versions(*_PACKAGES)


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
    with _reading(path):
        tasks = json.loads(Path(path).read_text(encoding="utf-8"))["tasks"]
        found = {
            name: _answers(task)
            for name, task in tasks.items()
            if task["answers"] is not None
        }
    if missing := tasks.keys() - found.keys():
        raise CheckpointError(
            f"{path} was written without the answers to {', '.join(sorted(missing))}"
        )
    return found


def read_results(path: str | Path) -> tuple[dict[str, Any], dict[str, TaskResult]]:
    """A document, and the results that it was made of.

    Raises:
      CheckpointError: It is no such file.
    """
    with _reading(path):
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return stored, {name: _result(name, x) for name, x in stored["tasks"].items()}


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Says of a file with something else in it that this is so."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise CheckpointError(f"{path} holds no results of an evaluation") from error


def _answers(task: Mapping[str, Any]) -> Answers:
    kept = task["answers"]
    return Answers(
        _unpacked(kept["labels"]),
        _unpacked(kept["predictions"]),
        task["classes"],
        _metric(task["metric"]),
    )


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
