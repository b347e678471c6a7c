"""Safetensors: one file, or shards with an index, read and written by leaf.

The library checks headers and writes files. Reading is ours, because `safe_open` with
the numpy framework knows no float8: one seek and one read per leaf.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from centermerge_jax.checkpoints.checkpoint import Allocate, Fetch, Leaf, LeafInfo
from centermerge_jax.errors import CheckpointError, listing

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_HEADER = 100_000_000  # the format's own limit, in bytes
_DTYPES: dict[str, type] = {
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
_STORABLE = {np.dtype(dtype) for dtype in _DTYPES.values()}


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
    metadata = header.pop("__metadata__", {})
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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: corrupt header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: corrupt header: not a JSON object")
    return header


def _damage(file: Path, header: dict, held: int, error: SafetensorError) -> str:
    if "not fully covered" in str(error):
        ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
        return (
            f"{file}: truncated or damaged: the header promises {max(ends, default=0)} "
            f"bytes of data, the file holds {held}"
        )
    return f"{file}: corrupt header: {error}"


def _place(file: Path, name: str, entry: dict, start: int) -> Placed:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(f"{file}: {name} has unsupported type {entry['dtype']}")
    info = LeafInfo(tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]]))
    return Placed(info, file, start + entry["data_offsets"][0])


def read_index(index: Path) -> tuple[dict[str, Placed], dict[str, str]]:
    """Reads an index and its shards' headers, and checks one against the other.

    Returns:
      As `read_header`, with the free text of the first shard.

    Raises:
      CheckpointError: Shards are missing, or the index and they disagree; everything
        wrong is listed.
    """
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: "
            + listing("{n} missing shard{s}", missing, "Fetch the folder again.")
        )
    placed: dict[str, Placed] = {}
    metadata: dict[str, str] = {}
    problems = []
    for shard in shards:
        inside, text = read_header(index.parent / shard)
        metadata = metadata or text
        for name, place in inside.items():
            if weight_map.get(name) == shard:
                placed[name] = place
            else:
                where = weight_map.get(name, "nowhere")
                problems.append(f"{shard}: holds {name}, which the index puts {where}")
    problems += [
        f"{shard}: lacks {name}, which the index puts there"
        for name, shard in weight_map.items()
        if name not in placed
    ]
    problems += [
        f"{file.name}: lies there, but the index does not name it"
        for file in sorted(index.parent.glob(f"{index.name.split('.')[0]}-*-of-*"))
        if file.suffix == ".safetensors" and file.name not in shards
    ]
    if problems:
        raise CheckpointError(
            f"{index}: " + listing("{n} disagreement{s} with the shards", problems)
        )
    return dict(sorted(placed.items())), metadata


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        pairs = [(str(name), str(shard)) for name, shard in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: not an index: it should be JSON with a 'weight_map' from tensor "
            f"names to files"
        ) from error
    for _, shard in pairs:
        if Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: {shard!r} is not a file in the same folder"
            )
    return dict(pairs)


def reader(placed: Mapping[str, Placed]) -> Fetch:
    """Returns the function that yields leaves by name, one read each."""

    def fetch(names: Sequence[str], allocate: Allocate) -> Iterator[tuple[str, Leaf]]:
        for name in names:
            yield name, _read(placed[name], name, allocate)

    return fetch


def _read(place: Placed, name: str, allocate: Allocate) -> np.ndarray:
    # Read, not mapped: a mapped file that is truncated later kills the process with a
    # bus error, its pages count as resident, and every leaf is used once anyway.
    raw = allocate(place.info.nbytes)[: place.info.nbytes]
    filled = 0
    try:
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.offset)
            while filled < raw.size and (count := stream.readinto(raw[filled:])):
                filled += count
    except OSError as error:
        raise CheckpointError(f"{place.file}: {name}: {error.strerror}") from error
    if filled < raw.size:
        raise CheckpointError(
            f"{place.file}: {name}: the file ended after {filled} of {raw.size} bytes; "
            "was it changed while being read?"
        )
    return raw.view(place.info.dtype).reshape(place.info.shape)


def write_file(
    leaves: Mapping[str, Leaf], file: Path, *, metadata: Mapping[str, str]
) -> None:
    """Writes one file; equal input gives equal bytes.

    Raises:
      CheckpointError: A leaf has a type that the format cannot hold.
    """
    # Only one key of free text: the library writes several in an order that changes
    # from run to run.
    text = {"format": metadata["format"]} if "format" in metadata else None
    # In C order, because the library ignores strides.
    arrays = {name: np.asarray(leaves[name], order="C") for name in sorted(leaves)}
    # The library leaves the file readable by its owner only; an empty file created the
    # ordinary way knows what the user's umask asks for.
    file.touch(exist_ok=False)
    mode = file.stat().st_mode
    save_file(arrays, file, metadata=text)
    file.chmod(mode)


def check_storable(leaves: Mapping[str, Leaf]) -> None:
    """Refuses leaves that the format cannot hold, all at once.

    Raises:
      CheckpointError: Some leaf is a string or of an unsupported type, or has the
        reserved name.
    """
    problems = []
    for name, leaf in leaves.items():
        if isinstance(leaf, str):
            problems.append(f"{name}: is a string")
        elif np.asarray(leaf).dtype not in _STORABLE:
            problems.append(f"{name}: has type {np.asarray(leaf).dtype.name}")
        elif name == "__metadata__":
            problems.append(f"{name}: is a reserved name")
    if problems:
        raise CheckpointError(
            listing(
                "{n} problem{s} with safetensors", problems, "Write an Orbax folder."
            )
        )


def write_shards(
    leaves: Mapping[str, Leaf],
    folder: Path,
    *,
    metadata: Mapping[str, str],
    max_shard_bytes: int,
) -> None:
    """Writes `model.safetensors`, or shards with an index when they exceed the limit.

    Leaves fill the shards in sorted order; one larger than the limit has its own.
    """
    shards: list[dict[str, Leaf]] = [{}]
    filled = total = 0
    for name in sorted(leaves):
        size = np.asarray(leaves[name]).nbytes
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = leaves[name]
        filled += size
        total += size
    if len(shards) == 1:
        write_file(leaves, folder / "model.safetensors", metadata=metadata)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(shard, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    (folder / f"model{INDEX_SUFFIX}").write_text(text, encoding="utf-8")
