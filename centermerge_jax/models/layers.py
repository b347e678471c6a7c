"""What transformers are made of, as Flax NNX modules.

Parameters may be narrow (bfloat16): products are then in that type, while LayerNorm and
softmax compute in float32. Leaf names below a block, with heads as consecutive groups
of `width / heads` columns:

    norm1/scale, norm1/bias              (width,), likewise norm2
    attn/q/kernel, attn/q/bias           (width, width), likewise k, v, out
    mlp/fc1/kernel, mlp/fc2/kernel       (width, hidden) and (hidden, width)
    layer_scale1/scale                   (width,), likewise layer_scale2, if any
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from centermerge_jax.errors import ParameterError
from centermerge_jax.trees import compute_dtype

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
"""The exact GELU, its approximation in OpenAI's CLIP, or that in GPT-2."""

Mask = Bool[Array, "#n #heads #queries keys"]
"""Which tokens (keys) each token (query) sees; each sees one at least."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """A stack of transformer blocks.

    Attributes:
      width: Length of a token.
      depth: Number of blocks.
      heads: Attention heads; divides `width`.
      hidden: Width between the two layers of the MLP.
      activation: Between them.
      epsilon: Added to the variance in LayerNorm.
      layer_scale: Whether a learnt vector scales each residual branch (DINOv2).
      norm_first: Whether branches are normalised before (ViT, CLIP, GPT-2), or their
        sums after (BERT).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    layer_scale: bool = False
    norm_first: bool = True


class LayerNorm(nnx.Module):
    """Tokens of mean zero and variance one, scaled and shifted by channel."""

    def __init__(self, width: int, *, epsilon: float):
        """Starts at scale one and bias zero."""
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Normalises each token, in float32 at least."""
        wide = x.astype(compute_dtype(x.dtype))
        scale, bias = self.scale[...], self.bias[...]
        shape = (1,) * (x.ndim - 1) + scale.shape
        y = wide - wide.mean(axis=-1, keepdims=True)
        # Flax's default for the variance, E[x^2] - E[x]^2, loses digits.
        y = y * jax.lax.rsqrt((y * y).mean(axis=-1, keepdims=True) + self.epsilon)
        y = y * scale.astype(y.dtype).reshape(shape)
        return (y + bias.astype(y.dtype).reshape(shape)).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, *, heads: int, rngs: nnx.Rngs):
        """Random parameters; `heads` has to divide `width`."""
        if width % heads:
            raise ParameterError(
                f"heads must divide width: {heads} heads, width {width}"
            )
        self.heads = heads
        self.q = nnx.Linear(width, width, rngs=rngs)
        self.k = nnx.Linear(width, width, rngs=rngs)
        self.v = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n tokens d"], mask: Mask | None = None
    ) -> Float[Array, "n tokens d"]:
        """Mixes the tokens of each row, as far as the mask lets them be seen."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (layer(x).reshape(shape) for layer in (self.q, self.k, self.v))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self.out(mixed.reshape(x.shape))


class MLP(nnx.Module):
    """Two dense layers with an activation between them."""

    def __init__(
        self, width: int, *, hidden: int, activation: Activation, rngs: nnx.Rngs
    ):
        """Random parameters."""
        self.activation = activation
        self.fc1 = nnx.Linear(width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, rngs=rngs)

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
    """Attention and MLP, each with a norm and added to what came in."""

    def __init__(self, config: BlocksConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        width, epsilon = config.width, config.epsilon
        self.config = config
        self.norm1 = LayerNorm(width, epsilon=epsilon)
        self.attn = Attention(width, heads=config.heads, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=epsilon)
        self.mlp = MLP(
            width, hidden=config.hidden, activation=config.activation, rngs=rngs
        )
        if config.layer_scale:
            self.layer_scale1 = LayerScale(width)
            self.layer_scale2 = LayerScale(width)

    def __call__(
        self, x: Float[Array, "n tokens d"], mask: Mask | None = None
    ) -> Float[Array, "n tokens d"]:
        """Tokens after both residual branches."""
        if not self.config.norm_first:
            x = self.norm1(x + self.attn(x, mask))
            return self.norm2(x + self.mlp(x))
        scaled = self.config.layer_scale
        y = self.attn(self.norm1(x), mask)
        x = x + (self.layer_scale1(y) if scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.layer_scale2(y) if scaled else y)


class Blocks(nnx.Dict):
    """Blocks one after the other, by their numbers as strings."""

    def __init__(self, config: BlocksConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        super().__init__(
            {str(i): Block(config, rngs=rngs) for i in range(config.depth)}
        )

    def __call__(
        self,
        x: Float[Array, "n tokens d"],
        mask: Mask | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> Float[Array, "n tokens d"]:
        """Tokens after the blocks from `start` to before `stop`; all by default.

        Raises:
          ParameterError: They are no range of blocks.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ParameterError(
                f"blocks must be between 0 and {len(self)}, the depth: got "
                f"{stop if start == 0 else start}"
            )
        for i in range(start, stop):
            x = self[str(i)](x, mask)
        return x


def causal(tokens: int) -> Bool[Array, "1 1 {tokens} {tokens}"]:
    """The mask under which each token sees itself and those before it.

    Example:
      >>> causal(3)[0, 0].astype(int).tolist()
      [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))


Module = TypeVar("Module", bound=nnx.Module)


def initialise(
    kind: Callable[..., nnx.Module], config: Any, key: PRNGKeyArray
) -> dict[str, Any]:
    """Random parameters of a module, as float32 arrays in a nested dict."""
    return nnx.to_pure_dict(nnx.state(kind(config, rngs=nnx.Rngs(key))))


def bind(kind: Callable[..., Module], config: Any, params: Any) -> Module:
    """The module `kind(config, rngs=...)` with these parameters."""
    return nnx.merge(_graph(kind, config), params)


@functools.cache
def _graph(kind: Callable[..., nnx.Module], config: Any) -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
