"""What the tensors of a LoRA adapter mean, by their names.

PEFT writes `base_model.model.<module>.lora_A.weight` and `lora_B`, of embeddings
`lora_embedding_A` and `_B`; others have the adapter's own name in between. Any other
tensor replaces the leaf that it is called by.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from centermerge_jax.checkpoints import adapter_config, safetensors_files
from centermerge_jax.checkpoints.adapter_config import AdapterConfig
from centermerge_jax.checkpoints.checkpoint import LeafInfo, did_you_mean, shown
from centermerge_jax.checkpoints.safetensors_files import Placed
from centermerge_jax.errors import CheckpointError, listing

NAME = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = (
    ("linear", re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")),
    ("embedding", re.compile(r"(.+)\.lora_embedding_([AB])(?:\.[^.]+)?")),
)
# What PEFT puts around a module whose weights it saves whole, or its adapted layer.
_WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_TRIED = 100  # names by which a difference of prefixes is looked for
_HINTS = 3  # searching for similar names takes long


@dataclass(frozen=True)
class Change:
    """What an adapter does to a leaf of the base.

    Attributes:
      whole: The tensor that replaces it, if there is one.
      a: The tensor of the first factor, if there are factors.
      b: That of the second.
      scale: By what the product of the factors is multiplied.
      transposed: Whether it is `(B @ A)^T`.
    """

    whole: str | None = None
    a: str | None = None
    b: str | None = None
    scale: float = 0.0
    transposed: bool = False


def read_changes(
    path: Path, known: Collection[str]
) -> tuple[dict[str, Placed], dict[str, Change]]:
    """Reads what an adapter's tensors do to which leaf, from headers alone.

    Args:
      path: The adapter's folder.
      known: Names of the base's leaves. The adapter's may all have one prefix more or
        less, as they do where it was trained on a model with another head.

    Returns:
      The tensors, and the change of each leaf by the base's name.

    Raises:
      CheckpointError: The folder has no weights, or tensors are not understood, belong
        to no leaf, or do not go together; everything wrong is listed.
    """
    config = adapter_config.read(path)
    weights = path / NAME
    if not weights.is_file():
        cure = f"there is no {NAME}"
        if (path / _PICKLED).is_file():
            cure += f"; {_PICKLED} may run any code when read: save it as safetensors"
        raise CheckpointError(f"{path}: {cure}")
    placed, _ = safetensors_files.read_header(weights)
    if not placed:
        raise CheckpointError(f"{weights}: holds no tensor")
    roles, problems = _sort(placed)
    leaves, unknown = _locate(list(roles), known)
    problems += unknown
    changes = {}
    for name, tensors in roles.items():
        if name in leaves:
            change, faults = _change(name, tensors, placed, config)
            changes[leaves[name]] = change
            problems += faults
    if problems:
        raise CheckpointError(listing(f"{weights}: {{n}} problem{{s}}", problems))
    return placed, changes


def _sort(placed: Mapping[str, Placed]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Tensors by the leaf that they are about and what they are to it; and problems."""
    roles: dict[str, dict[str, str]] = {}
    problems = []
    for tensor, place in placed.items():
        name = _WRAPPERS.sub("", tensor.removeprefix(_PREFIX))
        role = "whole"
        for kind, pattern in _FACTOR:
            if match := pattern.fullmatch(name):
                name, role = f"{match[1]}.weight", f"{kind} {match[2]}"
        if role == "whole" and ".lora_" in name:
            problems.append(f"{shown(tensor)}: is not understood")
        elif not is_floating(place.info):
            problems.append(f"{shown(tensor)}: is {place.info}, not floating")
        elif role in roles.setdefault(name, {}):
            problems.append(f"{shown(tensor)}: says the same as {roles[name][role]}")
        else:
            roles[name][role] = tensor
    return {name: tensors for name, tensors in roles.items() if tensors}, problems


def is_floating(info: LeafInfo) -> bool:
    """Whether a leaf holds floating numbers, of NumPy or of ml_dtypes."""
    return info.kind == "array" and info.dtype.name.startswith(("float", "bfloat"))


def _locate(
    names: Sequence[str], known: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """The base's own names of leaves, which may have one more or one less prefix."""
    missing = [name for name in names if name not in known]
    shifts = (_shift(name, known) for name in missing[:_TRIED])
    gone, added = next((shift for shift in shifts if shift), ("", ""))
    taken = set(names)
    found, problems = {}, []
    for name in names:
        other = added + name.removeprefix(gone)
        if name in known:
            found[name] = name
        elif name.startswith(gone) and other in known and other not in taken:
            found[name] = other
        else:
            hint = did_you_mean(name, known) if len(problems) < _HINTS else ""
            problems.append(f"{shown(name)}: the base has no such leaf{hint}")
    return found, problems


def _shift(name: str, known: Collection[str]) -> tuple[str, str] | None:
    """The prefixes to take away and to add for the only leaf with such an ending."""
    longer = [leaf for leaf in known if leaf.endswith(f".{name}")]
    ends = [name[i + 1 :] for i, letter in enumerate(name) if letter == "."]
    shorter = [leaf for leaf in ends if leaf in known]
    if len(longer) + len(shorter) != 1:
        return None
    if longer:
        return "", longer[0].removesuffix(name)
    return name.removesuffix(shorter[0]), ""


def _change(
    name: str,
    tensors: Mapping[str, str],
    placed: Mapping[str, Placed],
    config: AdapterConfig,
) -> tuple[Change, list[str]]:
    """What the tensors about one leaf mean, and what is wrong with them."""
    change = Change(whole=tensors.get("whole"))
    kinds = sorted({role.split()[0] for role in tensors if role != "whole"})
    if not kinds:
        return change, []
    if len(kinds) > 1:
        return change, [f"{name}: has factors of a linear layer and of an embedding"]
    a, b = (tensors.get(f"{kinds[0]} {side}") for side in "AB")
    if a is None or b is None:
        return change, [
            f"{a or b}: its counterpart lora_{'A' if a is None else 'B'} is missing"
        ]
    module = name.removesuffix(".weight")
    rank = config.rank(module)
    shape_a, shape_b = placed[a].info.shape, placed[b].info.shape
    if (
        len(shape_a) < 2
        or len(shape_a) != len(shape_b)
        or shape_a[0] != rank
        or shape_b[1:] != (rank, *(1,) * (len(shape_a) - 2))
    ):
        problem = (
            f"{name}: factors B {list(shape_b)} and A {list(shape_a)} do not multiply "
            f"over the rank of {rank} that {adapter_config.NAME} gives"
        )
        return change, [problem]
    # PEFT stores a convolution's factors as convolutions, which turn with nothing.
    turned = kinds == ["embedding"] or (config.fan_in_fan_out and len(shape_a) == 2)
    return replace(change, a=a, b=b, scale=config.scale(module), transposed=turned), []
