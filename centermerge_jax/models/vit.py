"""A vision transformer whose parameters are a plain nested dict.

The modules are Flax NNX; the functions below them (`init`, `apply`, `prefix`, `suffix`)
are pure, so that parameters can be merged, differentiated and mapped like any tree.
Leaf names, which `centermerge_jax.views.auto` understands:

    embed/patch/kernel             (patch, patch, 3, width)
    embed/class_token              (width,)
    embed/registers                (registers, width)
    embed/positions                (1 + grid**2, width)
    blocks/3/attn/q/kernel         (width, width), and so on: see `layers`
    norm/scale                     (width,)

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words, 2021.
  Darcet et al., Vision Transformers Need Registers, 2024.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from centermerge_jax.errors import ParameterError
from centermerge_jax.models import bicubic
from centermerge_jax.models.layers import (
    Activation,
    Blocks,
    BlocksConfig,
    LayerNorm,
    bind,
    initialise,
)

Params = Mapping[str, Any]
"""A nested dict of arrays with string keys."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of a vision transformer.

    Attributes:
      patch: Side of a patch in pixels.
      grid: Side, in patches, of the square of stored positions. Images may have any
        other size that is a multiple of `patch`: positions are then resized.
      width: Length of a token.
      depth: Number of blocks.
      heads: Attention heads; divides `width`.
      mlp_ratio: Hidden width of the MLP as a multiple of `width`.
      layer_scale: Whether a learnt vector scales each residual branch (DINOv2).
      epsilon: Added to the variance in LayerNorm.
      class_token: Whether a learnt token leads the sequence and is the feature;
        without it the feature is the mean of the tokens.
      class_position: Whether the first of the stored positions is that of the class
        token; else there are only those of the patches.
      registers: How many learnt tokens, without positions, stand between the class
        token and the patches.
      patch_bias: Whether the patch convolution has a bias (CLIP's has none).
      pre_norm: Whether a LayerNorm stands before the first block (CLIP).
      activation: Between the two layers of the MLP.
    """

    patch: int = 16
    grid: int = 14
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    layer_scale: bool = False
    epsilon: float = 1e-6
    class_token: bool = True
    class_position: bool = True
    registers: int = 0
    patch_bias: bool = True
    pre_norm: bool = False
    activation: Activation = "gelu"

    @property
    def leading(self) -> int:
        """How many tokens stand before those of the patches."""
        return self.class_token + self.registers


class Embed(nnx.Module):
    """Images to tokens: class token, registers, patches with their positions."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        normal = nnx.initializers.normal(0.02)
        tokens = config.grid**2 + (config.class_token and config.class_position)
        self.config = config
        self.patch = nnx.Conv(
            3,
            config.width,
            kernel_size=(config.patch, config.patch),
            strides=(config.patch, config.patch),
            padding="VALID",
            use_bias=config.patch_bias,
            rngs=rngs,
        )
        self.positions = nnx.Param(normal(rngs.params(), (tokens, config.width)))
        if config.class_token:
            self.class_token = nnx.Param(normal(rngs.params(), (config.width,)))
        if config.registers:
            shape = (config.registers, config.width)
            self.register_tokens = nnx.Param(normal(rngs.params(), shape))

    def __call__(
        self, images: Float[Array, "n height width 3"]
    ) -> Float[Array, "n tokens d"]:
        """Tokens of images whose sides are multiples of the patch."""
        patch = self.config.patch
        if images.shape[1] % patch or images.shape[2] % patch:
            raise ParameterError(
                f"image sides must be multiples of the patch, {patch} px: got "
                f"{images.shape[1]} x {images.shape[2]}"
            )
        x = self.patch(images)
        n, rows, cols, width = x.shape
        positions, lead = self.positions[...], []
        if self.config.class_token:
            first = self.class_token[...][None]
            if self.config.class_position:
                first, positions = first + positions[:1], positions[1:]
            lead.append(first)
        if self.config.registers:
            lead.append(self.register_tokens[...])
        table = positions.reshape(self.config.grid, self.config.grid, width)
        # Models with registers were trained with positions that are smoothed.
        smooth = self.config.registers > 0
        table = bicubic.resize(table, rows, cols, smooth=smooth)
        x = (x + table[None]).reshape(n, -1, width)
        before = [jnp.broadcast_to(part, (n, *part.shape)) for part in lead]
        return jnp.concatenate([*before, x], axis=1)


class VisionTransformer(nnx.Module):
    """The whole network, for those who would rather hold a module than a tree."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        width = config.width
        self.config = config
        self.embed = Embed(config, rngs=rngs)
        if config.pre_norm:
            self.pre_norm = LayerNorm(width, epsilon=config.epsilon)
        stack = BlocksConfig(
            width=width,
            depth=config.depth,
            heads=config.heads,
            hidden=round(config.mlp_ratio * width),
            activation=config.activation,
            epsilon=config.epsilon,
            layer_scale=config.layer_scale,
        )
        self.blocks = Blocks(stack, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=config.epsilon)

    def __call__(self, images: Float[Array, "n height width 3"]) -> Float[Array, "n d"]:
        """Features of images."""
        return self.suffix(self.prefix(images, blocks=0), blocks=0)

    def prefix(
        self, images: Float[Array, "n height width 3"], *, blocks: int
    ) -> Float[Array, "n tokens d"]:
        """Tokens after the first `blocks` blocks."""
        x = self.embed(images)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        return self.blocks(x, stop=blocks)

    def suffix(
        self, tokens: Float[Array, "n tokens d"], *, blocks: int
    ) -> Float[Array, "n d"]:
        """Features from the tokens that `prefix` gave for as many `blocks`."""
        x = self.norm(self.blocks(tokens, start=blocks))
        return x[:, 0] if self.config.class_token else self._mean(x)

    def class_and_mean(
        self, images: Float[Array, "n height width 3"]
    ) -> Float[Array, "n twice_d"]:
        """The class token, then the mean of the patches."""
        x = self.norm(self.blocks(self.prefix(images, blocks=0)))
        return jnp.concatenate([x[:, 0], self._mean(x)], axis=-1)

    def _mean(self, tokens: Float[Array, "n tokens d"]) -> Float[Array, "n d"]:
        return tokens[:, self.config.leading :].mean(axis=1)


def init(config: ViTConfig, key: PRNGKeyArray) -> Params:
    """Random parameters of a network.

    Args:
      config: Its shape.
      key: Typed random key.

    Returns:
      float32 arrays in a nested dict.

    Example:
      >>> import jax
      >>> config = ViTConfig(patch=2, grid=2, width=8, depth=1, heads=2)
      >>> params = init(config, jax.random.key(0))
      >>> params["blocks"]["0"]["attn"]["q"]["kernel"].shape
      (8, 8)
    """
    return initialise(VisionTransformer, config, key)


def apply(
    params: Params, images: Float[Array, "n height width 3"], *, config: ViTConfig
) -> Float[Array, "n d"]:
    """Features of images: the class token after the last LayerNorm.

    Args:
      params: As from `init`.
      images: Normalised as the parameters want; sides are multiples of the patch.
      config: The network's shape.

    Returns:
      One feature vector per image, in the parameters' type.

    Raises:
      ParameterError: An image side is not a multiple of the patch.
    """
    return _bind(params, config)(images)


def class_and_mean(
    params: Params, images: Float[Array, "n height width 3"], *, config: ViTConfig
) -> Float[Array, "n twice_d"]:
    """What DINOv2's linear heads see: the class token, then the mean of the patches.

    Args:
      params: As from `init`.
      images: As for `apply`.
      config: The network's shape, with a class token.

    Returns:
      Both after the last LayerNorm, in a vector of twice the width.

    Raises:
      ParameterError: An image side is not a multiple of the patch.

    References:
      Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023,
      B.3.
    """
    return _bind(params, config).class_and_mean(images)


def prefix(
    params: Params,
    images: Float[Array, "n height width 3"],
    *,
    blocks: int,
    config: ViTConfig,
) -> Float[Array, "n tokens d"]:
    """Tokens after the embedding and the first `blocks` blocks.

    Where those blocks are frozen, the tokens can be computed once, kept, and shared by
    training and every evaluation: `apply` is `suffix` of `prefix` for any `blocks`.

    Args:
      params: As from `init`.
      images: As for `apply`.
      blocks: From 0 (the embedding alone) to the depth.
      config: The network's shape.

    Returns:
      One row of tokens per image, the class token first.

    Raises:
      ParameterError: `blocks` or an image side does not fit.
    """
    return _bind(params, config).prefix(images, blocks=blocks)


def suffix(
    params: Params,
    tokens: Float[Array, "n tokens d"],
    *,
    blocks: int,
    config: ViTConfig,
) -> Float[Array, "n d"]:
    """Features from the tokens of `prefix`; the first `blocks` blocks are not read.

    Args:
      params: As from `init`, all of them.
      tokens: From `prefix` with the same `blocks`.
      blocks: How many blocks the tokens have been through.
      config: The network's shape.

    Returns:
      One feature vector per image.

    Raises:
      ParameterError: `blocks` is not between 0 and the depth.
    """
    return _bind(params, config).suffix(tokens, blocks=blocks)


def split(params: Params, *, blocks: int) -> tuple[Params, Params]:
    """Parameters that `prefix` reads, and those that `suffix` reads.

    Example:
      >>> import jax
      >>> config = ViTConfig(patch=2, grid=2, width=8, depth=3, heads=2)
      >>> frozen, trained = split(init(config, jax.random.key(0)), blocks=1)
      >>> sorted(frozen["blocks"]), sorted(trained["blocks"]), sorted(trained)
      (['0'], ['1', '2'], ['blocks', 'norm'])
    """
    frozen = {name: part for name, part in params.items() if name != "norm"}
    early = {str(i) for i in range(blocks)}
    inside = {i: block for i, block in params["blocks"].items() if i in early}
    behind = {i: block for i, block in params["blocks"].items() if i not in early}
    return {**frozen, "blocks": inside}, {"blocks": behind, "norm": params["norm"]}


def join(frozen: Params, trained: Params) -> Params:
    """The parameters that `split` took apart."""
    return {**frozen, **trained, "blocks": {**frozen["blocks"], **trained["blocks"]}}


def _bind(params: Params, config: ViTConfig) -> VisionTransformer:
    return bind(VisionTransformer, config, params)
