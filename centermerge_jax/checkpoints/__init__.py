"""Checkpoints on disk: one flat `{leaf name: array}` view of every format, and back.

Reading never unpickles and never needs the model's code; writing is all or nothing.

* `open_checkpoint` recognises a safetensors file, a hub folder (whole or sharded) and
  an Orbax folder, and returns a `Checkpoint`: names, shapes and types without data,
  and `read` for one leaf at a time.
* `non_finite` lists the leaves that hold NaN or infinity.
* `refuse_existing`, `choose_format` and `save` write a merged model and its manifest
  under a name that did not exist before.
* `describe` builds that manifest.

Importing this package imports neither JAX nor Orbax; an Orbax folder does when opened.
"""

from centermerge_jax.checkpoints.checkpoint import (
    Checkpoint,
    Format,
    Leaf,
    LeafInfo,
    non_finite,
)
from centermerge_jax.checkpoints.manifest import describe, manifest_path
from centermerge_jax.checkpoints.opening import open_checkpoint
from centermerge_jax.checkpoints.output import choose_format, refuse_existing, save

__all__ = [
    "Checkpoint",
    "Format",
    "Leaf",
    "LeafInfo",
    "choose_format",
    "describe",
    "manifest_path",
    "non_finite",
    "open_checkpoint",
    "refuse_existing",
    "save",
]
