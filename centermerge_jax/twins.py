"""Models that are given twice: allowed, since it weighs them double, but said.

What is the same file is known before anything is read; what is a copy of another is
known from the digests of a merge.
"""

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any

from centermerge_jax.checkpoints import Checkpoint


def same_files(models: Mapping[str, Checkpoint]) -> list[str]:
    """What to say of models that are read from the same files.

    Args:
      models: By name; one called 'base' is what task vectors are taken from.
    """
    same = "is the same checkpoint"
    return [_told(names, same) for names in _groups(_files(models))]


def same_leaves(
    models: Mapping[str, Checkpoint],
    digests: Mapping[str, Mapping[str, Any]],
    merged: Collection[str],
) -> list[str]:
    """What to say of models that are merged from equal numbers, but of other files.

    Args:
      models: As for `same_files`.
      digests: Of each model's leaves, by name.
      merged: Names of the leaves that are merged.
    """
    if not merged:
        return []
    keys = {
        name: repr([digests.get(name, {}).get(x) for x in merged]) for name in models
    }
    known = _files(models)
    same = "holds the same merged leaves"
    return [
        _told(names, same)
        for names in _groups(keys)
        if len({known[name] for name in names}) > 1
    ]


def _told(names: list[str], same: str) -> str:
    first, *others = names
    if first == "base":
        return f"{' and '.join(others)} {same} as the base: no task vector"
    return f"{first} {same} as {' and '.join(others)}: it counts {len(names)} times"


def _groups(keys: Mapping[str, Hashable]) -> Iterator[list[str]]:
    """Names with equal keys, the base first."""
    groups: dict[Hashable, list[str]] = {}
    for name in sorted(keys, key=lambda name: (name != "base", name)):
        groups.setdefault(keys[name], []).append(name)
    return (names for names in groups.values() if len(names) > 1)


def _files(models: Mapping[str, Checkpoint]) -> dict[str, Hashable]:
    """What tells files apart, by whatever name they are reached."""
    found = {}
    for name, model in models.items():
        files = frozenset(file.resolve() for file in model.files)
        found[name] = (files, model.subtree)
    return found
