"""Statistics on disk: one safetensors file for each expert and kind.

Leaves are called as in the expert's checkpoint. What they are of, and digests of the
parameters they were made from, stand in the header, so that the statistics of another
checkpoint are refused and not merged with.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.checkpoints import (
    Checkpoint,
    HopelessError,
    LeafInfo,
    Piece,
    non_finite,
    open_checkpoint,
    refuse_existing,
    sha256,
)
from centermerge_jax.errors import CheckpointError, listing

Kind = Literal["gram", "merged_gram", "fisher"]
"""Gram matrices of inputs; such behind merged layers; diagonal Fisher information."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_KEY = "centermerge_statistics"
_VERSION = 1
_CODES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What statistics are of.

    Attributes:
      kind: Of the statistics.
      task: Name of the task whose examples were used.
      examples: How many of them.
      source: Which ones, for people to read.
      expert: Path of the expert's checkpoint when they were made.
      expert_sha256: Digest of each of its leaves, from `leaf_digests`.
      together: Where they depend on other experts too, digests of all by task, from
        `expert_digest`.
    """

    kind: Kind
    task: str
    examples: int
    source: str
    expert: str
    expert_sha256: Mapping[str, str] = field(repr=False)
    together: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Statistics:
    """Statistics of one expert, opened but not read.

    Attributes:
      checkpoint: Their file.
      origin: What they are of.
      sha256: Digest of each leaf of theirs.
      squares: The sum of squares of each leaf of theirs.
    """

    checkpoint: Checkpoint
    origin: Origin
    sha256: Mapping[str, str] = field(repr=False)
    squares: Mapping[str, float] = field(repr=False)

    @property
    def path(self) -> Path:
        """Where they lie."""
        return self.checkpoint.path

    @property
    def leaves(self) -> Mapping[str, LeafInfo]:
        """Shape and type of each leaf."""
        return self.checkpoint.leaves

    def read(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Reads leaves, and checks that they are what was written.

        Args:
          names: Which leaves; all by default.

        Raises:
          CheckpointError: There is no such leaf, or the file is damaged.
        """
        read = self.checkpoint.read_all(names)
        changed = [
            leaf
            for leaf, x in read.items()
            if sha256(np.asarray(x)) != self.sha256[leaf]
        ]
        if changed:
            header = f"{self.path}: {{n}} damaged leaf name{{s}}"
            raise HopelessError(listing(header, changed, "Make the file again."))
        return read

    def read_pieces(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """Reads pieces of leaves; whole ones are checked as by `read`."""
        pieces = list(pieces)
        whole = [p.leaf for p in pieces if p.shape == self.leaves[p.leaf].shape]
        parts = [p for p in pieces if p.leaf not in whole]
        return self.read(whole) | dict(self.checkpoint.read_pieces(parts))

    def norm(self, names: Iterable[str]) -> float:
        """The norm of some leaves together, without reading them."""
        return math.sqrt(math.fsum(self.squares[name] for name in names))

    def refuse_other(
        self, name: str, expert: Checkpoint, digests: Mapping[str, str]
    ) -> None:
        """Checks that they were made from these parameters.

        Args:
          name: What the expert is called.
          expert: Its checkpoint.
          digests: Of whole leaves of it.

        Raises:
          CheckpointError: They were made from others.
        """
        known = self.origin.expert_sha256
        unlike = [leaf for leaf, x in digests.items() if known.get(leaf, x) != x]
        if unlike:
            raise HopelessError(
                f"{self.path} was made from {self.origin.expert}, whose {unlike[0]} is "
                f"another than that of the expert {name}, {expert.path}; make the "
                "statistics of this expert: centermerge statistics"
            )


def leaf_digests(leaves: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """SHA-256 of leaves by name, as they lie in a checkpoint."""
    return {name: sha256(np.asarray(leaf)) for name, leaf in leaves}


def expert_digest(digests: Mapping[str, str]) -> str:
    """One digest of all leaves.

    Example:
      >>> expert_digest({"a": "12"}) == expert_digest({"b": "12"})
      False
    """
    text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()


def write_statistics(
    path: str | Path, values: Mapping[str, Any], *, origin: Origin
) -> None:
    """Writes statistics to a safetensors file under a name that is free.

    Args:
      path: Ends in `.safetensors`.
      values: Arrays by the leaf names of the expert's checkpoint.
      origin: What they are of.

    Raises:
      CheckpointError: The file exists or cannot be written, or a value is not finite.

    Example:
      >>> import tempfile
      >>> origin = Origin(
      ...     kind="gram", task="cars", examples=2, source="train", expert="cars",
      ...     expert_sha256=leaf_digests([("kernel", np.ones((2, 3), np.float32))]),
      ... )
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "cars.safetensors"
      ...     write_statistics(path, {"kernel": np.eye(2)}, origin=origin)
      ...     read_statistics(path).read()
      {'kernel': array([[1., 0.], [0., 1.]])}
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: the name of a file of statistics ends in .safetensors"
        )
    refuse_existing(path)
    arrays = {name: _storable(values[name]) for name in sorted(values)}
    if problems := non_finite(origin.task, arrays):
        raise CheckpointError(listing("{n} leaf name{s} not finite", problems))
    facts = {
        "version": _VERSION,
        **vars(origin),
        "sha256": leaf_digests(arrays.items()),
        "squares": {
            name: float(np.square(x, dtype=np.float64).sum())
            for name, x in arrays.items()
        },
    }
    write_whole(path, _pieces(arrays, facts))


def _storable(value: Any) -> np.ndarray:
    array = np.asarray(value, order="C")
    return array if array.dtype in _CODES else array.astype(np.float32)


def _pieces(
    arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file; the library would hold all of them twice."""
    text = json.dumps(facts, ensure_ascii=False, sort_keys=True, default=dict)
    header: dict[str, Any] = {"__metadata__": {_KEY: text}}
    end = 0
    for name, x in arrays.items():
        start, end = end, end + x.nbytes
        header[name] = {
            "dtype": _CODES[x.dtype],
            "shape": list(x.shape),
            "data_offsets": [start, end],
        }
    raw = json.dumps(header, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    yield len(raw).to_bytes(8, "little")
    yield raw
    for x in arrays.values():
        yield x.reshape(-1).view(np.uint8).data


def read_statistics(path: str | Path) -> Statistics:
    """Opens a file of statistics; its leaves are read later.

    Raises:
      CheckpointError: It is no such file, truncated, or of a newer version.
    """
    checkpoint = open_checkpoint(path)
    if _KEY not in checkpoint.metadata:
        raise CheckpointError(
            f"{path} is no file of statistics: those are written by centermerge "
            "statistics"
        )
    try:
        facts = json.loads(checkpoint.metadata[_KEY])
        version = facts.pop("version")
        if version == _VERSION:
            digests, squares = facts.pop("sha256"), facts.pop("squares")
            found = Statistics(checkpoint, Origin(**facts), digests, squares)
            fits = checkpoint.leaves.keys() == digests.keys() == squares.keys()
            if found.origin.kind in KINDS and fits:
                return found
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged header of statistics") from error
    if version != _VERSION:
        raise CheckpointError(
            f"{path}: has version {version} of the format, known here is {_VERSION}"
        )
    raise CheckpointError(f"{path}: damaged header of statistics")
