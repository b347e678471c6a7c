"""NumPy's `.npz` archives: headers first, then one array at a time.

`numpy.load` is not used: it reads objects by unpickling where it is told to, and an
array's shape only together with its values.
"""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from centermerge_jax.checkpoints import number_types
from centermerge_jax.checkpoints.checkpoint import (
    Allocate,
    Fetch,
    Leaf,
    LeafInfo,
    shown,
)
from centermerge_jax.errors import CheckpointError, listing

_SUFFIX = ".npy"
# How many times smaller each way of storing can make data; more is a lie.
_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_STEP = 1 << 20  # bytes; the zip reader copies what it is asked for once more
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Member:
    """An array in an archive.

    Attributes:
      info: Its shape, and its type in this machine's byte order.
      stored: Its type in the file's byte order.
      by_column: Whether the first index runs fastest.
      start: Where its data begin after its header.
    """

    info: LeafInfo
    stored: np.dtype
    by_column: bool
    start: int


def read_headers(file: Path) -> dict[str, Member]:
    """Reads the headers of all arrays, and none of their data.

    Returns:
      The arrays by name, sorted.

    Raises:
      CheckpointError: The archive is truncated or damaged, or holds something else than
        arrays of numbers; everything of the second kind is listed.
    """
    members: dict[str, Member] = {}
    problems = []
    with _damage_reported(file), zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(_SUFFIX)
            if name in members:
                raise CheckpointError(f"{file}: holds {name!r} twice")
            if name == entry.filename:
                problems.append(f"{shown(name)}: is not an array ({_SUFFIX})")
                continue
            with _damage_reported(file, name), archive.open(entry) as stream:
                shape, by_column, dtype = _read_header(stream)
                start = stream.tell()
                if problem := _unusable(dtype):
                    problems.append(f"{shown(name)}: {problem}")
                    continue
                size = prod(shape) * dtype.itemsize
                if (
                    not number_types.is_possible(shape, dtype)
                    or start + size != entry.file_size
                    or entry.file_size > _most(entry, file)
                ):
                    raise ValueError(f"{dtype}{list(shape)} does not fit its size")
            info = LeafInfo(shape, dtype.newbyteorder("="))
            members[name] = Member(info, dtype, by_column, start)
    if problems:
        raise CheckpointError(
            f"{file}: "
            + listing(
                "{n} member{s} without numbers",
                problems,
                "Save the weights as safetensors.",
            )
        )
    return dict(sorted(members.items()))


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the array format")
    return _HEADERS[version](stream)


def _unusable(dtype: np.dtype) -> str | None:
    if dtype.hasobject:
        return "holds Python objects, and reading them would run any code in them"
    if dtype.kind == "V" and dtype.names is None:
        return (
            f"has no type (V{dtype.itemsize}): NumPy forgets the name of types that "
            "are not its own, such as bfloat16"
        )
    if number_types.known(dtype.name) is None:
        return f"has type {dtype}"
    return None


def _most(entry: zipfile.ZipInfo, file: Path) -> int:
    """How large an entry can be at most, so that a false size is never allocated."""
    if entry.compress_type not in _RATIO:
        raise ValueError(f"compression {entry.compress_type}")
    return min(entry.compress_size, file.stat().st_size) * _RATIO[entry.compress_type]


def reader(file: Path, members: Mapping[str, Member]) -> Fetch:
    """Returns the function that yields arrays by name."""

    def fetch(names: Sequence[str], allocate: Allocate) -> Iterator[tuple[str, Leaf]]:
        with _damage_reported(file):
            archive = zipfile.ZipFile(file)
        with archive:
            for name in names:
                with _damage_reported(file, name):
                    leaf = _read(archive, name, members[name], allocate)
                yield name, leaf

    return fetch


def _read(
    archive: zipfile.ZipFile, name: str, member: Member, allocate: Allocate
) -> np.ndarray:
    size = member.info.nbytes
    raw = allocate(size)[:size]
    filled = 0
    with archive.open(name + _SUFFIX) as stream:
        stream.read(member.start)
        while filled < size:  # with the last bytes the reader checks their CRC
            step = raw[filled : filled + _STEP]
            count = stream.readinto(step)  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                break
            filled += count
    if filled < size:
        raise ValueError(f"it ends after {filled} of {size} bytes")
    array = raw.view(member.stored)
    if not member.stored.isnative:
        array = array.byteswap(inplace=True).view(member.info.dtype)
    shape = member.info.shape
    return array.reshape(shape[::-1]).T if member.by_column else array.reshape(shape)


@contextlib.contextmanager
def _damage_reported(file: Path, name: str | None = None) -> Iterator[None]:
    where = str(file) if name is None else f"{file}: {shown(name)}"
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(
            f"{where}: cannot be read: {error.strerror or error}"
        ) from error
    except Exception as error:  # the zip reader has a dozen, for damage of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{where}: truncated or damaged: {reason}") from error
