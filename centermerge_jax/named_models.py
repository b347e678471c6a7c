"""Checkpoints of known families, read into our names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import (
    Checkpoint,
    manifest_path,
    open_checkpoint,
    refuse_quantised,
)
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.models import families
from centermerge_jax.models.configurations.build import Config
from centermerge_jax.models.configurations.reader import Settings
from centermerge_jax.models.families import Family
from centermerge_jax.progress import Report, silent

CONFIG, OPENCLIP_CONFIG = "config.json", "open_clip_config.json"
_MODULES = (
    "Checkpoints of the Task Arithmetic release are whole modules: load them with the "
    "code that wrote them, and save their state_dict()."
)


@dataclass(frozen=True)
class NamedModel:
    """A checkpoint in our names.

    Attributes:
      checkpoint: The opened one.
      family: Its family.
      prefix: What stands before its names.
      settings: The content of its `config.json`, if there is one.
      ours: Its leaves by our names.
    """

    checkpoint: Checkpoint
    family: Family
    prefix: str
    settings: Settings | None
    ours: Mapping[str, np.ndarray]

    def config(self) -> Config:
        """The network's shape."""
        return families.model_config(
            self.ours,
            self.settings,
            family=families.FLAX[self.family.kind],
            prefix="",
            where=str(self.checkpoint.path),
        )


def read_model(
    path: str | Path,
    *,
    subtree: str | None = None,
    source: str | None = None,
    progress: Report = silent,
) -> NamedModel:
    """Opens a checkpoint and reads all of it.

    Args:
      path: What `open_checkpoint` opens.
      subtree: Where in a nested tree the parameters lie.
      source: The family of its names; found where it is None.
      progress: Told of every leaf.

    Raises:
      CheckpointError: It cannot be read, is quantised, is of no known family, or does
        not fit it.
      ParameterError: There is no such family.
    """
    try:
        checkpoint = open_checkpoint(path, subtree=subtree)
    except CheckpointError as error:
        if "pickled objects" in str(error):
            raise CheckpointError(f"{error}. {_MODULES}") from error
        raise
    refuse_quantised(checkpoint)
    where = str(path)
    settings = network_settings(checkpoint)
    names = dict(checkpoint.leaves)
    names |= {other: names[name] for other, name in checkpoint.tied.items()}
    family, prefix = families.detect(names, settings, where=where)
    if source is not None and source != family.name:
        family = _wanted(source, family, names, where)
    # Before the first array is read, everything that is wrong is known.
    family.table.match(names, prefix=prefix, where=where)
    total, done = max(1, checkpoint.nbytes), 0

    def tell(name: str, size: int) -> None:
        nonlocal done
        done += size
        progress(f"reading {name}", done / total)

    leaves: dict[str, Any] = checkpoint.read_all(progress=tell)
    leaves |= {other: leaves[name] for other, name in checkpoint.tied.items()}
    ours = family.table.read(leaves, prefix=prefix, where=where)
    return NamedModel(checkpoint, family, prefix, settings, ours)


def _wanted(
    source: str, detected: Family, names: Mapping[str, Any], where: str
) -> Family:
    """The family that the user says, where it can be."""
    if source not in families.NAMES:
        raise ParameterError(
            f"no family {source!r}; there are {', '.join(families.NAMES)}"
        )
    wanted = families.FAMILIES.get(source)
    if wanted is None or not wanted.table.prefixes(names):
        raise CheckpointError(
            f"{where}: its names are those of {detected.name}, not of {source}"
        )
    return wanted


def network_settings(checkpoint: Checkpoint) -> Settings | None:
    """The configuration that lies beside the weights or in their manifest.

    Raises:
      CheckpointError: A file of it cannot be read.
    """
    files = {file.name: file for file in checkpoint.sidecars}
    for name in (CONFIG, OPENCLIP_CONFIG):
        if name in files:
            found = _json(files[name])
            # A config.json may be of another library, and say nothing to us.
            if name == OPENCLIP_CONFIG or "model_type" in found:
                return found
    record = manifest_path(checkpoint.path)
    if record.is_file():
        noted = _json(record)
        told = noted.get("hyperparameters")  # where a conversion notes it
        config = noted.get("config") or (isinstance(told, dict) and told.get("config"))
        return config if isinstance(config, dict) else None
    return None


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return content
