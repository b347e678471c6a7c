"""Checkpoints on disk: one flat `{leaf name: array}` view of every format, and back.

Reading never unpickles and never needs the model's code; writing is all or nothing.

* `open_checkpoint` recognises a safetensors file, a hub folder (whole or sharded) and
  an Orbax folder, and returns a `Checkpoint`: names, shapes and types without data,
  and `read` for one leaf at a time.
* `non_finite` lists the leaves that hold NaN or infinity; `constant_buffers` those of
  them that several models share and that are meant to (masks).
* `refuse_quantised` refuses a model whose numbers are codes.
* `refuse_existing`, `refuse_inside`, `choose_format` and `save` write a model and its
  manifest under a name that did not exist before; `prepare`, `staged` and `finish` do
  it part by part, and can go on after an interruption.
* `describe` builds that manifest.

Importing this package imports neither JAX nor Orbax; an Orbax folder does when opened.
"""

from centermerge_jax.checkpoints.adapters import is_adapter, open_adapter
from centermerge_jax.checkpoints.checkpoint import (
    Checkpoint,
    Format,
    Leaf,
    LeafInfo,
    Piece,
    constant_buffers,
    non_finite,
)
from centermerge_jax.checkpoints.manifest import describe, manifest_path
from centermerge_jax.checkpoints.name_maps import load_name_map, rename
from centermerge_jax.checkpoints.opening import locate, open_checkpoint
from centermerge_jax.checkpoints.output import (
    choose_format,
    finish,
    prepare,
    refuse_existing,
    refuse_inside,
    save,
)
from centermerge_jax.checkpoints.quantised import quantisation, refuse_quantised
from centermerge_jax.checkpoints.staging import (
    HopelessError,
    Stage,
    sha256,
    stage_path,
    staged,
)

__all__ = [
    "Checkpoint",
    "Format",
    "HopelessError",
    "Leaf",
    "LeafInfo",
    "Piece",
    "Stage",
    "choose_format",
    "constant_buffers",
    "describe",
    "finish",
    "is_adapter",
    "load_name_map",
    "locate",
    "manifest_path",
    "non_finite",
    "open_adapter",
    "open_checkpoint",
    "prepare",
    "quantisation",
    "refuse_existing",
    "refuse_inside",
    "refuse_quantised",
    "rename",
    "save",
    "sha256",
    "stage_path",
    "staged",
]
