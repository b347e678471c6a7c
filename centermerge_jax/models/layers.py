"""What transformers are made of, as Flax NNX modules.

Leaf names below a block, with heads as consecutive groups of `width / heads` columns:

    norm1/scale, norm1/bias              (width,), likewise norm2
    attn/q/kernel, attn/q/bias           (width, width), likewise k, v, out
    mlp/fc1/kernel, mlp/fc2/kernel       (width, hidden) and (hidden, width)
    layer_scale1/scale                   (width,), likewise layer_scale2, if any
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError

Activation = Literal["gelu", "quick_gelu"]
"""The exact GELU, or its approximation in OpenAI's CLIP."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class LayerNorm(nnx.LayerNorm):
    """Flax's, with the variance that every reference computes."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        """Starts at scale one and bias zero."""
        # Flax's default, E[x^2] - E[x]^2, is faster and loses digits.
        super().__init__(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


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

    def __call__(self, x: Float[Array, "n tokens d"]) -> Float[Array, "n tokens d"]:
        """Mixes the tokens of each row."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (layer(x).reshape(shape) for layer in (self.q, self.k, self.v))
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


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
    """Attention and MLP, each normalised before and added to what came in."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        hidden: int,
        activation: Activation,
        layer_scale: bool,
        epsilon: float,
        rngs: nnx.Rngs,
    ):
        """Random parameters."""
        self.norm1 = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.attn = Attention(width, heads=heads, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.mlp = MLP(width, hidden=hidden, activation=activation, rngs=rngs)
        self.scaled = layer_scale
        if layer_scale:
            self.layer_scale1 = LayerScale(width)
            self.layer_scale2 = LayerScale(width)

    def __call__(self, x: Float[Array, "n tokens d"]) -> Float[Array, "n tokens d"]:
        """Tokens after both residual branches."""
        y = self.attn(self.norm1(x))
        x = x + (self.layer_scale1(y) if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.layer_scale2(y) if self.scaled else y)
