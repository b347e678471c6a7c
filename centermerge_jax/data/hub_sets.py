"""Sets of the Hugging Face hub, as TFDS's bridge (`huggingface:`) prepares them.

They are TFDS sets like all others, but nobody has made them fit the benchmark: features
and splits are those of whoever uploaded the set, and so is the order of the classes. So
all of it is held against the task, and labels are translated by the classes' names.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.data.tfds_source import TfdsSource, stored_features
from centermerge_jax.errors import DataError, listing

BRIDGE = "huggingface:"
"""What stands before names of the hub where other names are TFDS's."""


def bridged(hub: str) -> str:
    """What TFDS calls a set of the hub, with its configuration if it has some.

    Example:
      >>> bridged("tanganke/dtd"), bridged("nyu-mll/glue/cola")
      ('tanganke__dtd', 'nyu_mll__glue/cola')
    """
    repository, config = hub_parts(hub)
    names = [repository.replace("/", "__"), *([config] if config else [])]
    return "/".join(re.sub(r"\W", "_", n.lower(), flags=re.ASCII) for n in names)


def hub_parts(hub: str) -> tuple[str, str | None]:
    """The repository of a set, and its configuration if one is named.

    Raises:
      DataError: It is no such name.

    Example:
      >>> hub_parts("nyu-mll/glue/cola")
      ('nyu-mll/glue', 'cola')
    """
    parts = hub.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{hub!r} is no set of the hub: those are called ORGANISATION/SET, or "
            "ORGANISATION/SET/CONFIGURATION"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def hub_source(
    spec: TaskSpec, split: str, folder: Path, *, known: Sequence[Sequence[str]]
) -> TfdsSource:
    """One split of what the bridge prepared for a task, with the task's labels.

    Args:
      spec: The task.
      split: One of the set's splits.
      folder: Where the set's version is.
      known: Names of the classes in the order of the task's labels; several lists,
        where they have several names.

    Raises:
      DataError: The set has no such split, not the task's features, or other classes.
    """
    features = stored_features(folder)
    kind = f".{spec.kind.capitalize()}"
    inputs = [_feature(features, name, kind) for name in spec.inputs]
    label = _feature(features, spec.label, ".ClassLabel")
    source = TfdsSource(folder, split, inputs=inputs, label=label)
    if split not in (splits := stored_splits(folder)):
        raise DataError(
            f"{folder} has no split {split!r}: it has {', '.join(splits) or 'none'}"
        )
    count = int(features[label].get("classLabel", {}).get("numClasses", spec.classes))
    names = folder / f"{label}.labels.txt"
    theirs = None
    if names.is_file():
        theirs = [n for n in names.read_text(encoding="utf-8").split("\n") if n.strip()]
        count = len(theirs)
    if count != spec.classes:
        raise DataError(
            f"{folder} has {count} classes; {spec.title} has {spec.classes}"
        )
    if theirs is not None:
        source.relabel = _translation(theirs, known, names)
    return source


def stored_splits(folder: Path) -> tuple[str, ...]:
    """Names of the splits that a prepared set has."""
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    return tuple(split["name"] for split in info.get("splits", ()))


def _feature(features: Mapping[str, Any], name: str, kind: str) -> str:
    """The feature of a name, or the only one of its kind under another."""
    alike = [n for n, f in features.items() if f["pythonClassName"].endswith(kind)]
    if name in features or len(alike) != 1:
        return name
    return alike[0]


def _translation(
    theirs: Sequence[str], known: Sequence[Sequence[str]], where: Path
) -> dict[int, int]:
    """Their labels that are other labels of ours, by the names of the classes."""
    if [_plain(name) for name in theirs] == list(map(str, range(len(theirs)))):
        return {}  # numbers: theirs are all there is to go by
    places = {_plain(name): i for ours in known for i, name in enumerate(ours)}
    found = [places.get(_plain(name)) for name in theirs]
    if set(found) == set(range(len(theirs))):
        return {i: ours for i, ours in enumerate(found) if ours not in (None, i)}
    problems = [
        f"{i} is {name!r}, expected {ours!r}"
        for i, (name, ours) in enumerate(zip(theirs, known[0], strict=True))
        if found[i] is None
    ] or ["some mean the same class"]
    raise DataError(
        listing(f"{where}: {{n}} problem{{s}} with the names of the classes", problems)
        + "\nwhere they are the task's in other words, put its words into that file"
    )


def _plain(name: str) -> str:
    """A name without what spellings differ in: capitals, blanks, underscores."""
    return re.sub(r"[\W_]+", "", name.casefold())
