"""The record beside every output: what was merged, how, with what, at what cost."""

import hashlib
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from centermerge_jax.checkpoints.checkpoint import Checkpoint
from centermerge_jax.errors import CheckpointError

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
    views_digest: str | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Builds the manifest of a merge.

    Args:
      method: The method's name.
      hyperparameters: What it was called with; JSON values.
      inputs: The opened checkpoints by role or task name. Their files are read once
        more for their SHA-256.
      started: `time.perf_counter()` at the beginning, for the wall time.
      views_digest: SHA-256 of the view table.
      command: The command line; `sys.argv` by default.

    Returns:
      A dictionary that `save` writes as JSON. `peak_memory_bytes` is the resident set
      of the whole process so far.

    Raises:
      CheckpointError: An input file has vanished or changed its size.
    """
    hashed = {name: _input(checkpoint) for name, checkpoint in inputs.items()}
    return {
        "method": method,
        "hyperparameters": dict(hyperparameters),
        "views_sha256": views_digest,
        "inputs": hashed,
        "versions": _versions(),
        "command": list(sys.argv if command is None else command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": _peak_memory(),
    }


def _input(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "subtree": "/".join(checkpoint.subtree) or None,
        "leaves": len(checkpoint.leaves),
        "files": [
            {"path": str(file), "bytes": size, "sha256": _sha256(file, size)}
            for file, size in checkpoint.files.items()
        ],
    }


def _sha256(file: Path, size: int) -> str:
    try:
        with file.open("rb") as stream:
            value = hashlib.file_digest(stream, "sha256").hexdigest()
            read = stream.tell()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if read != size:
        raise CheckpointError(
            f"{file}: changed while it was merged: it had {size} bytes and has {read}"
        )
    return value


def _versions() -> dict[str, str | None]:
    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    found = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **found}


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB, but bytes on macOS
