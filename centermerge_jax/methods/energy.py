"""Spectra cut, rescaled and lifted by their cumulated sums: STAR, subspace boosting."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.masks import masked
from centermerge_jax.transforms.spectra import product, svd
from centermerge_jax.trees import Params
from centermerge_jax.views import Views


def star(
    experts: Experts,
    base: Params,
    *,
    energy: float = 0.4,
    scale: Any = 1.0,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """The mean of truncated task vectors, each as long as before it was truncated.

        tau_t ~ U_t S_t V_t^T  with the fewest s that make up `energy` of sum(s)
        theta = theta_0 + scale * mean_t U_t S_t V_t^T sum(s) / sum(S_t)

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      energy: Share in (0, 1] of the sum of the singular values.
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
      Lee et al., "STAR: Spectral Truncation and Rescale for Model Merging", 2025,
      arXiv:2502.10339.
    """
    if not 0 < energy <= 1:
        raise ParameterError(f"energy is a share in (0, 1]; got {energy}")
    return merge_matrices(
        _truncated_and_rescaled,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={"energy": float(energy)},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def subspace_boosting(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    beta: float = 0.01,
    views: Views | None = None,
    rest: Rest = "sum",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Task arithmetic with the small singular values of the sum lifted.

        sum_t tau_t = U diag(s) V^T
        theta = theta_0 + scale * U diag(max(s, s_c)) V^T

    where s_c is the first one with which `beta` of sum(s) is reached.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      beta: Share in [0, 1] of the sum of the singular values; 0 lifts all to the
        largest, and 1 none.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    Note:
      Directions that the sum lacks are not lifted: their singular vectors are
      arbitrary.

    References:
      "Subspace-Boosted Model Merging", 2025, arXiv:2506.16506.
    """
    if not 0 <= beta <= 1:
        raise ParameterError(f"beta is a share in [0, 1]; got {beta}")
    return merge_matrices(
        _boosted_sum,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={"beta": float(beta)},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def _truncated_and_rescaled(
    x: Float[Array, "tasks out in"], *, energy: float
) -> Float[Array, "out in"]:
    u, s, vh = svd(x)
    total = s.sum(-1, keepdims=True)
    before = jnp.cumsum(s, axis=-1) - s
    kept = masked(s, before < energy * total)
    left = kept.sum(-1, keepdims=True)
    kept = kept * total / jnp.where(left > 0, left, 1)
    return product(u, kept, vh).mean(0)


def _boosted_sum(x: Float[Array, "tasks out in"], *, beta: float) -> Any:
    u, s, vh = svd(x.sum(0))
    reached = jnp.cumsum(s) >= beta * s.sum() * (1 - 1e-6)
    floor = s[jnp.argmax(reached)]
    return product(u, jnp.where(s > 0, jnp.maximum(s, floor), 0), vh)
