"""The shapes of CLIP and of vision transformers."""

import math
from typing import Any

from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.configurations.reader import (
    Reader,
    Settings,
    our_names,
    usual_heads,
)
from centermerge_jax.models.naming.matching import Match
from centermerge_jax.models.text import TextConfig
from centermerge_jax.models.vit import ViTConfig

OLD_END = 2
"""What old files say for the last token of CLIP's text; it means "the highest id"."""


def clip(match: Match, settings: Settings) -> tuple[CLIPConfig, list[str]]:
    """The shape of a CLIP, or of its image encoder alone, and what is wrong."""
    if "model_cfg" in settings:
        settings = _of_openclip(settings["model_cfg"])
    vision, problems = _image_encoder(match, settings)
    embed = match.lengths.get("embed") or settings.get("projection_dim") or 512
    if match.depths.get("text/blocks"):
        text, more = _text_encoder(match, settings)
        problems += more
    else:
        # Nobody reads it. OpenAI's are as wide as the space they share with images.
        text = TextConfig(width=embed, heads=max(1, embed // 64))
    return CLIPConfig(vision=vision, text=text, embed=embed), problems


def _image_encoder(match: Match, settings: Settings) -> tuple[ViTConfig, list[str]]:
    width = match.lengths["width"]
    # An image encoder alone has its settings at the top.
    said = {**settings, **_tower(settings, "vision_config")}
    reader = Reader(said, _usual(width, 12 if "model_type" in settings else None))
    config = ViTConfig(
        **_lengths(match, "visual", reader),
        heads=reader.heads(width),
        epsilon=reader.get("layer_norm_eps"),
        activation=reader.activation(),
        patch_bias=False,
        pre_norm=True,
    )
    return config, reader.problems


def _text_encoder(match: Match, settings: Settings) -> tuple[TextConfig, list[str]]:
    lengths, depth = match.lengths, match.depths["text/blocks"]
    width, hidden = lengths["text_width"], lengths["text_hidden"]
    hugging = "model_type" in settings
    reader = Reader(
        _tower(settings, "text_config"), _usual(width, 8 if hugging else None)
    )
    reader.agree(
        hidden_size=width,
        num_hidden_layers=depth,
        intermediate_size=hidden,
        vocab_size=lengths["vocabulary"],
        max_position_embeddings=lengths["context"],
    )
    if hidden != 4 * width:
        reader.problems.append(f"the MLP is {hidden} wide, not 4 times {width}")
    end = reader.get("eos_token_id") if hugging else None
    config = TextConfig(
        vocabulary=lengths["vocabulary"],
        context=lengths["context"],
        width=width,
        depth=depth,
        heads=reader.heads(width),
        activation=reader.activation(),
        epsilon=reader.get("layer_norm_eps"),
        end_token=None if end == OLD_END else end,
    )
    return config, [f"text: {line}" for line in reader.problems]


def vit(match: Match, settings: Settings) -> tuple[ViTConfig, list[str]]:
    """The shape of a vision transformer, and what is wrong."""
    width = match.lengths["width"]
    names = our_names(match)
    hugging = "model_type" in settings
    usual = {
        "num_attention_heads": 12 if hugging else usual_heads(width),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    # timm's own file speaks of other things.
    reader = Reader(settings if hugging else {}, usual)
    if "norm/scale" not in names:
        reader.problems.append(
            "norm/scale: is missing; models that take the mean of the tokens and then "
            "normalise it (fc_norm) can be converted and merged, but not run"
        )
    config = ViTConfig(
        **_lengths(match, "", reader),
        heads=reader.heads(width),
        epsilon=reader.get("layer_norm_eps"),
        activation=reader.activation(),
        layer_scale="blocks/0/layer_scale1/scale" in names,
        patch_bias="embed/patch/bias" in names,
        pre_norm="pre_norm/scale" in names,
    )
    return config, reader.problems


def _lengths(match: Match, tower: str, reader: Reader) -> dict[str, Any]:
    """What leaves tell of a vision transformer."""
    lengths = match.lengths
    names = our_names(match)
    above = f"{tower}/" if tower else ""
    class_token = f"{above}embed/class_token" in names
    depth = match.depths[f"{above}blocks"]
    # timm's models with registers store no position of the class token.
    lead = int(class_token and not _is_square(lengths["tokens"]))
    grid = math.isqrt(lengths["tokens"] - lead)
    if not _is_square(lengths["tokens"] - lead):
        reader.problems.append(
            f"{above}embed/positions: {lengths['tokens'] - lead} positions are no "
            "square of patches"
        )
    reader.agree(
        hidden_size=lengths["width"],
        num_hidden_layers=depth,
        intermediate_size=lengths["hidden"],
        patch_size=lengths["patch"],
        num_channels=3,
        use_swiglu_ffn=False,
        num_register_tokens=lengths.get("registers", 0),
    )
    return {
        "patch": lengths["patch"],
        "grid": grid,
        "width": lengths["width"],
        "depth": depth,
        "mlp_ratio": lengths["hidden"] / lengths["width"],
        "class_token": class_token,
        "class_position": bool(lead) or not class_token,
        "registers": lengths.get("registers", 0),
    }


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def _usual(width: int, heads: int | None) -> Settings:
    """What OpenAI's models have.

    Args:
      width: Of the tower.
      heads: What the class at Hugging Face takes where a file does not say; None
        without a file.
    """
    return {
        "num_attention_heads": heads or usual_heads(width),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    }


def _tower(settings: Settings, key: str) -> Settings:
    """A tower's settings; old files hold them twice, and the second copy counts."""
    return {**(settings.get(key) or {}), **(settings.get(f"{key}_dict") or {})}


def _of_openclip(model: Settings) -> Settings:
    """open_clip's configuration in Hugging Face's words."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return {
        "vision_config": {
            "hidden_size": vision.get("width"),
            "num_hidden_layers": vision.get("layers"),
            "patch_size": vision.get("patch_size"),
            "num_attention_heads": _quotient(vision, "width", "head_width"),
            "hidden_act": activation,
        },
        "text_config": {
            "hidden_size": text.get("width"),
            "num_hidden_layers": text.get("layers"),
            "vocab_size": text.get("vocab_size"),
            "max_position_embeddings": text.get("context_length"),
            "num_attention_heads": text.get("heads"),
            "hidden_act": activation,
        },
    }


def _quotient(settings: Settings, length: str, part: str) -> int | None:
    whole = settings.get(length)
    return None if whole is None else whole // settings.get(part, 64)
