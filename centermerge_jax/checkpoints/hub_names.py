"""Models by their name on the Hugging Face Hub: `org/model`, `hf:org/model@revision`.

The library `huggingface_hub` downloads, and finds again what it has downloaded, also
offline. Only weights of the best kind that a model has, configuration and tokenizer are
fetched.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from centermerge_jax.errors import CheckpointError

_NAME = re.compile(r"(hf:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# As in a folder, the first kind that is there; an index ends in .json like what a
# folder holds beside its weights.
_WEIGHTS = ("*.safetensors", "flax_model*.msgpack", "pytorch_model*.bin")


@dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Attributes:
      repository: Its `org/model`.
      revision: Branch, tag or commit; the main branch if None.
    """

    repository: str
    revision: str | None

    @property
    def label(self) -> str:
        """The name without its organisation."""
        return self.repository.rpartition("/")[2]


def parse(given: str) -> HubName | None:
    """Reads a name of the hub, or tells that it is none but a path.

    `a/b` is a path where there is a folder `a`; with `hf:` it never is.

    Example:
      >>> parse("google/vit"), parse("/models/vit"), parse("models/vit/x")
      (HubName(repository='google/vit', revision=None), None, None)
      >>> parse("hf:google/vit@v1.0")
      HubName(repository='google/vit', revision='v1.0')
    """
    match = _NAME.fullmatch(given)
    if match is None:
        return None
    prefix, repository, revision = match.groups()
    if not prefix and Path(repository).parent.exists():
        return None
    return HubName(repository, revision)


def fetch(name: HubName, beside: Sequence[str]) -> Path:
    """Fetches a model, or finds it where it was fetched to before.

    Args:
      name: The model.
      beside: Patterns of the files to have beside its weights.

    Returns:
      The folder that holds it.

    Raises:
      CheckpointError: The library is not installed, the hub does not have the model or
        not for us, or it is neither reachable nor fetched before.
    """
    where = name.repository + (f" at {name.revision}" if name.revision else "")
    try:
        from huggingface_hub import (  # pyright: ignore[reportMissingImports]
            snapshot_download,
        )
        from huggingface_hub.utils import (  # pyright: ignore[reportMissingImports]
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise CheckpointError(
            f"{where}: no such file or folder; as a name on the Hugging Face Hub it "
            "needs a package: pip install huggingface_hub"
        ) from error
    folder = Path()
    try:
        for weights in _WEIGHTS:
            folder = Path(
                snapshot_download(
                    name.repository,
                    revision=name.revision,
                    allow_patterns=[weights, *beside],
                    ignore_patterns=["*/*"],
                )
            )
            if any(folder.glob(weights)):
                break
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where}: no such file or folder, and the Hugging Face Hub cannot be "
            "reached to see whether it is there; fetch it once with a connection, or "
            "give the path of a folder"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{where}: no such file or folder, and the Hugging Face Hub says: "
            f"{reason}; check the name, and for a model with limited access log in: "
            "hf auth login"
        ) from error
    return folder
