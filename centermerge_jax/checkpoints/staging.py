"""A checkpoint in the making: built part by part, and continued after a kill.

It grows in a hidden folder beside its final name. A journal there says what is being
made of what, and, line by line, which parts are finished, with the digests of what was
written. Whoever continues checks those digests, so that neither a kill nor a power cut
can leave wrong bytes in the result.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import safetensors_writing
from centermerge_jax.checkpoints.checkpoint import Leaf
from centermerge_jax.checkpoints.safetensors_writing import Layout
from centermerge_jax.errors import CheckpointError, MergeError, changes, listing

try:
    import fcntl
except ImportError:  # where there are no such locks, nobody is kept out
    fcntl = None

_JOURNAL = "journal.jsonl"
_KEPT = "what is finished is kept: --resume continues"


class HopelessError(CheckpointError):
    """What is in the inputs is at fault: to continue would meet it again."""


Span = tuple[str, int, int]
"""A leaf's flat elements from one number to another."""


def stage_path(output: Path) -> Path:
    """The folder in which an output is made.

    Example:
      >>> print(stage_path(Path("models/merged")))
      models/.merged.unfinished
    """
    return output.with_name(f".{output.name}.unfinished")


@dataclass
class Stage:
    """What has been made so far.

    Attributes:
      folder: The hidden folder.
      layout: Where leaves go.
      finished: What was noted of each finished part, by its number.
    """

    folder: Path
    layout: Layout
    finished: dict[int, dict[str, Any]] = field(default_factory=dict)

    def write(
        self,
        part: int,
        leaves: Sequence[tuple[Span, Leaf]],
        notes: Mapping[str, Any],
    ) -> None:
        """Writes a part, and then its line in the journal.

        Args:
          part: Its number.
          leaves: Values of each span.
          notes: What to remember of the part, in JSON.
        """
        digests = []
        for (name, start, stop), leaf in leaves:
            safetensors_writing.write(self.layout.slots[name], leaf, start=start)
            digests.append([name, start, stop, sha256(np.asarray(leaf))])
        line = {"part": part, "written": digests, "notes": dict(notes)}
        _append(self.folder, line)
        self.finished[part] = line["notes"]


def sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    flat = np.asarray(array, order="C").reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


@contextlib.contextmanager
def staged(
    output: Path, layout: Layout, identity: Mapping[str, Any], *, resume: bool
) -> Iterator[Stage]:
    """Opens the stage of an output, new or to be continued.

    The folder is removed when the block is done, and when it fails before any part is
    finished or with a `HopelessError`; else it stays, to be continued.

    Args:
      output: The final name.
      layout: Of files in `stage_path(output)`.
      identity: What is made of what, in JSON: only the same merge is continued.
      resume: Continue where there is something to continue.

    Raises:
      CheckpointError: There is an unfinished merge and `resume` is not set, it is one
        of other inputs or settings, or another process is at work on it.
    """
    folder = stage_path(output)
    existed = folder.is_dir()
    folder.mkdir(exist_ok=True)
    with _locked(folder, output):
        if existed and not resume:
            raise CheckpointError(
                f"{output}: an unfinished merge lies in {folder}: continue it with "
                "--resume, or remove that folder"
            )
        if existed and any(folder.iterdir()) and not (folder / _JOURNAL).exists():
            raise CheckpointError(
                f"{folder} holds no unfinished merge, but it is in the way: remove it"
            )
        stage = Stage(folder, layout)
        lines = _journal(folder) if existed else []
        if lines:
            _check_same(output, folder, lines[0], identity)
            lines = [lines[0], *_verified(layout, lines[1:])]
            stage.finished.update({line["part"]: line["notes"] for line in lines[1:]})
        try:
            if stage.finished:
                _rewrite(folder, lines)
            else:
                _empty(folder)
                _append(folder, identity)
            # Headers are never trusted: a crash may have lost them, or a whole shard.
            safetensors_writing.create(layout)
            yield stage
        except BaseException as error:
            kept = bool(stage.finished) and not _hopeless(error)
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
            _explain(error, output, kept=kept)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _hopeless(error: BaseException) -> bool:
    """Whether to continue would meet an error again: it is not about files."""
    if isinstance(error, CheckpointError):
        return isinstance(error, HopelessError)
    return isinstance(error, MergeError)


def _explain(error: BaseException, output: Path, *, kept: bool) -> None:
    """Raises an error that says what became of the work, where there is one to say."""
    hint = f"; {_KEPT}" if kept else ""
    if isinstance(error, OSError):
        raise CheckpointError(
            f"cannot write {output}: {error.strerror}{hint}"
        ) from error
    if kept and isinstance(error, CheckpointError):
        raise CheckpointError(f"{error}{hint}") from error
    if kept and isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(_KEPT) from error


@contextlib.contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"{output}: another process is writing it (in {folder})"
                ) from None
        yield
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _append(folder: Path, line: Mapping[str, Any]) -> None:
    with (folder / _JOURNAL).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _rewrite(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    new = folder / "journal.new"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    new.write_text(text, encoding="utf-8")
    new.replace(folder / _JOURNAL)


def _journal(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the journal; a line that a kill cut short is left out."""
    try:
        content = (folder / _JOURNAL).read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in content.split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _check_same(
    output: Path, folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    problems = changes(before, now)
    if problems:
        raise CheckpointError(
            f"{output}: "
            + listing(
                "{n} difference{s} from the unfinished merge",
                problems,
                f"Run it as it was, or remove {folder} to begin anew.",
            )
        )


def _verified(
    layout: Layout, lines: Sequence[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """The lines of parts whose bytes are on the disk as the journal says."""
    for line in lines:
        with contextlib.suppress(OSError):
            if all(
                _written(layout, *span) == digest for *span, digest in line["written"]
            ):
                yield line


def _written(layout: Layout, name: str, start: int, stop: int) -> str:
    return sha256(safetensors_writing.read(layout.slots[name], start, stop))
