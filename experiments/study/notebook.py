"""What a study has found so far: written after every step, never computed twice."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.errors import CheckpointError, changes, listing


class Notebook:
    """Results by name in a JSON file.

    Args:
      path: The file.
      about: What all results depend on, in JSON values.

    Raises:
      CheckpointError: The file is of other settings.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Opens it, new or to be continued."""
        self._path = path
        self._since = time.perf_counter()
        self._content = {"about": about, "found": {}, "seconds": 0.0}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if problems := changes(stored["about"], about):
                header = f"{path}: {{n}} difference{{s}} from what it was begun with"
                cure = f"Run it as it was, or remove {path} to begin anew."
                raise CheckpointError(listing(header, problems, cure))
            self._content = stored

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is known by a name; computed and written if nothing is."""
        found = self._content["found"]
        if name not in found:
            self.note(name, compute())
        return found[name]

    def known(self, name: str, default: Any = None) -> Any:
        """What is known by a name."""
        return self._content["found"].get(name, default)

    @property
    def seconds(self) -> float:
        """What all runs took from beginning to their last note."""
        return self._content["seconds"]

    def note(self, name: str, value: Any) -> None:
        """Writes something down."""
        self._content["found"][name] = plain(value)
        before, self._since = self._since, time.perf_counter()
        self._content["seconds"] += self._since - before
        write_whole(self._path, self.content())

    def content(self) -> bytes:
        """All of it, as it is in the file."""
        return json.dumps(self._content).encode()


def plain(value: Any) -> Any:
    """A value as a later run will read it: tuples are lists in JSON.

    Example:
      >>> plain({"a": (1, 2)})
      {'a': [1, 2]}
    """
    return json.loads(json.dumps(value))
