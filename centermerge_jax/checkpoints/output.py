"""Writes a checkpoint and its manifest: all or nothing, and never over anything."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from centermerge_jax.checkpoints import (
    orbax_folders,
    orbax_trees,
    safetensors_writing,
)
from centermerge_jax.checkpoints.checkpoint import (
    Checkpoint,
    Format,
    Leaf,
    LeafInfo,
    info_of,
)
from centermerge_jax.checkpoints.manifest import manifest_path, peak_memory
from centermerge_jax.checkpoints.model_card import model_card, retyped
from centermerge_jax.checkpoints.safetensors_writing import Layout
from centermerge_jax.checkpoints.staging import Stage, stage_path
from centermerge_jax.errors import CheckpointError

_CONFIGS = {"config.json", "open_clip_config.json"}
_SPILL = "leaves.safetensors"
MAX_SHARD_BYTES = 5_000_000_000  # as hub folders usually have


_LONGEST_AFFIX = 32  # bytes around an output's name in those of hidden files beside it


def refuse_existing(output: str | Path) -> None:
    """Refuses an output that exists or cannot be made. Call it before any work.

    Raises:
      CheckpointError: Something, be it a broken link, has the name already, it is too
        long, or the folder around it is missing or not writable.
    """
    output = Path(output)
    _refuse_long_name(output)
    # A kill between the two renames of `publish` leaves a manifest and the stage.
    ours = stage_path(output).is_dir()
    for path in (output,) if ours else (output, manifest_path(output)):
        if os.path.lexists(path):
            raise CheckpointError(
                f"{path} exists already; choose another output or remove it first"
            )
    parent = output.parent
    if not parent.is_dir():
        cure = "it is a file" if parent.exists() else f"create it: mkdir -p {parent}"
        raise CheckpointError(f"{output}: there is no folder {parent}; {cure}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{output}: the folder {parent} is not writable")


def _refuse_long_name(output: Path) -> None:
    if not output.parent.is_dir():
        return  # of which more is to be said
    most = os.pathconf(output.parent, "PC_NAME_MAX") - _LONGEST_AFFIX
    length = len(os.fsencode(output.name))
    if length > most:
        raise CheckpointError(
            f"{output}: the name has {length} bytes; with what is put beside it while "
            f"it is written, this disk allows {most}"
        )


def refuse_inside(output: str | Path, models: Iterable[Checkpoint]) -> None:
    """Refuses an output that would lie in a folder of its inputs, and change them.

    Raises:
      CheckpointError: It would; the message names both.
    """
    output = Path(output)
    around = output.absolute().parent.resolve()
    for model in models:
        # Of a hub folder the index may have been given.
        folder = model.path.parent if model.path.is_file() else model.path
        if model.path.is_file() and model.format != "hub":
            continue
        if around.is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{output}: lies inside of {folder}, which is an input; choose an "
                "output elsewhere"
            )


def save(
    leaves: Mapping[str, Leaf],
    output: str | Path,
    *,
    manifest: Mapping[str, Any],
    template: Checkpoint | None = None,
    format: Format | None = None,  # noqa: A002  the word that users know
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes leaves as a checkpoint, with a manifest, under a name that is free.

    Everything is written to a hidden folder beside the output, flushed to the disk and
    then renamed: the name `output` never shows a part of a checkpoint. Equal leaves
    give equal bytes in safetensors and equal arrays in Orbax.

    Args:
      leaves: Leaf by name.
      output: One file if it ends in `.safetensors`, else a folder.
      manifest: What `describe` returned; goes to `centermerge.json` inside a folder,
        to `<file>.manifest.json` beside a file.
      template: The checkpoint whose form the output takes: format, nested structure,
        subtree, configuration and tokenizer files.
      format: Another format than the template's; `hub` without either.
      max_shard_bytes: Size from which a hub folder is sharded.

    Raises:
      CheckpointError: The output exists, a leaf cannot be stored in this format, or
        the disk refused (full, not writable).
    """
    output = Path(output)
    chosen = choose_format(output, template, format)
    refuse_existing(output)
    with _staged(output) as target:
        if chosen == "orbax":
            _write_orbax(leaves, target, output, template)
        else:
            _write_safetensors(leaves, target, template, max_shard_bytes)
        _write_manifest(manifest, target)
        flush(target.parent)
        refuse_existing(output)  # somebody may have made it while we were computing
        publish(target, output)


def choose_format(
    output: Path, template: Checkpoint | None, wanted: Format | None
) -> Format:
    """The form that `save` gives an output. Call it before any work.

    Raises:
      CheckpointError: The name of the output and the format contradict each other.
    """
    if output.suffix == ".safetensors":
        if wanted not in (None, "safetensors"):
            raise CheckpointError(
                f"{output}: a name that ends in .safetensors is one file, not the "
                f"folder that {wanted!r} needs; choose a name without it"
            )
        return "safetensors"
    if wanted not in (None, "hub", "orbax", "safetensors"):
        raise CheckpointError(f"{output}: {wanted} is read, but not written")
    if wanted == "safetensors":
        raise CheckpointError(f"{output}: one file must be named *.safetensors")
    if wanted is not None:
        return wanted
    return "orbax" if template is not None and template.format == "orbax" else "hub"


def prepare(
    infos: Mapping[str, LeafInfo],
    output: Path,
    kind: Format,
    template: Checkpoint,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Layout:
    """Where the leaves of an output that is made part by part go, for `staged`.

    Orbax cannot write a tree in parts. Its leaves gather in one safetensors file, from
    which `finish` writes them; strings and Python numbers have no place there.

    Args:
      infos: Shape and type of each leaf.
      output: The final name.
      kind: What `choose_format` chose.
      template: As for `save`.
      max_shard_bytes: As for `save`.

    Raises:
      CheckpointError: A leaf cannot be stored, or the disk has no room.
    """
    folder = stage_path(output)
    if kind == "orbax":
        infos = {name: info for name, info in infos.items() if info.kind == "array"}
    layout = safetensors_writing.lay_out(
        infos,
        folder / (_SPILL if kind == "orbax" else output.name),
        metadata=template.metadata,
        max_shard_bytes=max_shard_bytes,
    )
    needed = sum(layout.sizes.values()) * (2 if kind == "orbax" else 1)
    free = shutil.disk_usage(output.parent).free
    if not folder.exists() and needed > free:
        raise CheckpointError(
            f"cannot write {output}: it takes {needed} bytes, and {free} are free"
        )
    return layout


def finish(
    stage: Stage,
    output: Path,
    kind: Format,
    template: Checkpoint,
    *,
    objects: Mapping[str, Leaf],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Gives a checkpoint whose leaves are all written its name.

    Args:
      stage: What `staged` gave.
      output: The final name.
      kind: Its format.
      template: As for `save`.
      objects: Strings and Python numbers, which only Orbax has.
      manifest: As for `save`.

    Returns:
      The manifest as it was written: with the peak memory of this too.

    Raises:
      CheckpointError: The output has come to exist meanwhile, or the disk refused.
    """
    target = stage.folder / output.name
    with _disk_errors(output):
        if kind == "orbax":
            if target.exists():  # of an earlier attempt, perhaps cut short
                shutil.rmtree(target)
            leaves = {
                name: safetensors_writing.mapped(slot)
                for name, slot in stage.layout.slots.items()
            }
            _write_orbax({**leaves, **objects}, target, output, template)
        elif kind == "hub":
            dtype = manifest["hyperparameters"].get("dtype")
            files = {file.name: file.read_bytes() for file in template.sidecars}
            if manifest.get("config") and not _CONFIGS & files.keys():
                files["config.json"] = json.dumps(manifest["config"], indent=2).encode()
            for name, content in files.items():
                (target / name).write_bytes(retyped(name, content, dtype))
            card = target / "README.md"
            card.write_text(model_card(output.name, manifest), encoding="utf-8")
        written = {**manifest, "peak_memory_bytes": peak_memory()}
        _write_manifest(written, target)
        flush(stage.folder)
        refuse_existing(output)  # somebody may have made it while we were computing
        publish(target, output)
    return written


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror}") from error


@contextlib.contextmanager
def _staged(output: Path) -> Iterator[Path]:
    stage: str | None = None
    try:
        with _disk_errors(output):
            stage = tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)
            yield Path(stage) / output.name
    finally:
        if stage is not None:
            _remove(Path(stage))


def _remove(folder: Path) -> None:
    """Removes a folder that a thread of Orbax may still be writing to."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def _write_manifest(manifest: Mapping[str, Any], target: Path) -> None:
    text = json.dumps(manifest, indent=2, default=str) + "\n"
    manifest_path(target).write_text(text, encoding="utf-8")


def _write_orbax(
    leaves: Mapping[str, Leaf], target: Path, output: Path, template: Checkpoint | None
) -> None:
    tree = orbax_trees.build(
        leaves,
        output,
        structure=template.structure if template else None,
        subtree=template.subtree if template else (),
    )
    orbax_folders.write(tree, target, output=output)


def _write_safetensors(
    leaves: Mapping[str, Leaf],
    target: Path,
    template: Checkpoint | None,
    max_shard_bytes: int,
) -> None:
    layout = safetensors_writing.lay_out(
        {name: info_of(leaf) for name, leaf in leaves.items()},
        target,
        metadata=template.metadata if template else {},
        max_shard_bytes=max_shard_bytes,
    )
    safetensors_writing.create(layout)
    for name, slot in layout.slots.items():
        safetensors_writing.write(slot, leaves[name])
    if target.suffix != ".safetensors":
        for file in template.sidecars if template else ():
            shutil.copyfile(file, target / file.name)


def flush(folder: Path) -> None:
    """Has the disk keep what was written to a folder, whatever happens next."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish(target: Path, output: Path) -> None:
    """Gives a finished checkpoint and its manifest their names, in one step each."""
    record = manifest_path(output)
    beside = record.parent == output.parent
    if beside:
        # The manifest goes first: a checkpoint that is visible always has one.
        manifest_path(target).rename(record)
    try:
        target.rename(output)
    except BaseException:
        if beside:
            record.unlink()
        raise
    handle = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
