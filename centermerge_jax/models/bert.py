"""BERT, RoBERTa and their smaller kin, such as MiniLM: encoders of text.

Leaf names:

    embed/tokens/embedding         (vocabulary, width)
    embed/positions                (position_offset + context, width)
    embed/types/embedding          (types, width)
    embed/norm/scale               (width,), likewise bias
    blocks/3/attn/q/kernel         (width, width), and so on: see `layers`; norms follow
                                   the sums: norm1 that of attention, norm2 of the MLP
    pooler/kernel                  (width, width), likewise bias, if there is one

References:
  Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019.
  Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach, 2019.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from centermerge_jax.errors import ParameterError
from centermerge_jax.models.heads import normalised
from centermerge_jax.models.layers import (
    Blocks,
    BlocksConfig,
    LayerNorm,
    bind,
    initialise,
)
from centermerge_jax.models.text import Ids, Vectors
from centermerge_jax.models.vit import Params

TokenMask = Int[Array, "n tokens"] | Bool[Array, "n tokens"]
"""Which tokens are text (1) and which padding (0)."""


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The shape of an encoder.

    Attributes:
      vocabulary: Number of tokens.
      context: Longest text, in tokens.
      width: Length of a token.
      depth: Number of blocks.
      heads: Attention heads; divides `width`.
      hidden: Width between the two layers of the MLP.
      types: Number of token types (first and second sentence).
      epsilon: Added to the variance in LayerNorm; RoBERTa has 1e-5.
      position_offset: Row of the first token in the table of positions: 0, and 2 in
        RoBERTa, where the row before is that of padding.
      pooler: Whether there is a layer on the first token.
    """

    vocabulary: int = 30522
    context: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    types: int = 2
    epsilon: float = 1e-12
    position_offset: int = 0
    pooler: bool = True


class Embed(nnx.Module):
    """Tokens to vectors: their own, and those of their position and type."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        normal = nnx.initializers.normal(0.02)
        width, rows = config.width, config.position_offset + config.context
        self.config = config
        self.tokens = Vectors(config.vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (rows, width)))
        self.types = Vectors(config.types, width, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=config.epsilon)

    def __call__(
        self, ids: Ids, mask: TokenMask, types: Ids
    ) -> Float[Array, "n tokens d"]:
        """Vectors of tokens.

        Raises:
          ParameterError: There are more tokens than positions.
        """
        length, offset = ids.shape[1], self.config.position_offset
        if length > self.config.context:
            raise ParameterError(
                f"texts have at most {self.config.context} tokens: got {length}"
            )
        table = self.positions[...]
        if offset:
            # Only text is counted; padding has the row before the first.
            real = mask.astype(bool).astype(jnp.int32)
            places = table[offset - 1 + jnp.cumsum(real, axis=1) * real]
        else:
            places = table[None, :length]
        return self.norm(self.tokens(ids) + places + self.types(types))


class Bert(nnx.Module):
    """The whole network."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        """Random parameters."""
        self.embed = Embed(config, rngs=rngs)
        stack = BlocksConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            hidden=config.hidden,
            activation="gelu",
            epsilon=config.epsilon,
            norm_first=False,
        )
        self.blocks = Blocks(stack, rngs=rngs)
        if config.pooler:
            self.pooler = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(
        self, ids: Ids, mask: TokenMask, types: Ids
    ) -> Float[Array, "n tokens d"]:
        """Tokens after the last block."""
        return self.through(self.embed(ids, mask, types), mask)

    def through(
        self,
        hidden: Float[Array, "n tokens d"],
        mask: TokenMask,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> Float[Array, "n tokens d"]:
        """Tokens after the blocks from `start` to before `stop`."""
        seen = mask.astype(bool)[:, None, None, :]
        return self.blocks(hidden, seen, start=start, stop=stop)


def init(config: BertConfig, key: PRNGKeyArray) -> Params:
    """Random parameters, as float32 arrays in a nested dict."""
    return initialise(Bert, config, key)


def apply(
    params: Params,
    ids: Ids,
    mask: TokenMask,
    *,
    types: Ids | None = None,
    config: BertConfig,
) -> Float[Array, "n tokens d"]:
    """Tokens after the last block.

    Args:
      params: As from `init`.
      ids: Tokens; a text has one at least.
      mask: Which of them are text.
      types: Of the tokens; 0 by default.
      config: The network's shape.

    Raises:
      ParameterError: Texts are longer than the context.

    Example:
      >>> import jax
      >>> config = BertConfig(vocabulary=9, width=8, depth=1, heads=2, hidden=16)
      >>> params = init(config, jax.random.key(0))
      >>> ids = jnp.array([[1, 8, 0]])
      >>> apply(params, ids, ids != 0, config=config).shape
      (1, 3, 8)
    """
    types = jnp.zeros_like(ids) if types is None else types
    return bind(Bert, config, params)(ids, mask, types)


def prefix(
    params: Params, ids: Ids, mask: TokenMask, *, blocks: int, config: BertConfig
) -> Float[Array, "n tokens d"]:
    """Tokens after the embedding and the first `blocks` blocks.

    Args:
      params: As from `init`.
      ids: As for `apply`; of the first type.
      mask: As for `apply`.
      blocks: From 0 (the embedding alone) to the depth.
      config: The network's shape.

    Raises:
      ParameterError: `blocks` does not fit, or texts are longer than the context.
    """
    network = bind(Bert, config, params)
    hidden = network.embed(ids, mask, jnp.zeros_like(ids))
    return network.through(hidden, mask, stop=blocks)


def suffix(
    params: Params,
    hidden: Float[Array, "n tokens d"],
    mask: TokenMask,
    *,
    blocks: int,
    config: BertConfig,
) -> Float[Array, "n tokens d"]:
    """Tokens after the last block, from those of `prefix` for as many `blocks`.

    Raises:
      ParameterError: `blocks` does not fit.

    Example:
      >>> import jax
      >>> config = BertConfig(vocabulary=9, width=8, depth=2, heads=2, hidden=16)
      >>> params = init(config, jax.random.key(0))
      >>> ids = jnp.array([[1, 8, 0]])
      >>> hidden = prefix(params, ids, ids != 0, blocks=1, config=config)
      >>> hidden = suffix(params, hidden, ids != 0, blocks=1, config=config)
      >>> bool((hidden == apply(params, ids, ids != 0, config=config)).all())
      True
    """
    return bind(Bert, config, params).through(hidden, mask, start=blocks)


def pool(params: Params, hidden: Float[Array, "n tokens d"]) -> Float[Array, "n d"]:
    """What the pooler makes of the first token: the feature for classification.

    Args:
      params: With a pooler.
      hidden: From `apply`.

    Raises:
      ParameterError: There is no pooler.
    """
    if "pooler" not in params:
        raise ParameterError("these parameters have no pooler")
    layer = params["pooler"]
    return jnp.tanh(hidden[:, 0] @ layer["kernel"] + layer["bias"][None])


def mean_pool(
    hidden: Float[Array, "n tokens d"], mask: TokenMask
) -> Float[Array, "n d"]:
    """The mean of the tokens that are text.

    Example:
      >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
      >>> mean_pool(hidden, jnp.array([[1, 1, 0]]))
      Array([[2.]], dtype=float32)
    """
    real = mask.astype(bool).astype(hidden.dtype)[:, :, None]
    return (hidden * real).sum(axis=1) / real.sum(axis=1)


def sentence_embeddings(
    params: Params, ids: Ids, mask: TokenMask, *, config: BertConfig
) -> Float[Array, "n d"]:
    """Vectors of length one whose products are similarities, as MiniLM's are meant.

    Args:
      params: As for `apply`.
      ids: As for `apply`.
      mask: As for `apply`.
      config: The network's shape.
    """
    return normalised(mean_pool(apply(params, ids, mask, config=config), mask))
