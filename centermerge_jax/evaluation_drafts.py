"""Evaluations whose file has each task as soon as it is finished.

The file is written anew after every task, whole every time: so an interrupted
evaluation leaves what it has finished, as results that can be read and continued.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from centermerge_jax.checkpoints import refuse_existing
from centermerge_jax.errors import CheckpointError, MergeError, changes, listing
from centermerge_jax.evaluation_files import (
    document,
    now,
    read_results,
    versions,
    write_results,
)
from centermerge_jax.evaluation_report import Summary
from centermerge_jax.task_results import TaskResult

_KEPT = "what is finished is kept: --resume continues"
_UNFINISHED = "unfinished"
"""Key of the tasks to come."""


@dataclass
class Draft:
    """An evaluation whose file has every task as soon as it is finished.

    Attributes:
      path: The file; None keeps nothing.
      tasks: Names of all tasks, in order.
      settings: What the results depend on, for `document`.
      results: Of the tasks that are finished, now or in an earlier run.
      date: When the first run began.
    """

    path: Path | None
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]
    results: dict[str, TaskResult] = field(default_factory=dict)
    date: str = field(default_factory=now)

    def keep(self, results: Mapping[str, TaskResult]) -> None:
        """Adds the results of tasks, and writes the file anew."""
        known = self.results | dict(results)
        self.results = {name: known[name] for name in self.tasks if name in known}
        coming = [name for name in self.tasks if name not in known]
        self._write(self._document(None) | {_UNFINISHED: coming})

    def finish(self, summary: Summary) -> dict[str, Any]:
        """Writes the file for the last time; returns what is in it."""
        found = self._document(summary)
        self._write(found)
        return found

    def _document(self, summary: Summary | None) -> dict[str, Any]:
        return document(self.results, summary, settings=self.settings, date=self.date)

    def _write(self, found: Mapping[str, Any]) -> None:
        if self.path is not None:
            write_results(found, self.path)


def check_output(path: str | Path, *, resume: bool) -> None:
    """Refuses a file that exists, unless it is of an evaluation to be continued.

    Call it before any work.

    Raises:
      CheckpointError: It is in the way, or the folder around it is.
    """
    if not _is_unfinished(path):
        refuse_existing(path)
    elif not resume:
        raise CheckpointError(
            f"{path} is of an unfinished evaluation: continue it with --resume, or "
            "remove it"
        )


@contextlib.contextmanager
def drafted(
    path: str | Path | None, tasks: Sequence[str], settings: Mapping[str, Any]
) -> Iterator[Draft]:
    """Opens the draft of an evaluation, new or to be continued.

    An interruption or error inside of the block says that what is finished is kept.

    Args:
      path: The file, which `check_output` has let pass; None keeps nothing.
      tasks: Names of all tasks, in order.
      settings: What the results depend on, in JSON values. Only the same evaluation is
        continued; its `command` may be another, and the first one stays.

    Raises:
      CheckpointError: The file is of another evaluation.
    """
    path = None if path is None else Path(path)
    draft = Draft(path, tuple(tasks), settings)
    if path is not None and _is_unfinished(path):
        stored, results = read_results(path)
        before = _identity([*results, *stored[_UNFINISHED]], stored)
        current = {"settings": settings, "versions": versions()}
        if problems := changes(before, _identity(tasks, current)):
            header = f"{path}: {{n}} difference{{s}} from the unfinished evaluation"
            cure = f"Run it as it was, or remove {path} to begin anew."
            raise CheckpointError(listing(header, problems, cure))
        draft = Draft(path, tuple(tasks), stored["settings"], results, stored["date"])
    try:
        yield draft
    except (KeyboardInterrupt, MergeError) as error:
        if path is None or not draft.results:
            raise
        if isinstance(error, MergeError):
            raise type(error)(f"{error}\n{_KEPT}") from error
        raise KeyboardInterrupt(_KEPT) from error


def _is_unfinished(path: str | Path) -> bool:
    try:
        return _UNFINISHED in json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _identity(tasks: Sequence[str], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for results to be of one evaluation."""
    told = {key: x for key, x in stored["settings"].items() if key != "command"}
    return {**told, "tasks": sorted(tasks), "versions": stored["versions"]}
