"""What a `config.json` says of a network, held against its leaves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from centermerge_jax.models.layers import Activation
from centermerge_jax.models.naming.matching import Match

Settings = Mapping[str, Any]
"""The content of a `config.json`, in Hugging Face's words."""

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_HEADS = {1280: 16}  # ViT-H: the one common width whose heads are not 64 wide


@dataclass
class Reader:
    """Reads what a file says of one network, and collects what is wrong.

    Attributes:
      settings: What the file says, in Hugging Face's words.
      usual: What holds where it says nothing.
    """

    settings: Settings
    usual: Settings
    problems: list[str] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """What is said of a key, or usual."""
        said = self.settings.get(key)
        return self.usual.get(key) if said is None else said

    def heads(self, width: int, key: str = "num_attention_heads") -> int:
        """How many heads share a width."""
        heads = self.get(key)
        if type(heads) is not int or heads < 1 or width % heads:
            self.problems.append(
                f"{key}: is not known for a width of {width}; a config.json beside the "
                "weights has to say it"
                if heads is None
                else f"{key}: is {heads!r}, which does not divide the width, {width}"
            )
            return 1
        return heads

    def activation(self, key: str = "hidden_act") -> Activation:
        """The activation of the MLPs."""
        name = self.get(key)
        if name not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            self.problems.append(f"{key}: is {name!r}, not one of {known}")
        return _ACTIVATIONS.get(name, "gelu")

    def agree(self, **facts: object) -> None:
        """Notes what the file says otherwise than the leaves, or than we can."""
        self.problems += [
            f"{key}: is {self.settings[key]!r}, but {fact!r} in the model"
            for key, fact in facts.items()
            if self.settings.get(key) not in (None, fact, [fact, fact])
        ]


def usual_heads(width: int) -> int | None:
    """Heads of 64 channels each, nearly everywhere."""
    return _HEADS.get(width, None if width % 64 else width // 64)


def our_names(match: Match) -> set[str]:
    """Our names of the leaves."""
    return {name for line in match.found for name in line.ours}
