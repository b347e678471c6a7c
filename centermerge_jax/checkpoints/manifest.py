"""The record beside every output: what was merged, how, with what, at what cost."""

import hashlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from centermerge_jax.checkpoints.checkpoint import Checkpoint
from centermerge_jax.errors import CheckpointError
from centermerge_jax.packages import versions

_INSIDE = "centermerge.json"
_BESIDE = ".manifest.json"
_PACKAGES = (
    "centermerge_jax",
    "jax",
    "jaxlib",
    "numpy",
    "ml_dtypes",
    "flax",
    "orbax-checkpoint",
    "safetensors",
)


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output lies.

    Example:
      >>> print(manifest_path(Path("merged")), manifest_path(Path("m.safetensors")))
      merged/centermerge.json m.safetensors.manifest.json
    """
    if output.suffix == ".safetensors":
        return output.with_name(output.name + _BESIDE)
    return output / _INSIDE


def is_manifest(file: Path) -> bool:
    """Whether a file is such a manifest, by its name."""
    return file.name == _INSIDE or file.name.endswith(".safetensors" + _BESIDE)


def describe(
    *,
    method: str,
    hyperparameters: Mapping[str, Any],
    inputs: Mapping[str, Checkpoint],
    started: float,
    digests: Mapping[str, Mapping[str, Any]] | None = None,
    hash_files: bool = False,
    views_digest: str | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Builds the manifest of a merge.

    Args:
      method: The method's name.
      hyperparameters: What it was called with; JSON values.
      inputs: The opened checkpoints by role or task name.
      started: `time.perf_counter()` at the beginning, for the wall time.
      digests: SHA-256 of the tensors that were read, by input and leaf; a list of them
        for a tensor that was read in pieces.
      hash_files: Read the input files once more for the SHA-256 of each.
      views_digest: SHA-256 of the view table.
      command: The command line; `sys.argv` by default.

    Returns:
      A dictionary that `save` writes as JSON. `peak_memory_bytes` is the resident set
      of the whole process so far.

    Raises:
      CheckpointError: An input file has vanished or changed its size.
    """
    described = {
        name: _input(checkpoint, (digests or {}).get(name, {}), hash_files=hash_files)
        for name, checkpoint in inputs.items()
    }
    return {
        "method": method,
        "hyperparameters": dict(hyperparameters),
        "views_sha256": views_digest,
        "inputs": described,
        "versions": versions(*_PACKAGES),
        "command": list(sys.argv if command is None else command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory(),
    }


def _input(
    checkpoint: Checkpoint, digests: Mapping[str, Any], *, hash_files: bool
) -> dict[str, Any]:
    files = []
    for file, size in checkpoint.files.items():
        entry: dict[str, Any] = {"path": str(file), "bytes": _unchanged(file, size)}
        if hash_files:
            entry["sha256"] = _sha256(file)
        files.append(entry)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "subtree": "/".join(checkpoint.subtree) or None,
        "leaves": len(checkpoint.leaves),
        "files": files,
        "tensors_sha256": dict(digests),
    }


def _unchanged(file: Path, size: int) -> int:
    """The size of a file, which must be what it was when it was opened."""
    try:
        now = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if now != size:
        raise CheckpointError(
            f"{file}: changed while it was merged: it had {size} bytes and has {now}"
        )
    return size


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB, but bytes on macOS
