"""The wire format of Flax's `.msgpack` files, without the data of their arrays.

They are MessagePack with three extensions: 1 is an array and 3 a NumPy scalar, both as
the packed triple (shape, name of the type, bytes), and 2 a complex number. An array
above 1 GiB is a map of flat pieces. One walk over the file notes where the bytes of
each array lie and reads none of them, which the `msgpack` library cannot do.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from centermerge_jax.checkpoints import number_types
from centermerge_jax.checkpoints.checkpoint import LeafInfo
from centermerge_jax.errors import CheckpointError

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 100
# What a first byte says: a constant, the format of a number, or the kind of a sized
# value and how many bytes its size takes.
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
_SIZED = {
    first + index: (kind, width)
    for kind, first, widths in (
        ("bytes", 0xC4, (1, 2, 4)),
        ("extension", 0xC7, (1, 2, 4)),
        ("text", 0xD9, (1, 2, 4)),
        ("list", 0xDC, (2, 4)),
        ("map", 0xDE, (2, 4)),
    )
    for index, width in enumerate(widths)
}


@dataclass(frozen=True)
class Stored:
    """An array in the file, and the places (offset, bytes) of its data."""

    info: LeafInfo
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Unknown:
    """A leaf that is neither an array nor a number nor text."""

    what: str


@dataclass(frozen=True)
class Walk:
    """Takes a file apart, passing over the data of its arrays.

    Attributes:
      file: What to call it in messages.
      stream: The file, opened.
      size: Its bytes.
    """

    file: Path
    stream: BinaryIO
    size: int

    def whole(self) -> Any:
        """The one value that the file is: nested dicts and lists, and their leaves.

        Raises:
          CheckpointError: The file is truncated, damaged, or of another format.
        """
        tree = self.value(0)
        if self.stream.tell() != self.size:
            raise self.damage("something follows the tree")
        return tree

    def damage(self, what: str) -> CheckpointError:
        """The error to raise when the file is not as it should be here."""
        return CheckpointError(
            f"{self.file}: truncated, damaged, or not written by flax.serialization: "
            f"{what} (byte {self.stream.tell()} of {self.size})"
        )

    def skip(self, count: int) -> tuple[int, int]:
        """Passes over so many bytes, and says where they lie."""
        offset = self.stream.tell()
        if count > self.size - offset:
            raise self.damage(f"{count} bytes should follow")
        self.stream.seek(offset + count)
        return offset, count

    def take(self, count: int) -> bytes:
        """The next so many bytes."""
        offset, _ = self.skip(count)
        self.stream.seek(offset)
        return self.stream.read(count)

    def head(self) -> tuple[str, Any]:
        """The kind of the next value with its size, or `value` and the value itself."""
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "value", first if first < 0x80 else first - 0x100
        if first < 0xA0:
            return ("map" if first < 0x90 else "list"), first & 0x0F
        if first < 0xC0:
            return "text", first & 0x1F
        if first in _CONSTANTS:
            return "value", _CONSTANTS[first]
        if first in _NUMBERS:
            number = ">" + _NUMBERS[first]
            return "value", struct.unpack(number, self.take(struct.calcsize(number)))[0]
        if first in _SIZED:
            kind, width = _SIZED[first]
            return kind, int.from_bytes(self.take(width), "big")
        if first == 0xC1:
            raise self.damage("0xc1 means nothing")
        return "extension", 1 << (first - 0xD4)

    def value(self, depth: int) -> Any:
        """The next value, with what stands for an array in its place."""
        if depth > _MAX_DEPTH:
            raise self.damage(f"nested more than {_MAX_DEPTH} deep")
        kind, size = self.head()
        if kind == "value":
            return size
        if kind == "text":
            return self.text(size)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(size)]
        if kind == "map":
            return self.map(size, depth)
        if kind == "extension":
            return self.extension(size)
        self.skip(size)
        return Unknown("raw bytes")

    def text(self, size: int) -> str:
        """Text of so many bytes."""
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise self.damage("text that is not UTF-8") from error

    def map(self, count: int, depth: int) -> Any:
        """A map, or the array whose pieces it holds."""
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise self.damage("a key that is neither text nor an integer")
            if str(key) in found:
                raise self.damage(f"the key {key!r} twice")
            found[str(key)] = self.value(depth + 1)
        return self.joined(found) if _CHUNKED in found else found

    def extension(self, size: int) -> Any:
        """An array, a complex number, or something else."""
        code = int.from_bytes(self.take(1), "big", signed=True)
        start = self.stream.tell()
        if code in (_ARRAY, _SCALAR):
            found = self.array()
        elif code == _COMPLEX:
            pair = self.value(_MAX_DEPTH - 1)
            if not (
                isinstance(pair, list)
                and len(pair) == 2
                and all(isinstance(part, int | float) for part in pair)
            ):
                raise self.damage("a complex number without two parts")
            found = complex(*pair)
        else:
            self.skip(size)
            found = Unknown(f"an extension of type {code}")
        if self.stream.tell() != start + size:
            raise self.damage("an extension of another length than it says")
        return found

    def array(self) -> Stored | Unknown:
        """The triple of shape, name of the type, and data."""
        if self.head() != ("list", 3):
            raise self.damage("an array without shape, type and data")
        shape = self.value(_MAX_DEPTH - 1)
        kind, size = self.head()
        name = self.text(size) if kind in ("text", "bytes") else "?"
        kind, size = self.head()
        if kind not in ("text", "bytes") or not _is_shape(shape):
            raise self.damage("an array without shape or data")
        place = self.skip(size)
        dtype = number_types.known(name)
        if dtype is None:
            return Unknown(f"type {name!r}")
        if prod(shape) * dtype.itemsize != size or not number_types.is_possible(
            shape, dtype
        ):
            raise self.damage(f"{size} bytes for {name}{shape}")
        return Stored(LeafInfo(tuple(shape), dtype), (place,))

    def joined(self, parts: Mapping[str, Any]) -> Stored | Unknown:
        """The array whose flat pieces a map holds."""
        shape, pieces = _in_order(parts.get("shape")), _in_order(parts.get("chunks"))
        first = pieces[0] if pieces else None
        if isinstance(first, Unknown):
            return first
        if (
            not isinstance(first, Stored)
            or not all(isinstance(piece, Stored) for piece in pieces)
            or any(piece.info.dtype != first.info.dtype for piece in pieces)
            or not _is_shape(shape)
            or not number_types.is_possible(shape, first.info.dtype)
            or prod(shape) != sum(prod(piece.info.shape) for piece in pieces)
        ):
            raise self.damage("an array in pieces that do not fit together")
        places = tuple(place for piece in pieces for place in piece.places)
        return Stored(LeafInfo(tuple(shape), first.info.dtype), places)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(
        type(axis) is int and axis >= 0 for axis in shape
    )


def _in_order(numbered: Any) -> list[Any]:
    """The values of `{"0": a, "1": b}`; nothing if it is not like this."""
    if not isinstance(numbered, dict):
        return []
    keys = [str(index) for index in range(len(numbered))]
    return [numbered[key] for key in keys] if set(keys) == set(numbered) else []
