"""Safetensors: one file, or shards with an index, read by leaf.

The library checks headers. Reading is ours, because `safe_open` with the numpy
framework knows no float8 and maps its files: one seek and one read per leaf.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from centermerge_jax.checkpoints import number_types
from centermerge_jax.checkpoints.checkpoint import (
    Allocate,
    Fetch,
    FetchRange,
    Leaf,
    LeafInfo,
    shown,
)
from centermerge_jax.errors import CheckpointError, listing

_T = TypeVar("_T")
INDEX_SUFFIX = ".safetensors.index.json"
_MAX_HEADER = 100_000_000  # the format's own limit, in bytes
DTYPES: dict[str, type] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


@dataclass(frozen=True)
class Placed:
    """A leaf and where its bytes lie."""

    info: LeafInfo
    file: Path
    offset: int


def read_header(file: Path) -> tuple[dict[str, Placed], dict[str, str]]:
    """Reads the header of a safetensors file and checks that the data are all there.

    Returns:
      The leaves with their places, sorted by name, and the header's free text.

    Raises:
      CheckpointError: The file is truncated, damaged, or not safetensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{file}: not a safetensors file, or truncated inside its header "
                f"({size} bytes)"
            )
        raw = stream.read(length)
    header = _parse(file, raw)
    start = 8 + length
    try:
        with safe_open(file, framework="np"):
            pass
    except SafetensorError as error:
        raise CheckpointError(_damage(file, header, size - start, error)) from error
    metadata = header.pop("__metadata__", None) or {}
    placed = {
        name: _place(file, name, entry, start) for name, entry in sorted(header.items())
    }
    return placed, metadata


def _parse(file: Path, raw: bytes) -> dict:
    def unique(pairs: list[tuple[str, object]]) -> dict:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise CheckpointError(f"{file}: the header names {key!r} twice")
        return dict(pairs)

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: corrupt header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: corrupt header: not a JSON object")
    for name, entry in header.items():
        # The library takes lists for objects, and {"F32": null} for "F32".
        if name != "__metadata__" and not (
            isinstance(entry, dict) and isinstance(entry.get("dtype"), str)
        ):
            raise CheckpointError(
                f"{file}: corrupt header: {name!r} is not described by an object with "
                "a 'dtype'"
            )
    return header


def _damage(file: Path, header: dict, held: int, error: SafetensorError) -> str:
    if "not fully covered" in str(error):
        ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
        return (
            f"{file}: truncated or damaged: the header promises {max(ends, default=0)} "
            f"bytes of data, the file holds {held}"
        )
    return f"{file}: corrupt header: {shown(str(error))}"


def _place(file: Path, name: str, entry: dict, start: int) -> Placed:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{file}: {shown(name)} has unsupported type {entry['dtype']}"
        )
    info = LeafInfo(tuple(entry["shape"]), np.dtype(DTYPES[entry["dtype"]]))
    if not number_types.is_possible(info.shape, info.dtype):
        raise CheckpointError(f"{file}: {shown(name)} cannot be: {info}")
    return Placed(info, file, start + entry["data_offsets"][0])


def read_shards(
    index: Path, read: Callable[[Path], tuple[Mapping[str, _T], dict[str, str]]]
) -> tuple[dict[str, _T], dict[str, str]]:
    """Reads an index and what its shards hold, and checks one against the other.

    Args:
      index: The index.
      read: Reads one shard, as `read_header` does.

    Returns:
      As `read_header`, with the free text of the first shard.

    Raises:
      CheckpointError: Shards are missing, or the index and they disagree; everything
        wrong is listed.
    """
    weights = Path(index.name.removesuffix(".index.json"))
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shown(shard) for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: "
            + listing("{n} missing shard{s}", missing, "Fetch the folder again.")
        )
    placed: dict[str, _T] = {}
    metadata: dict[str, str] = {}
    problems = []
    for shard in shards:
        inside, text = read(index.parent / shard)
        metadata = metadata or text
        for name, place in inside.items():
            if weight_map.get(name) == shard:
                placed[name] = place
            else:
                where = weight_map.get(name, "nowhere")
                problems.append(
                    f"{shown(shard)}: holds {shown(name)}, which the index puts "
                    f"{shown(where)}"
                )
    problems += [
        f"{shown(shard)}: lacks {shown(name)}, which the index puts there"
        for name, shard in weight_map.items()
        if name not in placed
    ]
    problems += [
        f"{shown(file.name)}: lies there, but the index does not name it"
        for file in sorted(index.parent.glob(f"{index.name.split('.')[0]}-*-of-*"))
        if file.suffix == weights.suffix and file.name not in shards
    ]
    if problems:
        raise CheckpointError(
            f"{index}: " + listing("{n} disagreement{s} with the shards", problems)
        )
    return dict(sorted(placed.items())), metadata


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        weight_map = None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(
            f"{index}: not an index: it should be JSON with a 'weight_map' from tensor "
            f"names to files"
        )
    for shard in weight_map.values():
        if Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: {shard!r} is not a file in the same folder"
            )
    return weight_map


def reader(placed: Mapping[str, Placed]) -> Fetch:
    """Returns the function that yields leaves by name, one read each."""

    def fetch(names: Sequence[str], allocate: Allocate) -> Iterator[tuple[str, Leaf]]:
        for name in names:
            info = placed[name].info
            flat = _read(placed[name], name, 0, math.prod(info.shape), allocate)
            yield name, flat.reshape(info.shape)

    return fetch


def range_reader(placed: Mapping[str, Placed]) -> FetchRange:
    """Returns the function that reads some of a leaf's flat elements."""

    def fetch(name: str, start: int, stop: int, allocate: Allocate) -> np.ndarray:
        return _read(placed[name], name, start, stop, allocate)

    return fetch


def _read(
    place: Placed, name: str, start: int, stop: int, allocate: Allocate
) -> np.ndarray:
    # Read, not mapped: a mapped file that is truncated later kills the process with a
    # bus error, its pages count as resident, and every leaf is used once anyway.
    itemsize = place.info.dtype.itemsize
    size = (stop - start) * itemsize
    raw = allocate(size)[:size]
    filled = 0
    try:
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.offset + start * itemsize)
            while filled < size and (count := stream.readinto(raw[filled:].data)):
                filled += count
    except OSError as error:
        raise CheckpointError(f"{place.file}: {name}: {error.strerror}") from error
    if filled < size:
        raise CheckpointError(
            f"{place.file}: {name}: the file ended after {filled} of {size} bytes; "
            "was it changed while being read?"
        )
    return raw.view(place.info.dtype)
