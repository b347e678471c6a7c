"""Classifiers on features: linear ones, and cosines with class embeddings."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError


def apply(
    head: Mapping[str, Any], features: Float[Array, "n d"]
) -> Float[Array, "n classes"]:
    """Logits of any head that is known here.

    Args:
      head: `kernel [d, classes]`, and perhaps `bias [classes]`; with `logit_scale` of
        normalised features, as zero-shot heads are; or `dense` and `out`, the two
        layers of RoBERTa's.
      features: As the backbone gives them.

    Raises:
      ParameterError: It is none of them.

    Example:
      >>> apply({"kernel": jnp.eye(2), "bias": jnp.ones(2)}, jnp.zeros((1, 2)))
      Array([[1., 1.]], dtype=float32)
    """
    parts = set(head)
    if parts == {"dense", "out"}:
        return _dense(head["out"], jnp.tanh(_dense(head["dense"], features)))
    if parts in ({"kernel", "logit_scale"}, {"kernel", "bias", "logit_scale"}):
        wide = features.astype(jnp.float32)
        logits = cosine(head["kernel"], wide, logit_scale=head["logit_scale"])
        return logits + head["bias"][None] if "bias" in head else logits
    if parts in ({"kernel"}, {"kernel", "bias"}):
        return _dense(head, features)
    raise ParameterError(f"a head with {', '.join(sorted(parts))} is not known")


def length(head: Mapping[str, Any]) -> int:
    """Length of the features that a head takes.

    Example:
      >>> length({"kernel": jnp.ones((384, 10))})
      384
    """
    return len(head.get("dense", head)["kernel"])


def _dense(layer: Mapping[str, Any], x: Float[Array, "n d"]) -> Float[Array, "n m"]:
    y = x @ layer["kernel"]
    return y + layer["bias"][None] if "bias" in layer else y


def cosine(
    kernel: Float[Array, "d classes"],
    features: Float[Array, "n d"],
    *,
    logit_scale: Float[Array, ""] | float,
) -> Float[Array, "n classes"]:
    """Logits of a zero-shot head: scaled cosines with the classes' embeddings.

    Args:
      kernel: Embeddings of the classes, of length one.
      features: Of any length but zero.
      logit_scale: Natural logarithm of the factor on the cosines.

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language
      Supervision, 2021, figure 3.

    Example:
      >>> cosine(jnp.eye(2), jnp.array([[3.0, 4.0]]), logit_scale=0.0)
      Array([[0.6, 0.8]], dtype=float32)
    """
    return (
        jnp.exp(jnp.asarray(logit_scale, features.dtype))
        * normalised(features)
        @ kernel
    )


def normalised(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors of length one.

    Example:
      >>> normalised(jnp.array([3.0, 4.0]))
      Array([0.6, 0.8], dtype=float32)
    """
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
