"""CART: centred task vectors, truncated, added back to the mean."""

from typing import Any

from centermerge_jax.linalg import Solver
from centermerge_jax.ranks import Rank
from centermerge_jax.task_vectors import Experts, center, combine
from centermerge_jax.transforms import truncate
from centermerge_jax.trees import Params
from centermerge_jax.views import Views


def cart(
    experts: Experts,
    *,
    rank: Rank,
    scale: Any,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
) -> Params:
    """Merges experts around their mean, by the top singular directions of each matrix.

        theta = mean + scale * sum_t SVD_k(theta_t - mean)

    Leaves that are no matrices come out as the plain mean.

    Args:
      experts: Fine-tuned parameters, best of three or more experts of one base.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions. The paper sees
        the best accuracy near 0.08 to 0.32, more with more tasks.
      scale: One number (the published settings lie in 1.0 to 2.0), or as for
        `cm.combine`.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.

    Returns:
      Parameters like those of one expert.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `rank` or `scale` is out of range.

    Note:
      At full rank the corrections cancel and the result is the mean for every scale. So
      it is, for every rank, with *two* experts: their centred vectors are opposite. One
      expert is returned as it is.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> experts = [{"dense": {"kernel": jax.random.normal(k, (8, 8))}} for k in keys]
      >>> cart(experts, rank=0.25, scale=1.5)["dense"]["kernel"].shape
      (8, 8)

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153.
    """
    tv = truncate(center(experts), rank=rank, views=views, solver=solver)
    return combine(tv, scale=scale, dtype=dtype)
