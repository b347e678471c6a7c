"""KnOTS: TIES in a basis that is common to the task vectors."""

from typing import Any

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.linalg import MEMORY
from centermerge_jax.magnitudes import check_share
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.masks import largest, masked
from centermerge_jax.transforms.signs import disjoint_mean
from centermerge_jax.transforms.spectra import beside, product, svd
from centermerge_jax.trees import Params
from centermerge_jax.views import Views


def knots(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    density: float = 1.0,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Task vectors in one basis of their outputs, merged there as TIES does.

        [tau_1 ... tau_T] = U S [V_1^T ... V_T^T]
        theta = theta_0 + scale * U ties(U^T tau_1, ..., U^T tau_T)

    Made for low-rank adapters, whose vectors have few directions in common.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      density: Share in (0, 1] of the coordinates of each task that is kept, the
        largest of each matrix.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    Note:
      Task arithmetic in that basis is task arithmetic.

    References:
      Stoica et al., "Model merging with SVD to tie the Knots", 2024, arXiv:2410.19735.
    """
    check_share(density)
    return merge_matrices(
        _aligned_ties,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={"density": float(density)},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def _aligned_ties(
    x: Float[Array, "tasks out in"], *, density: float
) -> Float[Array, "out in"]:
    u, s, _ = svd(beside(x))
    parts = jnp.matmul(u.mT[None], x, precision=Precision.HIGHEST)
    merged = disjoint_mean(masked(parts, largest(parts, share=density)))
    return product(u, jnp.ones_like(s), merged)
