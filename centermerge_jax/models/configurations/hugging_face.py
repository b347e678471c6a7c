"""The `config.json` with which Hugging Face's classes load what we write."""

from collections.abc import Collection, Mapping
from typing import Any

from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.configurations.build import Config
from centermerge_jax.models.configurations.vision import OLD_END
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.text import TextConfig
from centermerge_jax.models.vit import ViTConfig

_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_new"}


def settings(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
      config: The network's shape.
      shapes: Shapes of its leaves by our names, which tell an image encoder alone and
        a head from the whole model; empty for that.

    Returns:
      A JSON object.
    """
    if isinstance(config, CLIPConfig):
        return _clip(config, shapes)
    labels = _labels(shapes)
    kind = "ForSequenceClassification" if labels else "Model"
    if isinstance(config, ViTConfig):
        return _dinov2(config, shapes) | labels
    if isinstance(config, BertConfig):
        return _bert(config, kind) | labels
    return _gpt2(config, kind) | labels


def _labels(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Names of the classes of a head: their numbers, as nobody told better ones."""
    for kernel in ("head/kernel", "head/out/kernel"):
        if kernel in shapes:
            names = {str(i): f"LABEL_{i}" for i in range(shapes[kernel][1])}
            numbers = {label: int(i) for i, label in names.items()}
            return {"id2label": names, "label2id": numbers}
    return {}


def _clip(config: CLIPConfig, names: Collection[str]) -> dict[str, Any]:
    vision = {
        "model_type": "clip_vision_model",
        **_vision(config.vision),
        "intermediate_size": round(config.vision.mlp_ratio * config.vision.width),
        "projection_dim": config.embed,
    }
    if names and not any(name.startswith("text/") for name in names):
        projected = "visual/proj/kernel" in names
        name = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
        return {"architectures": [name], **vision}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed,
        "vision_config": vision,
        "text_config": _text(config.text, config.embed),
    }


def _text(config: TextConfig, embed: int) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.epsilon,
        "eos_token_id": OLD_END if config.end_token is None else config.end_token,
        "projection_dim": embed,
    }


def _vision(config: ViTConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "image_size": config.grid * config.patch,
        "patch_size": config.patch,
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.epsilon,
    }


def _dinov2(config: ViTConfig, names: Collection[str]) -> dict[str, Any]:
    # Without layer scale, or a position of the class token, it is no DINOv2 of theirs.
    # The words are those of Hugging Face's ViT then, and serve our own reading.
    if not (config.layer_scale and config.class_position):
        return {"model_type": "vit", **_vision(config)}
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    kind = "ForImageClassification" if "head/kernel" in names else "Model"
    return {
        "architectures": [f"Dinov2{'WithRegisters' if registers else ''}{kind}"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        **_vision(config),
        **registers,
        "mlp_ratio": _whole(config.mlp_ratio),
        "use_mask_token": not names or "extra/embeddings.mask_token" in names,
    }


def _whole(ratio: float) -> int | float:
    return int(ratio) if ratio == int(ratio) else ratio


def _bert(config: BertConfig, kind: str) -> dict[str, Any]:
    # RoBERTa's padding has the number before that of the first position.
    roberta = config.position_offset > 0
    return {
        "architectures": [f"{'Roberta' if roberta else 'Bert'}{kind}"],
        "model_type": "roberta" if roberta else "bert",
        **({"pad_token_id": config.position_offset - 1} if roberta else {}),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context + config.position_offset,
        "type_vocab_size": config.types,
        "hidden_act": "gelu",
        "layer_norm_eps": config.epsilon,
    }


def _gpt2(config: GPT2Config, kind: str) -> dict[str, Any]:
    return {
        "architectures": [f"GPT2{kind}"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.epsilon,
    }
