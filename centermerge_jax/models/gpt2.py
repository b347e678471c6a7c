"""GPT-2: a causal transformer over text.

Leaf names:

    embed/tokens/embedding         (vocabulary, width)
    embed/positions                (context, width)
    blocks/3/attn/q/kernel         (width, width), and so on: see `layers`
    norm/scale                     (width,)

References:
  Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from centermerge_jax.models.bert import TokenMask
from centermerge_jax.models.layers import (
    Blocks,
    BlocksConfig,
    LayerNorm,
    Mask,
    bind,
    causal,
    initialise,
)
from centermerge_jax.models.text import Ids, TokenEmbed
from centermerge_jax.models.vit import Params


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The shape of a GPT-2.

    Attributes:
      vocabulary: Number of tokens.
      context: Longest text, in tokens.
      width: Length of a token.
      depth: Number of blocks.
      heads: Attention heads; divides `width`.
      epsilon: Added to the variance in LayerNorm.
    """

    vocabulary: int = 50257
    context: int = 1024
    width: int = 768
    depth: int = 12
    heads: int = 12
    epsilon: float = 1e-5


class GPT2(nnx.Module):
    """The whole network without a head."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        """Random parameters."""
        self.embed = TokenEmbed(
            config.vocabulary, context=config.context, width=config.width, rngs=rngs
        )
        stack = BlocksConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=4 * config.width,
            activation="gelu_tanh",
            epsilon=config.epsilon,
        )
        self.blocks = Blocks(stack, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)

    def __call__(self, ids: Ids, seen: Mask) -> Float[Array, "n tokens d"]:
        """Tokens after the last LayerNorm."""
        return self.norm(self.blocks(self.embed(ids), seen))


def init(config: GPT2Config, key: PRNGKeyArray) -> Params:
    """Random parameters, as float32 arrays in a nested dict."""
    return initialise(GPT2, config, key)


def apply(
    params: Params, ids: Ids, mask: TokenMask | None = None, *, config: GPT2Config
) -> Float[Array, "n tokens d"]:
    """Tokens after the last LayerNorm.

    Args:
      params: As from `init`.
      ids: Tokens.
      mask: Which of them are text; all by default. Padding stands behind the text:
        positions are counted from the first token.
      config: The network's shape.

    Raises:
      ParameterError: Texts are longer than the context.

    Example:
      >>> import jax
      >>> config = GPT2Config(vocabulary=9, context=5, width=8, depth=1, heads=2)
      >>> params = init(config, jax.random.key(0))
      >>> apply(params, jnp.array([[1, 8]]), config=config).shape
      (1, 2, 8)
    """
    seen = causal(ids.shape[1])
    if mask is not None:
        seen = seen & mask.astype(bool)[:, None, None, :]
    return bind(GPT2, config, params)(ids, seen)


def last_token(
    hidden: Float[Array, "n tokens d"], mask: TokenMask
) -> Float[Array, "n d"]:
    """The last token that is text: the feature for classification.

    Example:
      >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
      >>> last_token(hidden, jnp.array([[1, 1, 0]]))
      Array([[3.]], dtype=float32)
    """
    tokens = hidden.shape[1]
    last = tokens - 1 - jnp.argmax(mask.astype(bool)[:, ::-1], axis=1)
    return hidden[jnp.arange(len(hidden)), last]
