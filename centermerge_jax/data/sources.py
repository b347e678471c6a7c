"""The splits of a task, from wherever its data lies."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from centermerge_jax.data import prompts, registry
from centermerge_jax.data.examples import FolderSource, Source, Subset
from centermerge_jax.data.hub_sets import BRIDGE, bridged, hub_source, stored_splits
from centermerge_jax.data.specs import ImageFolder, Splits, TaskSpec
from centermerge_jax.data.tfds_source import TfdsSource, command, find_prepared
from centermerge_jax.errors import DataError

Split = Literal["train", "validation", "test"]


def open_source(
    task: str | TaskSpec, split: Split, *, data_dir: str | Path, seed: int = 0
) -> Source:
    """The examples of a task that are for fitting, for choosing or for reporting.

    Args:
      task: A task or its name in `registry.TASKS`.
      split: What they are for. Where the set has no validation split, `train` and
        `validation` are carved out of what it has for training; what it has for
        testing is never touched.
      data_dir: Folder of all data: TFDS's `name/version`, or the task's image folders,
        which are preferred where they are there. What TFDS's bridge to the Hugging Face
        hub prepared is read where TFDS's own set is not there.
      seed: Decides which examples are carved.

    Returns:
      A source with the benchmark's labels; images are encoded files.

    Raises:
      ParameterError: There is no such task.
      DataError: The data is not there; the message says how to get it.
    """
    spec = registry.find(task) if isinstance(task, str) else task
    splits, part = _place(spec, Path(data_dir))
    if split == "test":
        return part(splits.test)
    if splits.validation is not None:
        return part(splits.train if split == "train" else splits.validation)
    whole = part(splits.train)
    fitting, choosing = carve(
        len(whole), validation=spec.validation(len(whole)), seed=seed
    )
    return Subset(whole, fitting if split == "train" else choosing)


def _place(spec: TaskSpec, data_dir: Path) -> tuple[Splits, Callable[[str], Source]]:
    """Where a task's data lies: its splits there, and what opens one of them."""
    # A TFDS set may lie in a folder of the same name.
    if spec.folder is not None and any(
        (data_dir / spec.folder.path / str(name)).is_dir()
        for name in dataclasses.astuple(spec.folder.splits)
    ):
        wanted = spec.folder
        return wanted.splits, lambda split: _images(spec, wanted, split, data_dir)
    if spec.tfds is not None and (found := find_prepared(spec.tfds, data_dir)):
        return spec.splits, lambda split: TfdsSource(
            found,
            split,
            inputs=spec.inputs,
            label=spec.label,
            relabel=dict(spec.relabel),
        )
    if spec.hub and (bridge := find_prepared(bridged(spec.hub), data_dir)):
        splits = spec.splits
        if splits.validation not in (None, *stored_splits(bridge)):
            splits = Splits(splits.train, splits.test)
        known = registry.known_names(spec)
        return splits, lambda split: hub_source(spec, split, bridge, known=known)
    raise DataError(_absent(spec, data_dir))


def _absent(spec: TaskSpec, data_dir: Path) -> str:
    """How to get a task's data."""
    if spec.tfds is not None:
        text = (
            f"{spec.tfds} is not prepared in {data_dir}; to do so:\n"
            f"  {command(spec.tfds, data_dir)}"
        )
    else:
        wanted = spec.folder or ImageFolder(spec.name)
        text = (
            f"{spec.title} is not in {data_dir}. It is not read from TFDS: "
            f"{spec.why_not}. Put its images into "
            f"{data_dir / wanted.path}/SPLIT/CLASS/, splits being "
            f"{wanted.splits.train} and {wanted.splits.test}"
        )
    if spec.hub is not None:
        text += (
            "\nor, from the Hugging Face hub:\n"
            f"  {command(BRIDGE + spec.hub, data_dir)}"
        )
    return text


def _images(
    spec: TaskSpec, folder: ImageFolder, split: str, data_dir: Path
) -> FolderSource:
    if (
        split == folder.splits.test != "test"
        and (data_dir / folder.path / "test").is_dir()
    ):
        raise DataError(
            f"{data_dir / folder.path} has a folder 'test' beside {split!r}, which "
            "the benchmark's own scripts call the test images: remove the one that "
            "is not meant"
        )
    # Sorted names of folders are not always in the order of the labels.
    names = prompts.load_prompts(spec.name).folders or None
    source = FolderSource(data_dir / folder.path / split, classes=names)
    if len(source.classes) != spec.classes:
        raise DataError(
            f"{source.root} has {len(source.classes)} folders of classes; "
            f"{spec.title} has {spec.classes}"
        )
    return source


def carve(
    count: int, *, validation: int, seed: int = 0
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " v"]]:
    """Which training examples are for fitting and which for choosing.

    Each index is hashed with the seed, and the lowest hashes are for choosing. So the
    same examples are chosen everywhere and for ever: no generator has to stay as it is.

    Args:
      count: Number of training examples.
      validation: How many of them are for choosing.
      seed: Decides which.

    Returns:
      Indices for fitting and for choosing, ascending; together they are all.

    Raises:
      DataError: Nothing would be left for one of the two.

    Example:
      >>> fitting, choosing = carve(10, validation=3)
      >>> choosing.tolist(), sorted([*fitting, *choosing]) == list(range(10))
      ([0, 4, 6], True)
    """
    if not 0 < validation < count:
        raise DataError(
            f"validation must be between 1 and {count - 1} of {count} training "
            f"examples: got {validation}"
        )
    keys = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(count)]
    order = np.array(sorted(range(count), key=keys.__getitem__))
    return np.sort(order[validation:]), np.sort(order[:validation])
