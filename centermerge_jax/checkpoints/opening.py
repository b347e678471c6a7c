"""Recognises what lies at a path, and opens it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from centermerge_jax.checkpoints import (
    hub_names,
    msgpack_files,
    npz_files,
    orbax_folders,
    safetensors_files,
    torch_files,
)
from centermerge_jax.checkpoints.adapters import is_adapter
from centermerge_jax.checkpoints.checkpoint import Checkpoint, Format, did_you_mean
from centermerge_jax.checkpoints.manifest import is_manifest
from centermerge_jax.errors import CheckpointError

_PICKLES = {".pkl", ".pickle", ".joblib", ".npy"}
_OTHERS = {".h5", ".keras", ".gguf", ".onnx", ".pb", ".tflite"}
# Kinds of weights that a folder may hold, the preferred first: their suffixes, and the
# name that is meant among several.
_KINDS = (
    ((".safetensors",), "model.safetensors"),
    ((".msgpack",), "flax_model.msgpack"),
    (torch_files.SUFFIXES, "pytorch_model.bin"),
    ((".npz",), "model.npz"),
)
_WEIGHTS = tuple(suffix for suffixes, _ in _KINDS for suffix in suffixes)
_INDEX = ".index.json"
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
_SIDECARS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".vocab"}
_TRAINING = {"trainer_state.json", "all_results.json", "train_results.json"}
_GENERIC = {"model", "default", "state", "pytree", "params", "checkpoint", "items"} | {
    "flax_model",
    "pytorch_model",
}


def open_checkpoint(path: str | Path, *, subtree: str | None = None) -> Checkpoint:
    """Opens a checkpoint without reading its arrays.

    Knows files of safetensors, NumPy (`.npz`), Flax (`.msgpack`) and PyTorch (`.bin`,
    `.pt`, `.pth`, `.ckpt`); a hub folder with one such file, or with shards and their
    index (or the index itself); a folder written by Orbax; and the name of a model on
    the Hugging Face Hub, `org/model` or `hf:org/model@revision`. Never unpickles:
    PyTorch's own reader of weights takes tensors alone out of its files.

    Args:
      path: The file or folder, or the name.
      subtree: Where in a nested tree (Orbax, Flax, PyTorch) the parameters lie, `/`
        between keys; the root by default. An item folder such as `default` is found
        without it.

    Returns:
      The checkpoint: names, shapes, types, and a way to read them.

    Raises:
      CheckpointError: There is nothing that can be read; the message says why.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path, subtree)
        if path.is_file():
            return _open_file(path, subtree)
    except OSError as error:
        where = error.filename or path
        raise CheckpointError(
            f"{where}: cannot be read: {error.strerror or error}"
        ) from error
    if path.is_symlink():
        raise CheckpointError(f"{path}: a link to {path.readlink()}, which is missing")
    if (name := _hub_name(path)) is not None:
        found = open_checkpoint(locate(path), subtree=subtree)
        return dataclasses.replace(found, path=path, name=name.label)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    raise CheckpointError(f"{path}: no such file or folder{hint}")


def locate(path: str | Path) -> Path:
    """Where a model lies: the path itself, or the folder a hub's model is fetched to.

    Raises:
      CheckpointError: It is on a hub, and cannot be fetched.
    """
    path = Path(path)
    name = _hub_name(path)
    if path.exists() or name is None:
        return path
    return hub_names.fetch(name, [f"*{suffix}" for suffix in sorted(_SIDECARS)])


def _hub_name(path: Path) -> hub_names.HubName | None:
    return None if path.suffix in _WEIGHTS else hub_names.parse(str(path))


def _open_file(path: Path, subtree: str | None) -> Checkpoint:
    if path.name.removesuffix(_INDEX).endswith(_WEIGHTS):
        return _open_weights(path, path, subtree)
    raise CheckpointError(f"{path}: {_why_not(path)}")


def _why_not(path: Path) -> str:
    if path.suffix in _PICKLES:
        return (
            "refused: it may hold pickled objects, and unpickling runs any code in "
            "them; save it as safetensors with the library that wrote it"
        )
    if path.suffix in _OTHERS:
        return f"{path.suffix} is not supported; convert it to safetensors or Orbax"
    return (
        f"not a checkpoint: expected a file that ends in {', '.join(_WEIGHTS)}, a hub "
        "folder or an Orbax folder"
    )


def _open_folder(path: Path, subtree: str | None) -> Checkpoint:
    if orbax_folders.is_orbax(path):
        return _open_orbax(path, subtree)
    if is_adapter(path):
        raise CheckpointError(
            f"{path}: is an adapter, no whole model: it is merged on its --base"
        )
    for suffixes, usual in _KINDS:
        weights = _choose(path, suffixes, path / usual)
        if weights is not None:
            return _open_weights(path, weights, subtree)
    inside = sorted(path.iterdir())
    if not inside:
        raise CheckpointError(f"{path}: the folder is empty")
    for file in inside:
        if file.suffix in _PICKLES | _OTHERS:
            raise CheckpointError(f"{file}: {_why_not(file)}")
    raise CheckpointError(
        f"{path}: no checkpoint in this folder: neither *.safetensors nor Orbax "
        f"(it holds {', '.join(p.name for p in inside[:5])})"
    )


def _choose(folder: Path, suffixes: Sequence[str], usual: Path) -> Path | None:
    """The weights of one kind: the index, the file of the usual name, or the only one.

    Raises:
      CheckpointError: There are several.
    """
    indices = [p for s in suffixes for p in sorted(folder.glob(f"*{s}{_INDEX}"))]
    files = [
        file
        for suffix in suffixes
        for file in sorted(folder.glob(f"*{suffix}"))
        if not file.name.startswith(_NO_WEIGHTS) and not file.is_dir()
    ]
    if len(indices) == 1 and usual not in files:
        return indices[0]
    if not indices and (usual in files or len(files) == 1):
        return usual if usual in files else files[0]
    if files or indices:
        choice = [p.name for p in [*indices, *files]]
        raise CheckpointError(
            f"{folder}: which weights are meant? It holds {', '.join(choice[:20])}; "
            "give the path of the file or of the index"
        )
    return None


def _open_weights(path: Path, file: Path, subtree: str | None) -> Checkpoint:
    """Opens a file of weights or an index, for which `path` was given."""
    indexed = file.name.endswith(_INDEX)
    hub = indexed or path.is_dir()
    about: dict[str, Any] = {
        "path": path,
        "name": _label(file.parent if hub else path),
        "sidecars": _sidecars(file.parent) if hub else (),
    }
    kind = Path(file.name.removesuffix(_INDEX)).suffix
    if kind in torch_files.SUFFIXES:
        return _open_torch(file, _keys(subtree), about)
    if kind == ".msgpack" and not indexed:
        return _open_msgpack(file, _keys(subtree), about)
    if subtree is not None:
        raise CheckpointError(
            f"{path}: a path inside the checkpoint ({subtree!r}) needs an Orbax "
            f"folder, or a file of Flax or PyTorch; the names in {kind} are flat"
        )
    if kind == ".safetensors":
        return _open_safetensors(file, "hub" if hub else "safetensors", about)
    if indexed:
        raise CheckpointError(
            f"{file}: shards of {kind} are not supported; convert them to safetensors"
        )
    members = npz_files.read_headers(file)
    return Checkpoint(
        **about,
        format="npz",
        leaves={name: member.info for name, member in members.items()},
        files={file: file.stat().st_size},
        fetch=npz_files.reader(file, members),
    )


def _open_safetensors(file: Path, kind: Format, about: dict[str, Any]) -> Checkpoint:
    read = safetensors_files.read_header
    files = {file}
    if file.name.endswith(_INDEX):
        placed, metadata = safetensors_files.read_shards(file, read)
        files |= {place.file for place in placed.values()}
    else:
        placed, metadata = read(file)
    return Checkpoint(
        **about,
        format=kind,
        leaves={name: place.info for name, place in placed.items()},
        files={file: file.stat().st_size for file in sorted(files)},
        fetch=safetensors_files.reader(placed),
        fetch_range=safetensors_files.range_reader(placed),
        metadata=metadata,
    )


def _open_torch(file: Path, keys: tuple[str, ...], about: dict[str, Any]) -> Checkpoint:
    tensors = torch_files.open_tensors(file, keys)
    return Checkpoint(
        **about,
        format="torch",
        leaves=tensors.leaves,
        files=tensors.files,
        fetch=tensors.fetch,
        subtree=keys,
        tied=tensors.tied,
    )


def _open_msgpack(
    file: Path, keys: tuple[str, ...], about: dict[str, Any]
) -> Checkpoint:
    tree = msgpack_files.open_tree(file, keys)
    return Checkpoint(
        **about,
        format="msgpack",
        leaves=tree.leaves,
        files={file: file.stat().st_size},
        fetch=tree.fetch,
        subtree=keys,
        structure=tree.structure,
    )


def _open_orbax(path: Path, subtree: str | None) -> Checkpoint:
    keys = _keys(subtree)
    part = orbax_folders.open_part(path, keys)
    files = sorted(
        f for f in part.item.rglob("*") if f.is_file() and not is_manifest(f)
    )
    return Checkpoint(
        path=path,
        name=_label(path),
        format="orbax",
        leaves=part.leaves,
        files={file: file.stat().st_size for file in files},
        fetch=orbax_folders.reader(part),
        subtree=keys,
        structure=part.structure,
    )


def _keys(subtree: str | None) -> tuple[str, ...]:
    return () if subtree is None else tuple(k for k in subtree.split("/") if k)


def _sidecars(folder: Path) -> tuple[Path, ...]:
    return tuple(
        file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file.suffix in _SIDECARS
        and file.name not in _TRAINING
        and not file.name.startswith(".")
        and not file.name.endswith(_INDEX)
        and not is_manifest(file)
    )


def _label(path: Path) -> str:
    # `mnist/default` and `mnist/model.safetensors` should be called mnist, not default
    path = path.absolute()
    name = path.stem if path.suffix in _WEIGHTS else path.name
    while (name in _GENERIC or name.isdecimal()) and path.parent.name:
        path = path.parent
        name = path.name
    return name
