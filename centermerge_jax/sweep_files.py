"""Files of searches: every point as soon as it is known, and what they depend on."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.errors import CheckpointError, MergeError, changes, listing
from centermerge_jax.evaluation_files import now, versions
from centermerge_jax.sweeping import Point, best

NAME = "sweep.json"
"""The file in the folder of a search."""


@dataclass
class SweepFile:
    """The file of a search, which holds every point as soon as it is known.

    Attributes:
      path: The file; None keeps nothing.
      about: What the points depend on, in JSON values: method, inputs, data.
      points: Of this search or of an earlier one of the same.
      date: When the first search began.
    """

    path: Path | None
    about: Mapping[str, Any]
    points: list[Point] = field(default_factory=list)
    date: str = field(default_factory=now)

    def keep(self, point: Point) -> None:
        """Adds a point and writes the file anew."""
        self.points.append(point)
        self._write({})

    def finish(self, **found: Any) -> dict[str, Any]:
        """Writes the file for the last time, with what was chosen and tested."""
        return self._write(found)

    def _write(self, found: Mapping[str, Any]) -> dict[str, Any]:
        chosen = best(self.points)
        content = {
            "kind": "sweep",
            "date": self.date,
            "versions": versions(),
            **self.about,
            "points": [_stored(point) for point in self.points],
            "chosen": {"setting": chosen.setting, "validation": chosen.mean},
            "test": None,
            "seconds": {
                "merge": sum(point.merge_seconds for point in self.points),
                "evaluate": sum(point.evaluate_seconds for point in self.points),
            },
            **found,
        }
        if self.path is not None:
            write_whole(self.path, (json.dumps(content, indent=1) + "\n").encode())
        return content


@contextlib.contextmanager
def sweep_file(
    folder: str | Path | None, about: Mapping[str, Any], *, resume: bool
) -> Iterator[SweepFile]:
    """Opens the file of a search, new or to be continued.

    An interruption or error inside of the block says that what is finished is kept.

    Args:
      folder: Where it lies, or will; None keeps nothing.
      about: What the points depend on, in JSON values. Only a search that depends on
        the same is continued; its `command`, and `grid`, `search` and `patience`, which
        say which points there are, may differ.
      resume: Take over the points of an earlier search.

    Raises:
      CheckpointError: There is a search in the folder and it is not to be continued, or
        is of something else; or there is something else in the way.
    """
    if folder is None:
        yield SweepFile(None, about)
        return
    path = Path(folder) / NAME
    file = SweepFile(path, about)
    if path.exists():
        if not resume:
            raise CheckpointError(
                f"{path} exists: continue it with --resume, or choose another folder"
            )
        file = _continued(path, about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}") from error
    try:
        yield file
    except (KeyboardInterrupt, MergeError) as error:
        if not file.points:
            raise
        kept = "what is finished is kept: --resume continues"
        if isinstance(error, MergeError):
            raise type(error)(f"{error}\n{kept}") from error
        raise KeyboardInterrupt(kept) from error


_FREE = ("command", "grid", "search", "patience")


def _continued(path: Path, about: Mapping[str, Any]) -> SweepFile:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        points = [_point(item) for item in stored["points"]]
        before = {key: stored[key] for key in about if key not in _FREE}
        date = stored["date"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no search: {error!r}") from error
    before["versions"] = stored.get("versions")
    current = {key: about[key] for key in about if key not in _FREE}
    current["versions"] = versions()
    # As JSON has it: tuples are lists there.
    if problems := changes(before, json.loads(json.dumps(current))):
        header = f"{path}: {{n}} difference{{s}} from the search that it holds"
        cure = f"Search as before, or remove {path} to begin anew."
        raise CheckpointError(listing(header, problems, cure))
    return SweepFile(path, about, points, date)


def _stored(point: Point) -> dict[str, Any]:
    return {
        "setting": dict(point.setting),
        "validation": point.mean,
        "per_task": dict(point.scores),
        "seconds": point.merge_seconds + point.evaluate_seconds,
        "merge_seconds": point.merge_seconds,
    }


def _point(item: Mapping[str, Any]) -> Point:
    return Point(
        item["setting"],
        item["per_task"],
        item["merge_seconds"],
        item["seconds"] - item["merge_seconds"],
    )
