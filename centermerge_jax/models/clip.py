"""CLIP: an image encoder and a text encoder into one space.

Leaf names:

    visual/...                     the vision transformer: see `vit`
    visual/proj/kernel             (width, embed)
    text/...                       the text tower: see `text`
    text/proj/kernel               (text width, embed)
    logit_scale                    (), the natural logarithm of the factor on cosines

What is merged is the image encoder, whose leaves are those below `visual/`.

References:
  Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
  2021.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from centermerge_jax.models.layers import bind, initialise
from centermerge_jax.models.text import Ids, TextConfig, TextTransformer
from centermerge_jax.models.vit import Params, VisionTransformer, ViTConfig


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The shape of a CLIP.

    Attributes:
      vision: Of the image encoder.
      text: Of the text encoder.
      embed: Length of the features that they share.
    """

    vision: ViTConfig
    text: TextConfig
    embed: int


def _openai(patch: int, width: int, depth: int, text: int) -> CLIPConfig:
    vision = ViTConfig(
        patch=patch,
        grid=224 // patch,
        width=width,
        depth=depth,
        heads=width // 64,
        epsilon=1e-5,
        patch_bias=False,
        pre_norm=True,
        activation="quick_gelu",
    )
    return CLIPConfig(
        vision=vision, text=TextConfig(width=text, heads=text // 64), embed=text
    )


VIT_B_32 = _openai(32, 768, 12, 512)
"""OpenAI's CLIP ViT-B/32."""

VIT_B_16 = _openai(16, 768, 12, 512)
"""OpenAI's CLIP ViT-B/16."""

VIT_L_14 = _openai(14, 1024, 24, 768)
"""OpenAI's CLIP ViT-L/14."""


class ImageEncoder(VisionTransformer):
    """A vision transformer and a projection."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        super().__init__(config.vision, rngs=rngs)
        self.proj = _projection(config.vision.width, config.embed, rngs)

    def __call__(self, images: Float[Array, "n height width 3"]) -> Float[Array, "n d"]:
        """Features of images."""
        return self.proj(super().__call__(images))


class TextEncoder(TextTransformer):
    """A text tower and a projection."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        super().__init__(config.text, rngs=rngs)
        self.proj = _projection(config.text.width, config.embed, rngs)

    def __call__(self, ids: Ids) -> Float[Array, "n d"]:
        """Features of texts."""
        return self.proj(super().__call__(ids))


def _projection(width: int, embed: int, rngs: nnx.Rngs) -> nnx.Linear:
    initial = nnx.initializers.normal(width**-0.5)
    return nnx.Linear(width, embed, use_bias=False, kernel_init=initial, rngs=rngs)


def init(config: CLIPConfig, key: PRNGKeyArray) -> Params:
    """Random parameters, as float32 arrays in a nested dict.

    Args:
      config: The shape.
      key: Typed random key.

    Example:
      >>> vision = ViTConfig(patch=2, grid=2, width=8, depth=1, heads=2)
      >>> text = TextConfig(vocabulary=9, context=5, width=8, depth=1, heads=2)
      >>> config = CLIPConfig(vision=vision, text=text, embed=4)
      >>> params = init(config, jax.random.key(0))
      >>> image_features(params, jnp.ones((1, 4, 4, 3)), config=config).shape
      (1, 4)
    """
    image, text = jax.random.split(key)
    return {
        "visual": initialise(ImageEncoder, config, image),
        "text": initialise(TextEncoder, config, text),
        "logit_scale": jnp.float32(math.log(1 / 0.07)),
    }


def image_features(
    params: Params,
    images: Float[Array, "n height width 3"],
    *,
    config: CLIPConfig,
) -> Float[Array, "n {config.embed}"]:
    """Features of images, not normalised.

    Args:
      params: Of which only those below `visual/` are read.
      images: Preprocessed as for CLIP; sides are multiples of the patch.
      config: The shape.

    Raises:
      ParameterError: An image side is not a multiple of the patch.
    """
    return bind(ImageEncoder, config, params["visual"])(images)


def text_features(
    params: Params, ids: Ids, *, config: CLIPConfig
) -> Float[Array, "n {config.embed}"]:
    """Features of texts, not normalised.

    Args:
      params: Of which only those below `text/` are read.
      ids: As for `text.apply`.
      config: The shape.

    Raises:
      ParameterError: Texts are longer than the context.
    """
    return bind(TextEncoder, config, params["text"])(ids)
