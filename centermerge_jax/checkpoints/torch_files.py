"""PyTorch's files: a state dict, or a training checkpoint that holds one.

They are pickles. They are read by `torch.load(..., weights_only=True)`, which makes
tensors and plain containers of them and refuses everything else; never by unpickling.
"""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import number_types, orbax_trees, safetensors_files
from centermerge_jax.checkpoints.checkpoint import (
    Allocate,
    Fetch,
    Leaf,
    LeafInfo,
    shown,
)
from centermerge_jax.errors import CheckpointError, listing

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_PLACES = ("state_dict", "model", "model_state_dict", "module")
_SAFE = (2, 6)  # before, `weights_only` could be got round (CVE-2025-32434)
_SAFER = "save it as safetensors with the library that wrote it"


@dataclass(frozen=True)
class Tensors:
    """What a file, or an index with its shards, holds.

    Attributes:
      leaves: Shape and type of each leaf, sorted by name.
      tied: Other names of leaves: that of the leaf by the other one.
      files: The files with their sizes.
      fetch: Reads leaves.
    """

    leaves: Mapping[str, LeafInfo]
    tied: Mapping[str, str]
    files: Mapping[Path, int]
    fetch: Fetch


def open_tensors(file: Path, subtree: Sequence[str]) -> Tensors:
    """Opens a file, or an index and its shards.

    Args:
      file: A file of PyTorch, or an index.
      subtree: Keys that lead to the state dict. Without them it is the whole file, or
        what lies under the one of the usual keys that is there.

    Raises:
      CheckpointError: PyTorch is not installed; the file is damaged or holds objects
        that are no tensors; or it is not clear where the state dict lies.
    """
    files = {file: file.stat().st_size}

    def read(shard: Path) -> tuple[dict[str, Any], dict[str, str]]:
        files[shard] = shard.stat().st_size
        return _state_dict(shard, _load(shard), subtree), {}

    if file.name.endswith(".index.json"):
        tensors, _ = safetensors_files.read_shards(file, read)
    else:
        tensors, _ = read(file)
    tied = _tied(tensors)
    leaves = {
        name: LeafInfo(tuple(tensors[name].shape), _dtype(tensors[name]))
        for name in sorted(tensors.keys() - tied.keys())
    }
    return Tensors(leaves, tied, files, _reader(tensors, leaves, files))


def _load(file: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise CheckpointError(
            f"{file}: refused: it may hold pickled objects, and unpickling runs any "
            "code in them; install PyTorch, which reads the tensors alone (pip install "
            f"torch), or {_SAFER}"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE:
        raise CheckpointError(
            f"{file}: refused: the restricted loader of PyTorch {torch.__version__} "
            f"can be made to run code; install 2.6 or newer, or {_SAFER}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on archives of programs, refused below
            return torch.load(
                file, map_location="cpu", weights_only=True, mmap=_is_mappable(file)
            )
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: {_why(str(error))}") from error


def _is_mappable(file: Path) -> bool:
    # Files of PyTorch before 1.6 are no archives. In an archive that somebody packed
    # again and compressed, a map would show the compressed bytes as weights.
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return all(e.compress_type == zipfile.ZIP_STORED for e in archive.infolist())


def _why(message: str) -> str:
    """One line of what PyTorch says in many."""
    if found := re.search(r"GLOBAL ([\w.]+)|(TorchScript archive)", message):
        what = found[1] or f"a {found[2]}"
        return (
            f"refused: it holds pickled objects ({what}), and unpickling runs any code "
            f"in them; {_SAFER}"
        )
    lines = message.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return (
        "refused: it holds pickled objects that are no tensors, or is truncated or "
        f"damaged ({lines[0][:300] if lines else 'no reason given'}); fetch it again, "
        f"or {_SAFER}"
    )


def _state_dict(file: Path, loaded: Any, subtree: Sequence[str]) -> dict[str, Any]:
    """The tensors by name, in what a file holds."""
    from torch import Tensor  # pyright: ignore[reportMissingImports]

    if subtree:
        loaded = orbax_trees.descend(file, loaded, subtree)
    elif isinstance(loaded, Mapping):
        fits = [key for key in _PLACES if isinstance(loaded.get(key), Mapping)]
        if len(fits) > 1:
            raise CheckpointError(
                f"{file}: which weights are meant? It holds {', '.join(fits)}; name "
                f"one as the path inside: {fits[0]}"
            )
        loaded = loaded[fits[0]] if fits else loaded
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{file}: not a state dict: it is of type {type(loaded).__name__}"
        )
    if not any(isinstance(value, Tensor) for value in loaded.values()):
        keys = ", ".join(map(str, list(loaded)[:20])) or "nothing"
        raise CheckpointError(
            f"{file}: no state dict: neither tensors nor one of {', '.join(_PLACES)}; "
            f"it holds {keys}"
        )
    problems = [
        f"{shown(str(name))}: {problem}"
        for name, value in loaded.items()
        if (problem := _unusable(name, value)) is not None
    ]
    if problems:
        raise CheckpointError(
            f"{file}: "
            + listing(
                "{n} value{s} of the state dict that cannot be merged",
                problems,
                "Save a state dict of plain tensors.",
            )
        )
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _unusable(name: Any, value: Any) -> str | None:
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(name, str):
        return "its name is not text"
    if not isinstance(value, torch.Tensor):
        return f"is not a tensor but of type {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = "quantized" if value.is_quantized else str(value.layout)
        return f"is not a plain tensor ({'without data' if value.is_meta else kind})"
    if number_types.known(_dtype_name(value)) is None:
        return f"has type {_dtype_name(value)}"
    return None


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _dtype(tensor: Any) -> np.dtype:
    dtype = number_types.known(_dtype_name(tensor))
    assert dtype is not None, "checked when the state dict was read"
    return dtype


def _tied(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Names of tensors that are the same memory as one of an earlier name."""
    first: dict[object, str] = {}
    tied = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if not tensor.numel():
            continue  # nothing is no shared memory, though it has an address
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        same = first.setdefault((*memory, tensor.dtype, tensor.is_neg()), name)
        if same != name:
            tied[name] = same
    return tied


def _reader(
    tensors: Mapping[str, Any],
    leaves: Mapping[str, LeafInfo],
    files: Mapping[Path, int],
) -> Fetch:
    def fetch(names: Sequence[str], allocate: Allocate) -> Iterator[tuple[str, Leaf]]:
        for file, size in files.items():
            # The system kills a process that reads a map beyond the file's new end.
            if not file.is_file() or file.stat().st_size != size:
                raise CheckpointError(f"{file}: changed or gone since it was opened")
        for name in names:
            info = leaves[name]
            leaf = allocate(info.nbytes)[: info.nbytes]
            leaf = leaf.view(info.dtype).reshape(info.shape)
            leaf[...] = _as_numpy(tensors[name], info.dtype)
            yield name, leaf

    return fetch


def _as_numpy(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """The tensor's memory, also of types that only PyTorch and ml_dtypes have."""
    import torch  # pyright: ignore[reportMissingImports]

    if dtype.isbuiltin == 1:
        return tensor.resolve_conj().resolve_neg().numpy()
    bits = torch.uint8 if dtype.itemsize == 1 else torch.uint16
    return tensor.view(bits).numpy().view(dtype)
