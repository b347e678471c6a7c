"""Small files that are there as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from centermerge_jax.errors import CheckpointError


def write_whole(path: Path, raw: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes a file: whoever looks sees what was there before, or all that is new.

    Args:
      path: The file.
      raw: What it is to hold, as a whole or in pieces.

    Raises:
      CheckpointError: The folder is missing or cannot be written to, or the disk is
        full; what was there before is still there.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        written = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.writelines([raw] if isinstance(raw, bytes) else raw)
                stream.flush()
                os.fsync(stream.fileno())
            written.chmod(0o644)  # a temporary file is its owner's alone
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
