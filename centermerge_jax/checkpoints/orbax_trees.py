"""The nested tree of an Orbax folder, and the flat names of its leaves.

Three trees of equal shape meet here: Orbax's description, with shape and type at the
leaves; the *structure*, with a leaf's name in its place; and the arrays themselves.
Nothing here touches a file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints.checkpoint import Leaf, LeafInfo, did_you_mean
from centermerge_jax.errors import CheckpointError, listing

_ABSENT = object()


def children(node: Any) -> dict[str, Any]:
    """The children of a container by key; of a list, by index as text."""
    if isinstance(node, Mapping):
        return {str(key): child for key, child in node.items()}
    if isinstance(node, list | tuple):
        return {str(index): child for index, child in enumerate(node)}
    return {}


def is_string(node: Any) -> bool:
    """Whether Orbax describes a leaf as a string."""
    return type(node).__name__ == "StringMetadata"


def is_scalar(node: Any) -> bool:
    """Whether Orbax describes a leaf as a Python number."""
    return type(node).__name__ == "ScalarMetadata"


def descend(item: Path, tree: Any, subtree: Sequence[str]) -> Any:
    """Follows keys from the root of a tree.

    Raises:
      CheckpointError: A key does not exist; close ones are suggested.
    """
    for depth, key in enumerate(subtree):
        known = children(tree)
        if key not in known:
            hint = did_you_mean(key, known) or f"; there is {', '.join(known)}"
            where = "/".join(subtree[:depth]) or "the root"
            raise CheckpointError(f"{item}: no {key!r} under {where}{hint}")
        tree = known[key]
    return tree


def name_leaves(item: Path, tree: Any) -> tuple[Any, dict[str, LeafInfo]]:
    """Names the leaves of a described tree by their keys, joined by `/`.

    Returns:
      The structure, and every leaf's shape and type sorted by name.

    Raises:
      CheckpointError: Two leaves have one name, here or in Orbax's storage.
    """
    leaves: dict[str, LeafInfo] = {}
    structure = _name(item, tree, (), leaves)
    refuse_shared_storage(item, structure)
    return structure, dict(sorted(leaves.items()))


def _name(
    item: Path, node: Any, path: tuple[str, ...], leaves: dict[str, LeafInfo]
) -> Any:
    if node is None:
        return None
    if isinstance(node, Mapping | list | tuple):
        named = {
            key: _name(item, child, (*path, key), leaves)
            for key, child in children(node).items()
        }
        return named if isinstance(node, Mapping) else _like(node, named.values())
    name = "/".join(path)
    if name in leaves:
        raise CheckpointError(f"{item}: two leaves have the name {name}")
    leaves[name] = _info(node)
    return name


def _like(node: list | tuple, values: Any) -> list | tuple:
    return list(values) if isinstance(node, list) else tuple(values)


def _info(node: Any) -> LeafInfo:
    if is_string(node):
        return LeafInfo((), np.dtype(str), "string")
    kind = "scalar" if is_scalar(node) else "array"
    return LeafInfo(tuple(node.shape), np.dtype(node.dtype), kind)


def refuse_shared_storage(where: Path, tree: Any) -> None:
    """Refuses trees of which Orbax would lose a leaf.

    It stores `{"a": {"b": x}}` and `{"a.b": y}` under one name and keeps one of them,
    without a word when their shapes agree.
    """
    seen: dict[str, str] = {}
    problems = []
    for path in _paths(tree):
        stored, name = ".".join(path), "/".join(path)
        if stored in seen:
            problems.append(f"{seen[stored]} and {name}")
        seen[stored] = name
    if problems:
        raise CheckpointError(
            f"{where}: "
            + listing(
                "{n} pair{s} of leaves with one name in Orbax's storage",
                problems,
                "Rename the keys that contain a dot, or use safetensors.",
            )
        )


def _paths(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(tree, Mapping | list | tuple):
        for key, child in children(tree).items():
            yield from _paths(child, (*path, key))
    elif tree is not None:
        yield path


def place(tree: Any, structure: Any, subtree: Sequence[str]) -> Any:
    """Puts the structure of a part at its place in the whole tree, None elsewhere."""
    if not subtree:
        return structure
    return {
        key: place(child, structure, subtree[1:]) if key == subtree[0] else None
        for key, child in children(tree).items()
    }


def select(
    tree: Any, names: Any, wanted: set[str], *, inside_list: bool = False
) -> Any:
    """Reduces a description to what is to be read.

    Orbax lets dicts be pruned; in lists every place must be there, with `...`, its
    placeholder, for what is not wanted.
    """
    if isinstance(tree, Mapping):
        named = children(names)
        chosen = {
            key: select(child, named.get(key), wanted, inside_list=inside_list)
            for key, child in tree.items()
        }
        return chosen if inside_list else {k: v for k, v in chosen.items() if _holds(v)}
    if isinstance(tree, list | tuple):
        named = children(names)
        return _like(
            tree,
            [
                select(child, named.get(key), wanted, inside_list=True)
                for key, child in children(tree).items()
            ],
        )
    if tree is None:
        return None
    return tree if names in wanted else ...


def _holds(node: Any) -> bool:
    if isinstance(node, Mapping | list | tuple):
        return any(_holds(child) for child in children(node).values())
    return node is not None and node is not ...


def collect(
    restored: Any, tree: Any, names: Any, wanted: set[str]
) -> Iterator[tuple[str, Leaf]]:
    """Yields the wanted leaves of a restored tree by name."""
    if isinstance(tree, Mapping | list | tuple):
        named, described = children(names), children(tree)
        for key, child in children(restored).items():
            yield from collect(child, described[key], named.get(key), wanted)
    elif names in wanted:
        yield names, np.asarray(restored).item() if is_scalar(tree) else restored


def build(
    leaves: Mapping[str, Leaf], output: Path, *, structure: Any, subtree: Sequence[str]
) -> Any:
    """Puts flat leaves back into the nested tree they came from.

    Args:
      leaves: Leaves by name; those that the structure does not know become keys of its
        top, verbatim.
      output: For the message.
      structure: Nested containers with names at the leaves; None for flat keys.
      subtree: Keys to put above the tree.

    Raises:
      CheckpointError: Orbax could not hold the tree; everything wrong is listed.
    """
    problems = _unstorable(leaves)
    used: set[str] = set()
    tree = {} if structure is None else _fill(structure, leaves, used, problems)
    rest = {name: _value(leaves[name]) for name in sorted(set(leaves) - used)}
    if isinstance(tree, dict):
        tree = {**tree, **rest}
    else:
        problems += [f"{name}: has no place in a list" for name in rest]
    if problems:
        raise CheckpointError(
            f"{output}: "
            + listing(
                "{n} problem{s} with an Orbax folder",
                problems,
                "Write safetensors instead: an output that ends in .safetensors.",
            )
        )
    refuse_shared_storage(output, tree)
    for key in reversed(subtree):
        tree = {key: tree}
    return tree


def _unstorable(leaves: Mapping[str, Leaf]) -> list[str]:
    problems = [] if leaves else ["the tree has no leaves"]
    for name, leaf in leaves.items():
        if isinstance(leaf, str):
            continue
        array = np.asarray(leaf)
        if array.dtype.kind in "OSUMm":
            problems.append(f"{name}: has type {array.dtype}")
        elif not array.size:
            problems.append(f"{name}: {LeafInfo(array.shape, array.dtype)} is empty")
    return problems


def _value(leaf: Leaf) -> Leaf:
    return leaf if isinstance(leaf, str | int | float) else np.asarray(leaf)


def _fill(
    node: Any, leaves: Mapping[str, Leaf], used: set[str], problems: list[str]
) -> Any:
    if isinstance(node, str):
        if node not in leaves:
            return _ABSENT
        used.add(node)
        return _value(leaves[node])
    if isinstance(node, Mapping):
        filled = {k: _fill(v, leaves, used, problems) for k, v in node.items()}
        return {key: value for key, value in filled.items() if value is not _ABSENT}
    if isinstance(node, list | tuple):
        values = [_fill(child, leaves, used, problems) for child in node]
        problems += [
            f"{name}: is missing, and a list must be whole"
            for name, value in zip(node, values, strict=True)
            if value is _ABSENT
        ]
        return _like(node, values)
    return node
