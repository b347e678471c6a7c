"""Measures of singular values: how much few directions hold, and how many there are.

A matrix of zeros has effective and stable rank 0 and keeps all of its energy at any
rank.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def kept_energy(s: Float[Array, "*batch r"]) -> Float[Array, "*batch r"]:
    """Share of a matrix's energy that its leading directions hold, for every number.

        E(k) = sum_{i <= k} s_i^2 / sum_i s_i^2

    Args:
      s: Singular values, descending, all of them.

    Returns:
      E(1), ..., E(r), in [0, 1].

    Example:
      >>> kept_energy(jnp.array([2.0, 2.0, 0.0]))
      Array([0.5, 1. , 1. ], dtype=float32)
    """
    # Less what the small ones hold, which is exact: all of them keep 1, not nearly 1.
    return 1 - _behind(energies(s))


def energies(s: Float[Array, "*batch r"]) -> Float[Array, "*batch r"]:
    """Share of the energy that each direction holds; zeros of a matrix of zeros."""
    # Relative to the largest, or squares could leave the range of the type.
    squares = jnp.square(s / _or_one(s[..., :1]))
    return squares / _or_one(jnp.sum(squares, axis=-1, keepdims=True))


def reconstruction_error(s: Float[Array, "tasks *batch r"]) -> Float[Array, "*batch r"]:
    """What truncating leaves out of all task vectors together, for every rank.

        R(k) = sum_t |D_t - SVD_k(D_t)|_F^2 = sum_t sum_{i > k} s_ti^2

    Args:
      s: Singular values of each task's matrix, descending, all of them.

    Returns:
      R(1), ..., R(r), of which the last is 0. Divide by `jnp.sum(s**2)` for a share.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153, R(k).

    Example:
      >>> reconstruction_error(jnp.array([[2.0, 1.0, 1.0], [3.0, 0.0, 0.0]]))
      Array([2., 1., 0.], dtype=float32)
    """
    return _behind(jnp.sum(jnp.square(s), axis=0))


def effective_rank(s: Float[Array, "*batch r"]) -> Float[Array, "*batch"]:
    """The number of equal singular values that would have the same entropy.

        exp(-sum_i p_i log p_i),  p_i = s_i / sum_j s_j

    Args:
      s: Singular values, descending, all of them.

    Returns:
      From 1 to r; 0 for a matrix of zeros.

    References:
      Roy and Vetterli, "The effective rank: a measure of effective dimensionality",
      EUSIPCO 2007, definition 1.

    Example:
      >>> effective_rank(jnp.array([[1.0, 1.0, 0.0], [5.0, 0.0, 0.0]]))
      Array([2., 1.], dtype=float32)
    """
    p = s / _or_one(s[..., :1])
    p = p / _or_one(jnp.sum(p, axis=-1, keepdims=True))
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1)
    return jnp.where(s[..., 0] > 0, jnp.exp(entropy), 0)


def stable_rank(s: Float[Array, "*batch r"]) -> Float[Array, "*batch"]:
    """The energy of a matrix in units of that of its leading direction.

        |D|_F^2 / |D|_2^2 = sum_i s_i^2 / s_1^2

    Args:
      s: Singular values, descending, all of them.

    Returns:
      From 1 to r; 0 for a matrix of zeros.

    References:
      Rudelson and Vershynin, "Sampling from large matrices", 2007, remark 1.3.

    Example:
      >>> stable_rank(jnp.array([2.0, 1.0, 1.0]))
      Array(1.5, dtype=float32)
    """
    return jnp.sum(jnp.square(s / _or_one(s[..., :1])), axis=-1)


def _or_one(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """What can be divided by."""
    return jnp.where(x > 0, x, 1)


def _behind(x: Float[Array, "*batch r"]) -> Float[Array, "*batch r"]:
    """What stands behind each number, summed; behind the last one 0."""
    # From the small ones on: they would be lost in the sum of all.
    tails = jnp.cumsum(x[..., ::-1], axis=-1)[..., ::-1]
    return jnp.concatenate([tails[..., 1:], jnp.zeros_like(tails[..., :1])], axis=-1)
