"""Prepares sets: `python -m centermerge_jax.data.builders NAME ... --data-dir DIR`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from centermerge_jax.data.builders.preparing import prepare
from centermerge_jax.errors import MergeError


def main(
    names: Positional[tuple[str, ...]],
    /,
    *,
    data_dir: Path,
    originals: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> None:
    """Prepares sets for reading without TensorFlow.

    Args:
      names: Sets that TFDS or `centermerge_jax` knows, or huggingface:ORGANISATION/SET
        of the Hugging Face hub.
      data_dir: Where they are put: DIR/name/version.
      originals: Folder with the files as their authors publish them, for sets that
        cannot be downloaded.
    """
    for name in names:
        print(prepare(name, data_dir=data_dir, originals=originals))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except MergeError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(2)
