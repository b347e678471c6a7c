"""Recognises what lies at a path, and opens it."""

from pathlib import Path

from centermerge_jax.checkpoints import orbax_folders, safetensors_files
from centermerge_jax.checkpoints.checkpoint import Checkpoint, Format, did_you_mean
from centermerge_jax.checkpoints.manifest import is_manifest
from centermerge_jax.errors import CheckpointError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy"}
_OTHERS = {".msgpack", ".h5", ".keras", ".gguf", ".onnx", ".npz", ".pb", ".tflite"}
_SIDECARS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".vocab"}
_TRAINING = {"trainer_state.json", "all_results.json", "train_results.json"}
_GENERIC = {"model", "default", "state", "pytree", "params", "checkpoint", "items"}


def open_checkpoint(path: str | Path, *, subtree: str | None = None) -> Checkpoint:
    """Opens a checkpoint without reading its arrays.

    Knows a `.safetensors` file; a hub folder with one such file, or with shards and
    their index (or the index itself); and a folder written by Orbax. Never unpickles.

    Args:
      path: The file or folder.
      subtree: Where in an Orbax tree the parameters lie, `/` between keys; the root by
        default. An item folder such as `default` is found without it.

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
        raise CheckpointError(f"{where}: cannot be read: {error.strerror}") from error
    if path.is_symlink():
        raise CheckpointError(f"{path}: a link to {path.readlink()}, which is missing")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    raise CheckpointError(f"{path}: no such file or folder{hint}")


def _open_file(path: Path, subtree: str | None) -> Checkpoint:
    if path.name.endswith(safetensors_files.INDEX_SUFFIX):
        return _open_index(path, path, subtree)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: {_why_not(path)}")
    return _open_weights(path, path, subtree, kind="safetensors")


def _why_not(path: Path) -> str:
    if path.suffix in _PICKLES:
        return (
            "refused: it may hold pickled objects, and unpickling runs any code in "
            "them; save it as safetensors with the library that wrote it"
        )
    if path.suffix in _OTHERS:
        return f"{path.suffix} is not supported; convert it to safetensors or Orbax"
    return "not a checkpoint: expected .safetensors, a hub folder or an Orbax folder"


def _open_folder(path: Path, subtree: str | None) -> Checkpoint:
    if orbax_folders.is_orbax(path):
        return _open_orbax(path, subtree)
    indices = sorted(path.glob(f"*{safetensors_files.INDEX_SUFFIX}"))
    files = sorted(path.glob("*.safetensors"))
    whole = path / "model.safetensors"
    if len(indices) == 1 and whole not in files:
        return _open_index(path, indices[0], subtree)
    if not indices and (whole in files or len(files) == 1):
        file = whole if whole in files else files[0]
        return _open_weights(path, file, subtree, kind="hub")
    if files or indices:
        choice = [p.name for p in [*indices, *files]]
        raise CheckpointError(
            f"{path}: which weights are meant? It holds {', '.join(choice[:20])}; give "
            "the path of the file or of the index"
        )
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


def _open_weights(
    path: Path, file: Path, subtree: str | None, *, kind: Format
) -> Checkpoint:
    _refuse_subtree(path, subtree)
    placed, metadata = safetensors_files.read_header(file)
    return Checkpoint(
        path=path,
        name=_label(path),
        format=kind,
        leaves={name: place.info for name, place in placed.items()},
        files={file: file.stat().st_size},
        fetch=safetensors_files.reader(placed),
        sidecars=_sidecars(path) if kind == "hub" else (),
        metadata=metadata,
    )


def _open_index(path: Path, index: Path, subtree: str | None) -> Checkpoint:
    _refuse_subtree(path, subtree)
    placed, metadata = safetensors_files.read_index(index)
    files = sorted({index, *(place.file for place in placed.values())})
    return Checkpoint(
        path=path,
        name=_label(index.parent),
        format="hub",
        leaves={name: place.info for name, place in placed.items()},
        files={file: file.stat().st_size for file in files},
        fetch=safetensors_files.reader(placed),
        sidecars=_sidecars(index.parent),
        metadata=metadata,
    )


def _open_orbax(path: Path, subtree: str | None) -> Checkpoint:
    keys = () if subtree is None else tuple(k for k in subtree.split("/") if k)
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


def _refuse_subtree(path: Path, subtree: str | None) -> None:
    if subtree is not None:
        raise CheckpointError(
            f"{path}: a path inside the checkpoint ({subtree!r}) needs an Orbax "
            "folder; the names in safetensors are flat"
        )


def _sidecars(folder: Path) -> tuple[Path, ...]:
    return tuple(
        file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file.suffix in _SIDECARS
        and file.name not in _TRAINING
        and not file.name.startswith(".")
        and not file.name.endswith(".index.json")
        and not is_manifest(file)
    )


def _label(path: Path) -> str:
    # `mnist/default` and `mnist/model.safetensors` should be called mnist, not default
    path = path.absolute()
    name = path.stem if path.suffix == ".safetensors" else path.name
    while (name in _GENERIC or name.isdecimal()) and path.parent.name:
        path = path.parent
        name = path.name
    return name
