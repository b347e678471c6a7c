"""`adapter_config.json` of a LoRA adapter: what is read, and what is refused."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centermerge_jax.errors import CheckpointError, listing

NAME = "adapter_config.json"

# Settings under which the model is not the base plus a product of two matrices.
_REFUSED = {
    "use_dora": "DoRA also scales the columns",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "the factors are block-diagonal",
    "monteclora_config": "the factors are random",
    "arrow_config": "the adapter is chosen for each token",
    "alora_invocation_tokens": "the adapter only acts after certain tokens",
    "layer_replication": "the base's layers are repeated",
    "target_parameters": "the factors belong to parameters, not to modules",
    "trainable_token_indices": "single rows of embeddings are replaced",
    "lora_bias": "the factors have a bias",
}
# Initialisations that leave the base as it is; others (pissa, olora, corda, loftq)
# subtract the initial factors from it or round it.
_PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    r"""The part of the configuration that decides about the weights.

    Attributes:
      r: Rank of the factors.
      alpha: What the scale is made of.
      rank_pattern: Other ranks, by regular expressions for the ends of module names.
      alpha_pattern: Other alphas, likewise.
      rank_stabilised: Whether the scale is `alpha / sqrt(r)`.
      fan_in_fan_out: Whether the base's matrices are `[in, out]`.

    Example:
      >>> config = AdapterConfig(8, 16.0, {}, {r"\d\.q": 4.0}, False, False)
      >>> config.scale("h.0.q"), config.scale("h.0.v")
      (0.5, 2.0)
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    fan_in_fan_out: bool

    def rank(self, module: str) -> int:
        """Rank of a module's factors."""
        return _first_match(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """By what the product of a module's factors is multiplied."""
        alpha = _first_match(self.alpha_pattern, module, self.alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _first_match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the name, or all after a dot."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default


def read(folder: Path) -> AdapterConfig:
    """Reads the configuration of an adapter.

    Raises:
      CheckpointError: It is not JSON, not of a LoRA adapter, incomplete, or of a
        variant that is not supported; everything wrong is listed.
    """
    file = folder / NAME
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    if problems := _problems(content):
        raise CheckpointError(
            listing(f"{file}: {{n}} setting{{s}} that cannot be merged", problems)
        )
    return AdapterConfig(
        r=content["r"],
        alpha=float(content["lora_alpha"]),
        rank_pattern=content.get("rank_pattern") or {},
        alpha_pattern={
            pattern: float(alpha)
            for pattern, alpha in (content.get("alpha_pattern") or {}).items()
        },
        rank_stabilised=content.get("use_rslora") or False,
        fan_in_fan_out=content.get("fan_in_fan_out") or False,
    )


def _problems(content: Mapping[str, Any]) -> list[str]:
    kind = content.get("peft_type")
    if kind != "LORA":
        return [f"peft_type is {kind!r}: only LORA adapters are supported"]
    problems = [
        f"{key} is set: {reason}"
        for key, reason in _REFUSED.items()
        if content.get(key) not in (None, False, [], {})
    ]
    start = content.get("init_lora_weights")
    if start not in _PLAIN_INITIALISATIONS:
        problems.append(
            f"init_lora_weights is {start!r}: training began from a changed base; save "
            "it as a plain adapter (path_initial_model_for_weight_conversion in PEFT)"
        )
    problems += [
        f"{key} is {content[key]!r}, neither true nor false"
        for key in ("use_rslora", "fan_in_fan_out")
        if content.get(key) not in (None, False, True)
    ]
    if not _is_rank(content.get("r")):
        problems.append(f"r is {content.get('r')!r}, not a whole number above 0")
    if not _is_alpha(content.get("lora_alpha")):
        problems.append(
            f"lora_alpha is {content.get('lora_alpha')!r}, not a finite number"
        )
    for key, is_valid in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        patterns = content.get(key) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{key} is {patterns!r}, not an object")
            continue
        for pattern, value in patterns.items():
            if not is_valid(value):
                problems.append(f"{key}: {pattern!r} is {value!r}")
            try:
                re.compile(pattern)
            except re.error as error:
                problems.append(f"{key}: {pattern!r}: {error}")
    return problems


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # false for NaN
