"""A vision transformer whose parameters are a plain nested dict.

The modules are Flax NNX; the functions below them (`init`, `apply`, `prefix`, `suffix`)
are pure, so that parameters can be merged, differentiated and mapped like any tree.
Leaf names, which `centermerge_jax.views.auto` understands:

    embed/patch/kernel             (patch, patch, 3, width)
    embed/class_token              (width,)
    embed/positions                (1 + grid**2, width)
    blocks/3/norm1/scale           (width,)
    blocks/3/attn/q/kernel         (width, width), likewise k, v, out: heads are
                                   consecutive groups of width / heads columns
    blocks/3/layer_scale1/scale    (width,)
    blocks/3/mlp/fc1/kernel        (width, mlp_ratio * width)
    norm/scale                     (width,)

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words, 2021.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from centermerge_jax.errors import ParameterError

Params = Mapping[str, Any]
"""A nested dict of arrays with string keys."""

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


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
    patch_bias: bool = True
    pre_norm: bool = False
    activation: Literal["gelu", "quick_gelu"] = "gelu"

    def __post_init__(self):
        if self.width % self.heads:
            raise ParameterError(
                f"heads must divide width: {self.heads} heads, width {self.width}"
            )


def bicubic(
    source: int, target: int, *, a: float = -0.75
) -> Float[np.ndarray, "target source"]:
    r"""The matrix that resizes a line of `source` samples to `target` by cubics.

    Row i has Keys' kernel with parameter `a` around `(i + 1/2) source/target - 1/2`;
    samples outside are those at the edge, and shrinking does not smooth.

    Args:
      source: Number of samples given.
      target: Number of samples wanted.
      a: Slope of the kernel at distance 1. PyTorch and ONNX have -0.75;
        `jax.image.resize` has -0.5, which is why it cannot be used here.

    Returns:
      float32 weights, each row summing to one.

    Example:
      >>> bicubic(4, 4).tolist() == np.eye(4).tolist()
      True

    References:
      Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, eq. 15.
    """
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        index = np.floor(centres).astype(int) + tap
        x = np.abs(centres - index)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        edge = np.clip(index, 0, source - 1)
        np.add.at(matrix, (np.arange(target), edge), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


class Embed(nnx.Module):
    """Images to tokens: patches, class token, positions."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        normal = nnx.initializers.normal(0.02)
        tokens = config.grid**2 + config.class_token
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

    def __call__(
        self, images: Float[Array, "n height width 3"]
    ) -> Float[Array, "n tokens d"]:
        """Tokens of images whose sides are multiples of the patch."""
        patch, lead = self.config.patch, int(self.config.class_token)
        if images.shape[1] % patch or images.shape[2] % patch:
            raise ParameterError(
                f"image sides must be multiples of the patch, {patch} px: got "
                f"{images.shape[1]} x {images.shape[2]}"
            )
        x = self.patch(images)
        n, rows, cols, width = x.shape
        positions = self.positions[...]
        x = x.reshape(n, rows * cols, width) + self._resized(
            positions[lead:], rows, cols
        )
        if not lead:
            return x
        first = self.class_token[...] + positions[0]
        return jnp.concatenate([jnp.broadcast_to(first, (n, 1, width)), x], axis=1)

    def _resized(
        self, positions: Float[Array, "stored d"], rows: int, cols: int
    ) -> Float[Array, "1 tokens d"]:
        grid = self.config.grid
        table = positions.reshape(grid, grid, -1)
        if (rows, cols) != (grid, grid):
            table = jnp.einsum(
                "ri,cj,ijd->rcd",
                bicubic(grid, rows),
                bicubic(grid, cols),
                table,
                precision=jax.lax.Precision.HIGHEST,
            )
        return table.reshape(1, rows * cols, -1)


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        self.heads = config.heads
        self.q = nnx.Linear(config.width, config.width, rngs=rngs)
        self.k = nnx.Linear(config.width, config.width, rngs=rngs)
        self.v = nnx.Linear(config.width, config.width, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "n tokens d"]) -> Float[Array, "n tokens d"]:
        """Mixes the tokens of each image."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (layer(x).reshape(shape) for layer in (self.q, self.k, self.v))
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class MLP(nnx.Module):
    """Two dense layers with an activation between them."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        hidden = round(config.mlp_ratio * config.width)
        self.activation = config.activation
        self.fc1 = nnx.Linear(config.width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "n tokens d"]) -> Float[Array, "n tokens d"]:
        """Transforms each token by itself."""
        return self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))


class LayerScale(nnx.Module):
    """A learnt factor per channel of a residual branch."""

    def __init__(self, width: int):
        """Starts at one."""
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "n tokens d"]) -> Float[Array, "n tokens d"]:
        """Scales each channel."""
        return x * self.scale[...][None, None]


class Block(nnx.Module):
    """Attention and MLP, each normalised before and added to what came in."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        self.norm1 = _norm(config, rngs)
        self.attn = Attention(config, rngs=rngs)
        self.norm2 = _norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.scaled = config.layer_scale
        if config.layer_scale:
            self.layer_scale1 = LayerScale(config.width)
            self.layer_scale2 = LayerScale(config.width)

    def __call__(self, x: Float[Array, "n tokens d"]) -> Float[Array, "n tokens d"]:
        """Tokens after both residual branches."""
        y = self.attn(self.norm1(x))
        x = x + (self.layer_scale1(y) if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.layer_scale2(y) if self.scaled else y)


class VisionTransformer(nnx.Module):
    """The whole network, for those who would rather hold a module than a tree."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        self.config = config
        self.embed = Embed(config, rngs=rngs)
        if config.pre_norm:
            self.pre_norm = _norm(config, rngs)
        blocks = {str(i): Block(config, rngs=rngs) for i in range(config.depth)}
        self.blocks = nnx.Dict(blocks)
        self.norm = _norm(config, rngs)

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
        return self._through(x, 0, blocks)

    def suffix(
        self, tokens: Float[Array, "n tokens d"], *, blocks: int
    ) -> Float[Array, "n d"]:
        """Features from the tokens that `prefix` gave for as many `blocks`."""
        x = self.norm(self._through(tokens, blocks, self.config.depth))
        return x[:, 0] if self.config.class_token else x.mean(axis=1)

    def _through(
        self, x: Float[Array, "n tokens d"], start: int, stop: int
    ) -> Float[Array, "n tokens d"]:
        if not 0 <= start <= stop <= self.config.depth:
            raise ParameterError(
                f"blocks must be between 0 and {self.config.depth}, the depth: got "
                f"{stop if start == 0 else start}"
            )
        for i in range(start, stop):
            x = self.blocks[str(i)](x)
        return x


def init(config: ViTConfig, key: PRNGKeyArray) -> Params:
    """Random parameters of a network.

    Args:
      config: Its shape.
      key: Typed random key.

    Returns:
      float32 arrays in a nested dict.

    Example:
      >>> config = ViTConfig(patch=2, grid=2, width=8, depth=1, heads=2)
      >>> params = init(config, jax.random.key(0))
      >>> params["blocks"]["0"]["attn"]["q"]["kernel"].shape
      (8, 8)
    """
    return nnx.to_pure_dict(nnx.state(VisionTransformer(config, rngs=nnx.Rngs(key))))


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


def _norm(config: ViTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 costs digits, and no reference uses it.
    return nnx.LayerNorm(
        config.width, epsilon=config.epsilon, use_fast_variance=False, rngs=rngs
    )


def _bind(params: Params, config: ViTConfig) -> VisionTransformer:
    return nnx.merge(_graph(config), params)


@functools.cache
def _graph(config: ViTConfig) -> nnx.GraphDef:
    def build() -> VisionTransformer:
        return VisionTransformer(config, rngs=nnx.Rngs(0))

    return nnx.graphdef(nnx.eval_shape(build))
