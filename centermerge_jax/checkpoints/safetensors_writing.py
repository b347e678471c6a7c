"""Writes safetensors piece by piece: the headers first, then leaves at their places.

Shapes and types are enough to lay a checkpoint out, so that leaves, and parts of large
ones, can be written as they are computed, in any order. (The safetensors library wants
all of them in memory.)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints.checkpoint import LeafInfo
from centermerge_jax.checkpoints.safetensors_files import DTYPES, INDEX_SUFFIX
from centermerge_jax.errors import CheckpointError, listing

_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """Where a leaf's bytes go."""

    file: Path
    offset: int
    info: LeafInfo


@dataclass(frozen=True)
class Layout:
    """Files of a checkpoint before their leaves are written.

    Attributes:
      headers: The first bytes of every file.
      sizes: Bytes of every file when it is finished.
      slots: Place of each leaf.
      index: Text of the index of a sharded folder.
    """

    headers: Mapping[Path, bytes]
    sizes: Mapping[Path, int]
    slots: Mapping[str, Slot]
    index: str | None


def check_storable(infos: Mapping[str, LeafInfo]) -> None:
    """Refuses leaves that the format cannot hold, all at once.

    Raises:
      CheckpointError: Some leaf is a string or of an unsupported type, or has the
        reserved name.
    """
    problems = []
    for name, info in infos.items():
        if info.kind == "string":
            problems.append(f"{name}: is a string")
        elif info.dtype not in _CODES:
            problems.append(f"{name}: has type {info.dtype.name}")
        elif name == "__metadata__":
            problems.append(f"{name}: is a reserved name")
    if problems:
        raise CheckpointError(
            listing(
                "{n} problem{s} with safetensors", problems, "Write an Orbax folder."
            )
        )


def lay_out(
    infos: Mapping[str, LeafInfo],
    target: Path,
    *,
    metadata: Mapping[str, str],
    max_shard_bytes: int,
) -> Layout:
    """Decides where every leaf goes; equal arguments give equal bytes.

    Args:
      infos: Shape and type of each leaf.
      target: One file if it ends in `.safetensors`, else a folder: `model.safetensors`,
        or shards with an index when they exceed the limit. Leaves fill the shards in
        sorted order; one larger than the limit has its own.
      metadata: Free text; of it only `format` is kept.
      max_shard_bytes: The limit.

    Raises:
      CheckpointError: As `check_storable`.
    """
    check_storable(infos)
    single = target.suffix == ".safetensors"
    shards = [sorted(infos)] if single else _shards(infos, max_shard_bytes)
    if single:
        files = [target]
    elif len(shards) == 1:
        files = [target / "model.safetensors"]
    else:
        count = len(shards)
        files = [
            target / f"model-{number:05}-of-{count:05}.safetensors"
            for number in range(1, count + 1)
        ]
    headers: dict[Path, bytes] = {}
    sizes: dict[Path, int] = {}
    slots: dict[str, Slot] = {}
    for file, names in zip(files, shards, strict=True):
        headers[file], ends = _header({name: infos[name] for name in names}, metadata)
        start = len(headers[file])
        sizes[file] = start + max(ends.values(), default=0)
        for name, end in ends.items():
            info = infos[name]
            slots[name] = Slot(file, start + end - info.nbytes, info)
    index = None
    if len(files) > 1:
        total = sum(info.nbytes for info in infos.values())
        weight_map = {name: slots[name].file.name for name in sorted(infos)}
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        index = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return Layout(headers, sizes, slots, index)


def _shards(infos: Mapping[str, LeafInfo], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(infos):
        size = infos[name].nbytes
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _header(
    infos: Mapping[str, LeafInfo], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header, and where after it each leaf ends."""
    entries: dict[str, object] = {}
    if "format" in metadata:
        entries["__metadata__"] = {"format": metadata["format"]}
    ends: dict[str, int] = {}
    end = 0
    # Wide types first: then every leaf lies at a multiple of its item's size.
    for name in sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name)):
        info, begin = infos[name], end
        end += info.nbytes
        entries[name] = {
            "dtype": _CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [begin, end],
        }
        ends[name] = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ends


def create(layout: Layout) -> None:
    """Makes the files at their full length, with headers; leaves stay as they are."""
    for file, header in layout.headers.items():
        file.parent.mkdir(exist_ok=True)
        with file.open("r+b" if file.exists() else "xb") as stream:
            stream.write(header)
            stream.truncate(layout.sizes[file])
    if layout.index is not None:
        folder = next(iter(layout.headers)).parent
        (folder / f"model{INDEX_SUFFIX}").write_text(layout.index, encoding="utf-8")


def write(slot: Slot, leaf: Any, *, start: int = 0) -> None:
    """Writes a leaf, or its flat elements from `start` on, to its place."""
    array = np.asarray(leaf, order="C")
    if array.dtype != slot.info.dtype:
        raise TypeError(f"{slot.info} was promised, {array.dtype} came")
    with slot.file.open("r+b", buffering=0) as stream:
        stream.seek(slot.offset + start * slot.info.dtype.itemsize)
        left = array.reshape(-1).view(np.uint8).data
        while left:
            left = left[stream.write(left) :]


def read(slot: Slot, start: int, stop: int) -> np.ndarray:
    """What has been written of a leaf's flat elements, as bytes."""
    size = slot.info.dtype.itemsize
    return np.fromfile(
        slot.file,
        np.uint8,
        count=(stop - start) * size,
        offset=slot.offset + start * size,
    )


def mapped(slot: Slot) -> np.ndarray:
    """A written leaf, mapped and not read."""
    size = slot.info.nbytes
    if not size:
        return np.zeros(slot.info.shape, slot.info.dtype)
    raw = np.memmap(slot.file, np.uint8, mode="r", offset=slot.offset, shape=(size,))
    return np.asarray(raw.view(slot.info.dtype).reshape(slot.info.shape))
