"""Checkpoints from one family of names to another, and into our models.

`convert` reads any checkpoint whose family is known and writes it as another family has
it; `load_model` reads one for use. Both go through our names, and nothing is computed:
arrays come out with the bits they came in.

What our models have no use for (buffers, leftovers, heads of pretraining) lies under
`extra/` in our names. A family that knows it gets it back; another one does not, and
the record says what was left behind.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import (
    Checkpoint,
    choose_format,
    describe,
    refuse_existing,
    save,
)
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.models import families
from centermerge_jax.models.configurations.build import Config
from centermerge_jax.models.configurations.reader import Settings
from centermerge_jax.models.families import Family
from centermerge_jax.models.naming.pairs import EXTRA
from centermerge_jax.models.vit import Params
from centermerge_jax.named_models import (
    CONFIG,
    OPENCLIP_CONFIG,
    NamedModel,
    read_model,
)
from centermerge_jax.progress import Report, silent

TARGETS = ("hf", *families.NAMES, "orbax")
"""What can be converted to: the Hugging Face family that fits; one that is named; our
names; those in an Orbax folder."""

_READING = 0.7  # of the time, roughly


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready for use.

    Attributes:
      params: What the model's functions take: nested dicts of arrays, in the types of
        the file.
      config: The network's shape.
      family: What the file's names are.
      prefix: What stands before them.
      checkpoint: The opened file or folder.
      head: Leaves of a task head, nested; empty if there is none.
      extra: Leaves that our model has no use for, by their public names.
      settings: The content of its `config.json`; empty if there is none.
    """

    params: Params
    config: Config
    family: str
    prefix: str
    checkpoint: Checkpoint
    head: Params = field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)


def load_model(
    path: str | Path,
    *,
    subtree: str | None = None,
    source: str | None = None,
    config: Config | None = None,
    progress: Report = silent,
) -> LoadedModel:
    """Reads a model of any known family for use.

    Args:
      path: What `open_checkpoint` opens.
      subtree: Where in a nested tree the parameters lie.
      source: The family of its names; found where it is None.
      config: The network's shape, where neither shapes nor a file tell it.
      progress: Told of every leaf.

    Raises:
      CheckpointError: It cannot be read, is of no known family, or does not fit it.
      ParameterError: There is no such family.
    """
    opened = read_model(path, subtree=subtree, source=source, progress=progress)
    if config is None:
        config = opened.config()
    ours = dict(opened.ours)
    extras = [name for name in ours if name.startswith(EXTRA)]
    extra = {name.removeprefix(EXTRA): ours.pop(name) for name in extras}
    tree = nested(ours)
    head = tree.pop("head", {})
    family, prefix = opened.family.name, opened.prefix
    return LoadedModel(
        tree,
        config,
        family,
        prefix,
        opened.checkpoint,
        head,
        extra,
        opened.settings or {},
    )


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
      source: The family that it was of.
      target: What it is now.
      left_behind: Leaves for which the target has no place; none is a parameter.
      manifest: The record that lies beside the output.
    """

    source: str
    target: str
    left_behind: tuple[str, ...]
    manifest: Mapping[str, Any]


def convert(
    path: str | Path,
    output: str | Path,
    *,
    target: str,
    source: str | None = None,
    prefix: str | None = None,
    subtree: str | None = None,
    progress: Report = silent,
    command: Sequence[str] | None = None,
) -> Conversion:
    """Writes a checkpoint under the names of another family.

    Args:
      path: What `open_checkpoint` opens.
      output: A file if it ends in `.safetensors`, else a folder.
      target: One of `TARGETS`.
      source: The family of its names; found where it is None.
      prefix: What to put before public names, such as `model.` for the checkpoints of
        the task-vector repositories. By default what stood there, if the family stays
        the same, else what the family itself puts there.
      subtree: Where in a nested tree the parameters lie.
      progress: Told of every leaf, and of writing.
      command: For the manifest; `sys.argv` by default.

    Returns:
      What was done.

    Raises:
      CheckpointError: It cannot be read, does not fit its family, or a parameter has no
        place in the target; or the output exists.
      ParameterError: There is no such family, or it is for other models.
    """
    started = time.perf_counter()
    output = Path(output)
    if target not in TARGETS:
        raise ParameterError(f"no target {target!r}; there are {', '.join(TARGETS)}")
    nest, asked = target == "orbax", target
    form = choose_format(output, None, "orbax" if nest else None)
    refuse_existing(output)
    opened = read_model(
        path,
        subtree=subtree,
        source=source,
        progress=lambda what, share: progress(what, _READING * share),
    )
    if target == "hf":
        target = _hugging_face(opened)
    goal = families.find("flax" if nest else target, opened.family.kind)
    kept = {
        name: leaf
        for name, leaf in opened.ours.items()
        if not name.startswith(EXTRA) or goal.table.takes(name)
    }
    if prefix is None and goal == opened.family:
        prefix = opened.prefix
    public = goal.table.write(kept, prefix=prefix, where=f"{path} as {target}")
    needed = bool(goal.model_types) and form == "hub"
    settings = _settings_for(opened, goal, kept, needed=needed)
    left = tuple(sorted(opened.ours.keys() - kept.keys()))
    manifest = describe(
        method="convert",
        hyperparameters={
            "from": opened.family.name,
            "to": asked,
            "prefix": prefix,
            "left_behind": list(left),
            "config": settings,
        },
        inputs={"model": opened.checkpoint},
        started=started,
        command=command,
    )
    progress(f"writing {output.name}", _READING)
    with _sidecars(opened, goal, settings) as sidecars:
        template = replace(
            opened.checkpoint,
            sidecars=sidecars,
            metadata={} if goal.name == "flax" else {"format": "pt"},
            subtree=(),
            structure=nested({name: name for name in public}) if nest else None,
        )
        save(public, output, manifest=manifest, template=template, format=form)
    return Conversion(opened.family.name, target, left, manifest)


def _hugging_face(opened: NamedModel) -> str:
    """The family whose classes load a model."""
    shapes = {name: leaf.shape for name, leaf in opened.ours.items()}
    stated = families.hf_config(opened.config(), shapes)["model_type"]
    for family in families.FAMILIES.values():
        if stated in family.model_types:
            return family.name
    raise CheckpointError(
        f"{opened.checkpoint.path}: is a {stated}, of which no names are known here"
    )


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Flat leaves as a tree: `/` parts the keys.

    Example:
      >>> nested({"norm/scale": 1, "norm/bias": 2})
      {'norm': {'scale': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _settings_for(
    opened: NamedModel, goal: Family, kept: Mapping[str, np.ndarray], *, needed: bool
) -> Settings | None:
    """The `config.json` of what is written.

    Args:
      opened: What was read.
      goal: What is written. Our own names have one too: so the number of heads,
        which no shape tells, is still known later.
      kept: Its leaves by our names.
      needed: Whether the output is of no use without it.

    Returns:
      Its content; None where there is none or, unless needed, it is not known.
    """
    stated = (opened.settings or {}).get("model_type")
    if stated in goal.model_types or (stated and goal.name == "flax"):
        return opened.settings
    if goal.name != "flax" and not goal.model_types:
        return None
    shapes = {name: leaf.shape for name, leaf in kept.items()}
    try:
        made = families.hf_config(opened.config(), shapes)
    except CheckpointError:
        if needed:
            raise
        return None  # whoever wants to use the model is told the reason
    if goal.model_types and made["model_type"] not in goal.model_types:
        raise CheckpointError(
            f"{opened.checkpoint.path}: is a {made['model_type']}, which {goal.name} "
            "cannot hold"
        )
    return made


@contextlib.contextmanager
def _sidecars(
    opened: NamedModel, goal: Family, settings: Settings | None
) -> Iterator[tuple[Path, ...]]:
    """The files that go beside the weights in a folder.

    Configurations are of one family, tokenisers of none. Our own names keep them all,
    for the way back.
    """
    files = {file.name: file for file in opened.checkpoint.sidecars}
    with tempfile.TemporaryDirectory() as folder:
        if settings != opened.settings or CONFIG not in files:
            files.pop(CONFIG, None)
        if goal.name not in ("openclip", "flax"):
            files.pop(OPENCLIP_CONFIG, None)
        if settings is not None and CONFIG not in files:
            made = Path(folder) / CONFIG
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            made.write_text(text, encoding="utf-8")
            files[CONFIG] = made
        yield tuple(files.values())
