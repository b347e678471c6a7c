"""The text tower of CLIP: a causal transformer, read off at the end of the text.

Leaf names:

    embed/tokens/embedding         (vocabulary, width)
    embed/positions                (context, width)
    blocks/3/attn/q/kernel         (width, width), and so on: see `layers`
    norm/scale                     (width,)

References:
  Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
  2021, section 2.4.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from centermerge_jax.errors import ParameterError
from centermerge_jax.models.layers import (
    Activation,
    Blocks,
    BlocksConfig,
    LayerNorm,
    bind,
    causal,
    initialise,
)
from centermerge_jax.models.vit import Params

Ids = Int[Array, "n tokens"]
"""Numbers of tokens in the vocabulary; one outside of it gives NaN."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shape of a text tower.

    Attributes:
      vocabulary: Number of tokens.
      context: Longest text, in tokens.
      width: Length of a token.
      depth: Number of blocks.
      heads: Attention heads; divides `width`.
      activation: Between the two layers of the MLP.
      epsilon: Added to the variance in LayerNorm.
      end_token: A text ends at the first token of this number; None: at the one with
        the highest number, as OpenAI's code and open_clip have it. For texts that hold
        the end token, which has the highest number there, they are the same.
    """

    vocabulary: int = 49408
    context: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    end_token: int | None = None


class Vectors(nnx.Module):
    """A table of vectors that are looked up by their numbers."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        """Random parameters."""
        drawn = nnx.initializers.normal(0.02)(rngs.params(), (count, width))
        self.embedding = nnx.Param(drawn)

    def __call__(self, ids: Ids) -> Float[Array, "n tokens d"]:
        """Vectors of these numbers; NaN for those that the table has not."""
        table = self.embedding[...]
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)


class TokenEmbed(nnx.Module):
    """Tokens to vectors, with their positions."""

    def __init__(self, vocabulary: int, *, context: int, width: int, rngs: nnx.Rngs):
        """Random parameters."""
        normal = nnx.initializers.normal(0.02)
        self.context = context
        self.tokens = Vectors(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (context, width)))

    def __call__(self, ids: Ids) -> Float[Array, "n tokens d"]:
        """Vectors of tokens.

        Raises:
          ParameterError: There are more tokens than positions.
        """
        length = ids.shape[1]
        if length > self.context:
            raise ParameterError(
                f"texts have at most {self.context} tokens: got {length}"
            )
        return self.tokens(ids) + self.positions[...][None, :length]


class TextTransformer(nnx.Module):
    """The whole tower, without the projection into the space of images."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        self.config = config
        self.embed = TokenEmbed(
            config.vocabulary, context=config.context, width=config.width, rngs=rngs
        )
        stack = BlocksConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=4 * config.width,
            activation=config.activation,
            epsilon=config.epsilon,
        )
        self.blocks = Blocks(stack, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)

    def __call__(self, ids: Ids) -> Float[Array, "n d"]:
        """Features of texts."""
        x = self.blocks(self.embed(ids), causal(ids.shape[1]))
        end = self.config.end_token
        if end is None:
            at_end = jnp.argmax(ids, axis=1)
            return self.norm(x[jnp.arange(len(x)), at_end])
        ends = ids == end
        features = self.norm(x[jnp.arange(len(x)), jnp.argmax(ends, axis=1)])
        # A text without an end has no feature: better NaN than that of another token.
        return jnp.where(ends.any(axis=1)[:, None], features, jnp.nan)


def init(config: TextConfig, key: PRNGKeyArray) -> Params:
    """Random parameters of a text tower, as float32 arrays in a nested dict."""
    return initialise(TextTransformer, config, key)


def apply(params: Params, ids: Ids, *, config: TextConfig) -> Float[Array, "n d"]:
    """Features of texts: the token at the end, after the last LayerNorm.

    Args:
      params: As from `init`.
      ids: Tokens, each text with its end token; what follows that does not matter.
      config: The tower's shape.

    Returns:
      One vector per text, in the parameters' type.

    Raises:
      ParameterError: Texts are longer than the context.

    Example:
      >>> import jax
      >>> config = TextConfig(vocabulary=9, context=5, width=8, depth=1, heads=2)
      >>> params = init(config, jax.random.key(0))
      >>> apply(params, jnp.array([[1, 8, 0]]), config=config).shape
      (1, 8)
    """
    return bind(TextTransformer, config, params)(ids)
