"""What an opened checkpoint is: leaves by name, readable one at a time."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from centermerge_jax.errors import CheckpointError

_BLOCK = 2**18  # numbers that fit into a cache
_EXPONENTS = {
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
}
"""Bits that are all set where a number of 16 bits is infinite or no number."""

Format = Literal["safetensors", "hub", "orbax", "npz", "msgpack", "torch"]
"""How a checkpoint lies on disk; only the first three are written as well."""

Leaf = np.ndarray | int | float | bool | str
"""An array; or, from Orbax, a Python number or string that was saved as such."""

Allocate = Callable[[int], np.ndarray]
"""Gives memory for so many bytes, as `uint8[bytes]`."""

Fetch = Callable[[Sequence[str], Allocate], Iterator[tuple[str, Leaf]]]
"""Yields leaves by name. Formats whose bytes are read as they are put them into what
is allocated; the others ignore it."""

FetchRange = Callable[[str, int, int, Allocate], np.ndarray]
"""Reads the flat elements of a leaf from one number to another, `[elements]`."""


def fresh(size: int) -> np.ndarray:
    """New memory for so many bytes."""
    return np.empty(size, np.uint8)


@dataclass(frozen=True)
class LeafInfo:
    """Shape and type of a leaf, known without reading it.

    Attributes:
      shape: Its axes; `()` for numbers and strings.
      dtype: Its storage type; of kind `U` for a string.
      kind: `array`, or `scalar` and `string` for what Orbax saved as a Python object.

    Example:
      >>> print(LeafInfo((384, 1536), np.dtype("float32")))
      float32[384, 1536]
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    kind: Literal["array", "scalar", "string"] = "array"

    @property
    def nbytes(self) -> int:
        """Bytes of the uncompressed array."""
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        if self.kind == "string":
            return "str"
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Piece:
    """Consecutive numbers of a leaf.

    Attributes:
      leaf: Its name.
      start: First number, counted in C order.
      stop: One after the last.
      shape: Of the piece: the leaf's own if it is whole.
    """

    leaf: str
    start: int
    stop: int
    shape: tuple[int, ...]


def info_of(leaf: Any) -> LeafInfo:
    """Shape and type of a leaf in memory.

    Example:
      >>> print(info_of(np.zeros((2, 3), np.float16)), info_of("gelu"))
      float16[2, 3] str
    """
    if isinstance(leaf, str):
        return LeafInfo((), np.dtype(str), "string")
    return LeafInfo(np.shape(leaf), np.asarray(leaf).dtype)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened but not read.

    Attributes:
      path: The path that the user gave.
      name: A short label: the file's stem or the folder's name.
      format: `safetensors` (one file), `hub` (a folder of them), `orbax`, or `npz`,
        `msgpack` and `torch`, which may be the one weights file of a hub folder.
      leaves: Every leaf's name, in sorted order, with its shape and type.
      files: The files that hold weights, with their sizes in bytes.
      sidecars: Files a merged hub folder needs beside its weights: configuration,
        tokenizer.
      fetch_range: Reads a part of a leaf, where the format allows it.
      subtree: Keys that lead from the root of a nested tree to these leaves.
      structure: The nested containers of an Orbax or Flax tree with leaf names at the
        leaves; None where names are flat.
      metadata: The header's free text of a safetensors file.
      tied: Names that PyTorch files give to one tensor besides the name of its leaf:
        that of the leaf by the other one.
    """

    path: Path
    name: str
    format: Format
    leaves: Mapping[str, LeafInfo]
    files: Mapping[Path, int]
    fetch: Fetch = field(repr=False)
    fetch_range: FetchRange | None = field(default=None, repr=False)
    sidecars: tuple[Path, ...] = ()
    subtree: tuple[str, ...] = ()
    structure: Any = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(info.nbytes for info in self.leaves.values())

    def read(self, name: str) -> Leaf:
        """Reads one leaf, and nothing else, from disk."""
        return self.read_all([name])[name]

    def read_all(
        self,
        names: Iterable[str] | None = None,
        *,
        progress: Callable[[str, int], object] | None = None,
        allocate: Allocate = fresh,
    ) -> dict[str, Leaf]:
        """Reads leaves into memory.

        Args:
          names: Which leaves; all of them by default.
          progress: Called after every leaf with its name and bytes.
          allocate: Gives the memory for leaves whose bytes are read as they are.

        Returns:
          Leaf by name, in the order asked for.

        Raises:
          CheckpointError: A name is unknown, or a leaf cannot be read as promised.
        """
        wanted = list(self.leaves if names is None else names)
        for name in wanted:
            if name not in self.leaves:
                hint = did_you_mean(name, self.leaves)
                raise CheckpointError(f"{self.path}: no leaf {name!r}{hint}")
        found: dict[str, Leaf] = {}
        for name, leaf in self.fetch(wanted, allocate):
            self._check(name, leaf)
            found[name] = leaf
            if progress is not None:
                progress(name, self.leaves[name].nbytes)
        return {name: found[name] for name in wanted}

    def read_pieces(
        self, pieces: Sequence[Piece], *, allocate: Allocate = fresh
    ) -> Iterator[tuple[str, Leaf]]:
        """Reads leaves and pieces of leaves one after the other.

        Raises:
          CheckpointError: As `read_all`; or parts of leaves cannot be read from this
            format.
        """
        whole = [p.leaf for p in pieces if p.shape == self.leaves[p.leaf].shape]
        for name, leaf in self.fetch(whole, allocate):
            self._check(name, leaf)
            yield name, leaf
        for piece in pieces:
            if piece.shape == self.leaves[piece.leaf].shape:
                continue
            if self.fetch_range is None:
                raise CheckpointError(
                    f"{self.path}: {piece.leaf} can only be read as a whole"
                )
            flat = self.fetch_range(piece.leaf, piece.start, piece.stop, allocate)
            yield piece.leaf, flat.reshape(piece.shape)

    def _check(self, name: str, leaf: Any) -> None:
        # Orbax may cast on the way (a float32 leaf restored into a bfloat16 target
        # says nothing); a merge must never be made of silently rounded weights.
        info = self.leaves[name]
        if info.kind != "array":
            return
        came = info_of(leaf)
        if came != info:
            raise CheckpointError(
                f"{self.path}: {name} was read as {came}, but it is stored as {info}"
            )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean ...?` when some known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def shown(name: str) -> str:
    r"""A name from a file as it fits into a message of one line, whatever is in it.

    Example:
      >>> print(shown("head/bias"), shown(""), shown("two\nlines"))
      head/bias '' 'two\nlines'
    """
    return name if name and name.isprintable() else repr(name)


def non_finite(name: str, leaves: Mapping[str, Leaf]) -> list[str]:
    """Lists the leaves that hold NaN or infinity, with how many of each.

    Args:
      name: What to call the checkpoint in the message.
      leaves: Leaves by name; integers, booleans and strings are always finite.

    Returns:
      One line per bad leaf, ready for `errors.listing`; empty when all is well.

    Example:
      >>> non_finite("dtd", {"head/bias": np.array([1.0, np.nan, np.inf, np.nan])})
      ['dtd: non-finite values in head/bias (2 NaN, 1 inf)']
    """
    problems = []
    for leaf_name, leaf in leaves.items():
        if isinstance(leaf, str):
            continue
        array = np.asarray(leaf)
        if _all_finite(array):
            continue
        nan = int(np.isnan(array).sum())
        inf = int((~np.isfinite(array)).sum()) - nan
        problems.append(
            f"{name}: non-finite values in {leaf_name} ({nan} NaN, {inf} inf)"
        )
    return problems


def constant_buffers(models: Iterable[Mapping[str, Leaf]]) -> set[str]:
    """The leaves that are not finite because they are meant to be, as causal masks are.

    Args:
      models: The same leaves of several models.

    Returns:
      Names of those that hold -inf, neither NaN nor +inf, and the same in every model:
      nothing can be computed with them, and nothing has to be.

    Example:
      >>> model = {"mask": np.array([[0, -np.inf], [0, 0]]), "w": np.ones(2)}
      >>> constant_buffers([model, {**model, "w": np.zeros(2)}])
      {'mask'}
    """
    first, *others = models
    return {
        name
        for name, leaf in first.items()
        if not isinstance(leaf, str)
        and _holds_minus_infinity(np.asarray(leaf))
        and all(np.array_equal(leaf, other[name]) for other in others)
    }


def _holds_minus_infinity(array: np.ndarray) -> bool:
    return not _all_finite(array) and not (np.isnan(array) | np.isposinf(array)).any()


def _all_finite(array: np.ndarray) -> bool:
    """As `np.isfinite(array).all()`, in one pass over the memory."""
    if array.dtype.kind in "iub":
        return True
    flat = array.ravel(order="K")
    return all(
        _block_finite(flat[start : start + _BLOCK])
        for start in range(0, flat.size, _BLOCK)
    )


@np.errstate(over="ignore", invalid="ignore")
def _block_finite(block: np.ndarray) -> bool:
    if block.dtype in _EXPONENTS:
        exponent = _EXPONENTS[block.dtype]
        return not ((block.view(np.uint16) & exponent) == exponent).any()
    # What is not finite makes a sum so, and so can only numbers that are near overflow.
    return bool(np.isfinite(block.sum()) or np.isfinite(block).all())
