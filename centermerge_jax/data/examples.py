"""What a data set is to the pipeline: examples that can be asked for by number.

Reading one example without those before it is what shuffling and sharing out need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from centermerge_jax.errors import DataError, listing


class Example(NamedTuple):
    """What is classified, and as what.

    Attributes:
      input: An encoded image, its pixels, a text, or a pair of texts.
      label: Index into the classes.
    """

    input: Any
    label: int


@runtime_checkable
class Source(Protocol):
    """Examples by number; a list of them is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of the examples of a source.

    Example:
      >>> source = [Example("a", 0), Example("b", 1), Example("c", 0)]
      >>> [example.input for example in Subset(source, np.array([2, 0]))]
      ['c', 'a']
    """

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Example:
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Example]:
        """Several at once."""
        return read(self.source, self.indices[list(indices)].tolist())


def read(source: Source, indices: Sequence[int]) -> Sequence[Example]:
    """Several examples, at once where the source can do that.

    Example:
      >>> source = [Example("a", 0), Example("b", 1)]
      >>> [example.label for example in read(source, [1, 0, 1])]
      [1, 0, 1]
    """
    # The method's name is that which Grain and PyTorch look for too.
    together = getattr(source, "__getitems__", None)
    if together is not None and len(indices):
        return together(indices)
    return [source[i] for i in indices]


class FolderSource:
    """Images in one folder for each class, as `tfds.ImageFolder` has them.

    Args:
      root: Folder of a split, which holds `CLASS/*.jpg` and other formats.
      classes: Names of the folders in the order of the labels; those that are there,
        sorted, if not given.

    Raises:
      DataError: There is no such folder, a class has none, or a folder no class.
    """

    def __init__(self, root: Path, *, classes: Sequence[str] | None = None) -> None:
        """Lists the files, and opens none."""
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is no folder; it should hold one per class")
        found = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        self.classes = tuple(found if classes is None else classes)
        problems = [f"{n}: no such folder" for n in self.classes if n not in found]
        problems += [f"{n}: no such class" for n in found if n not in self.classes]
        if problems:
            raise DataError(listing(f"{{n}} difference{{s}} in {self.root}", problems))
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((self.root / name).iterdir())
            if path.suffix.lower() in _SUFFIXES
        ]
        filled = {label for _, label in self.files}
        if empty := [n for i, n in enumerate(self.classes) if i not in filled]:
            raise DataError(listing(f"{{n}} empty folder{{s}} in {self.root}", empty))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Example:
        path, label = self.files[index]
        return Example(path.read_bytes(), label)


_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
