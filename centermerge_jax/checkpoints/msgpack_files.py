"""Flax's `.msgpack` files: nested keys with arrays, read one leaf at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import orbax_trees
from centermerge_jax.checkpoints.checkpoint import (
    Allocate,
    Fetch,
    Leaf,
    LeafInfo,
    shown,
)
from centermerge_jax.checkpoints.msgpack_walk import Stored, Unknown, Walk
from centermerge_jax.errors import CheckpointError, listing


@dataclass(frozen=True)
class Tree:
    """What a file holds.

    Attributes:
      structure: Nested containers with leaf names at the leaves.
      leaves: Shape and type of each leaf, sorted by name.
      fetch: Reads leaves.
    """

    structure: Any
    leaves: Mapping[str, LeafInfo]
    fetch: Fetch


def open_tree(file: Path, subtree: Sequence[str]) -> Tree:
    """Opens the part of a file that `subtree` leads to.

    Raises:
      CheckpointError: The file is truncated, damaged, or not Flax's; the part does not
        exist; two leaves share a name; or a leaf is of a type that cannot be merged.
    """
    with file.open("rb") as stream:
        tree = Walk(file, stream, file.stat().st_size).whole()
    tree = orbax_trees.descend(file, tree, subtree)
    if not isinstance(tree, dict | list):
        where = "/".join(subtree) or "it"
        raise CheckpointError(
            f"{file}: {where} is a leaf, not a tree of leaves; expected what "
            "flax.serialization writes"
        )
    found: dict[str, Any] = {}
    structure = _name(file, tree, (), found)
    problems = [
        f"{shown(name)}: has {leaf.what}"
        for name, leaf in found.items()
        if isinstance(leaf, Unknown)
    ]
    if problems:
        raise CheckpointError(
            f"{file}: " + listing("{n} leaf name{s} without numbers", problems)
        )
    leaves = {name: _info(found[name]) for name in sorted(found)}
    return Tree(structure, leaves, _reader(file, found))


def _name(file: Path, node: Any, path: tuple[str, ...], found: dict[str, Any]) -> Any:
    if node is None:
        return None
    if isinstance(node, dict):
        return {k: _name(file, child, (*path, k), found) for k, child in node.items()}
    if isinstance(node, list):
        return [_name(file, v, (*path, str(i)), found) for i, v in enumerate(node)]
    name = "/".join(path)
    if name in found:
        raise CheckpointError(f"{file}: two leaves have the name {name!r}")
    found[name] = node
    return name


def _info(leaf: Any) -> LeafInfo:
    if isinstance(leaf, Stored):
        return leaf.info
    if isinstance(leaf, str):
        return LeafInfo((), np.dtype(str), "string")
    return LeafInfo(
        (), np.asarray(leaf).dtype, "array" if isinstance(leaf, complex) else "scalar"
    )


def _reader(file: Path, found: Mapping[str, Any]) -> Fetch:
    def fetch(names: Sequence[str], allocate: Allocate) -> Iterator[tuple[str, Leaf]]:
        try:
            stream = file.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}") from error
        with stream:
            for name in names:
                leaf = found[name]
                if isinstance(leaf, Stored):
                    yield name, _read(file, stream, name, leaf, allocate)
                else:
                    yield name, np.asarray(leaf) if isinstance(leaf, complex) else leaf

    return fetch


def _read(
    file: Path, stream: Any, name: str, stored: Stored, allocate: Allocate
) -> np.ndarray:
    size = stored.info.nbytes
    raw = allocate(size)[:size]
    filled = 0
    try:
        for offset, length in stored.places:
            stream.seek(offset)
            end = filled + length
            while filled < end and (count := stream.readinto(raw[filled:end])):
                filled += count
    except OSError as error:
        raise CheckpointError(f"{file}: {shown(name)}: {error.strerror}") from error
    if filled < size:
        raise CheckpointError(
            f"{file}: {shown(name)}: the file ended after {filled} of {size} bytes; "
            "was it changed while being read?"
        )
    return raw.view(stored.info.dtype).reshape(stored.info.shape)
