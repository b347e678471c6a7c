"""WUDI: a merged matrix that interferes least with what each task's rows span."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.masks import masked
from centermerge_jax.trees import Params
from centermerge_jax.views import Views

_CUT = 1e-6
"""Eigenvalues below this share of the largest count as zero in float32."""


def wudi(
    experts: Experts,
    base: Params,
    *,
    steps: int = 300,
    learning_rate: float = 1e-5,
    scale: Any = 1.0,
    views: Views | None = None,
    rest: Rest = "base",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """The merged task vector that differs least from each one on that one's own rows.

        M     = argmin sum_t |(M - tau_t) tau_t^T|^2 / |tau_t|^2, from M = sum_t tau_t
        theta = theta_0 + scale * M

    by some steps of Adam, far from convergence.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      steps: Number of steps, from 0.
      learning_rate: Of Adam, which moves each number by about as much in each step: to
        be seen against the size of the task vectors.
      scale: One number, or one for each leaf, as a tree prefix.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    References:
      Cheng et al., "Whoever Started the Interference Should End It", 2025,
      arXiv:2503.08099.
    """
    if type(steps) is not int or steps < 0:
        raise ParameterError(f"steps is a number from 0; got {steps!r}")
    if not 0 < learning_rate < float("inf"):
        raise ParameterError(f"learning_rate is above 0; got {learning_rate}")
    return merge_matrices(
        _descended,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={"steps": steps, "learning_rate": float(learning_rate)},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def wudi_closed(
    experts: Experts,
    base: Params,
    *,
    scale: Any = 1.0,
    views: Views | None = None,
    rest: Rest = "base",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """The minimiser itself of what `wudi` descends, the one nearest to its start.

        A     = sum_t tau_t^T tau_t / |tau_t|^2
        M     = (sum_t tau_t tau_t^T tau_t / |tau_t|^2) A^+ + sum_t tau_t (1 - A A^+)
        theta = theta_0 + scale * M

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `scale` or `rest` is out of range.

    Note:
      It is no reproduction of the published method, which stops early. Directions of A
      below 1e-6 of its largest are taken as absent.

    References:
      Cheng et al., "Whoever Started the Interference Should End It", 2025,
      arXiv:2503.08099, for what is minimised.
    """
    return merge_matrices(
        _minimised,
        experts,
        base,
        scale=scale,
        rest=rest,
        views=views,
        dtype=dtype,
        memory=memory,
    )


def _descended(
    x: Float[Array, "tasks out in"], *, steps: int, learning_rate: float
) -> Float[Array, "out in"]:
    grams = _weighted_grams(x)
    target = _matmul(x, grams).sum(0)
    every = grams.sum(0)

    def step(state: Any, count: Array) -> tuple[Any, None]:
        m, first, second = state
        gradient = 2 * (_matmul(m, every) - target)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        a, b = first / (1 - 0.9**count), second / (1 - 0.999**count)
        return (m - learning_rate * a / (jnp.sqrt(b) + 1e-8), first, second), None

    start = x.sum(0)
    zero = jnp.zeros_like(start)
    counts = jnp.arange(1, steps + 1, dtype=x.dtype)
    (m, _, _), _ = jax.lax.scan(step, (start, zero, zero), counts)
    return m


def _minimised(x: Float[Array, "tasks out in"]) -> Float[Array, "out in"]:
    """The minimiser from the singular vectors of all task vectors, at unit length.

    With tau_t / |tau_t| = P_t S V^T, where P_1, ..., P_T are the blocks of the left
    factor, A is V S^2 V^T, and M is sum_t |tau_t| P_t S^2 P_t^T P_t S^-1 V^T on the
    span of V. The Gram matrix itself would square what is small.
    """
    tasks, height, width = x.shape
    lengths = jnp.sqrt((x * x).sum((1, 2)))[:, None, None]
    units = x / jnp.where(lengths > 0, lengths, 1)
    left, s, vh = jnp.linalg.svd(units.reshape(-1, width), full_matrices=False)
    there = s > _CUT**0.5 * s[:1]
    inverse = jnp.where(there, 1 / jnp.where(there, s, 1), 0)
    blocks = left.reshape(tasks, height, -1)
    squares = _matmul(blocks * (s * s)[None, None], _matmul(blocks.mT, blocks))
    within = (lengths * squares).sum(0) * inverse[None]
    total = x.sum(0)
    vh = masked(vh, there[:, None])
    outside = total - _matmul(_matmul(total, vh.mT), vh)
    return _matmul(within, vh) + outside


def _weighted_grams(x: Any) -> Any:
    """`tau^T tau / |tau|^2` of each task; zero for a zero vector."""
    # Squares of small numbers would leave the range of float32.
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    y = x / jnp.where(largest > 0, largest, 1)
    square = (y * y).sum((1, 2), keepdims=True)
    return _matmul(y.mT, y) / jnp.where(square > 0, square, 1)


def _matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
