"""Checkpoints whose numbers are codes: refused, since no formula holds for codes.

Libraries keep a quantised matrix as narrow numbers with scales beside them. Each names
the parts in its own way, and most note it in the `config.json` too.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from centermerge_jax.checkpoints.checkpoint import Checkpoint, LeafInfo, shown
from centermerge_jax.errors import CheckpointError

_PARTS = (
    ("GPTQ or AWQ", r"(.*[./]|)qweight", (r"\1scales", r"\1qzeros")),
    ("bitsandbytes, 4 bits", r"(.+)\.(absmax|quant_map|quant_state\..+)", (r"\1",)),
    ("bitsandbytes, 8 bits", r"(.+\.|)SCB", (r"\1weight",)),
    ("blocks with common scales, as in MXFP4", r"(.+)_blocks", (r"\1_scales",)),
    ("compressed-tensors, packed", r"(.+)_packed", (r"\1_scale",)),
    ("HQQ", r"(.+\.|)W_q", (r"\1scale",)),
    ("AQLM", r"(.+\.|)codes", (r"\1codebooks",)),
)
"""How it is called, a leaf that shows it, and one of those that have to lie beside."""

_SCALES = ("_scale", "_scale_inv", "_scale_2", "_scales", ".scale", "/scale")
"""What stands behind the name of a narrow leaf in that of its scales."""

_INSTEAD = {"weight": "scale_weight", "_data": "_scale"} | {
    "qdata": "scale",
    "qvalue": "scale",
}
"""What stands instead of the end of the name of a narrow leaf in that of its scales."""

_CONFIGS = ("quantization_config", "compression_config")


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint whose numbers are no weights.

    Raises:
      CheckpointError: It is quantised, as far as the names and types of its leaves and
        its `config.json` tell. Float8 without scales is not: it is rounded weights.
    """
    found = quantisation(checkpoint)
    if found is not None:
        raise CheckpointError(
            f"{checkpoint.path}: is quantised ({found}): its numbers are codes, not "
            "weights; take the weights that it was made from, before quantisation"
        )


def quantisation(checkpoint: Checkpoint) -> str | None:
    """How a checkpoint is quantised, and what shows it; None if nothing does."""
    by_config = _by_config(checkpoint)
    by_leaves = _by_leaves(checkpoint.leaves)
    if by_config and not by_leaves:
        return (
            f"{by_config}; if that is wrong, take the entry out of the config.json "
            "beside the weights"
        )
    return by_leaves


def _by_leaves(leaves: Mapping[str, LeafInfo]) -> str | None:
    for name, info in leaves.items():
        for how, pattern, beside in _PARTS:
            part = re.fullmatch(pattern, name)
            if part and any(part.expand(other) in leaves for other in beside):
                return f"{how}: {shown(name)}"
        if info.kind == "array" and info.dtype.itemsize == 1:
            for scales in _possible_scales(name):
                if scales in leaves and info.dtype != bool:
                    return f"{info.dtype.name} with scales: {shown(scales)}"
    return None


def _possible_scales(name: str) -> list[str]:
    instead = [
        name.removesuffix(end) + other
        for end, other in _INSTEAD.items()
        if name.endswith(end)
    ]
    return [name + end for end in _SCALES] + instead


def _by_config(checkpoint: Checkpoint) -> str | None:
    for file in checkpoint.sidecars:
        if file.name != "config.json":
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None  # said by those who need it
        for part in _dicts(config):
            for key in _CONFIGS:
                if isinstance(told := part.get(key), dict) and told:
                    method = str(told.get("quant_method", "no method named"))
                    return f"{method}, says {key} in its config.json"
    return None


def _dicts(config: Any) -> list[dict[str, Any]]:
    """The configuration, and those of its parts, such as a text model's."""
    if not isinstance(config, dict):
        return []
    return [config, *(part for part in config.values() if isinstance(part, dict))]
