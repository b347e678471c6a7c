"""CART: centred task vectors, truncated, added back to the mean."""

from collections.abc import Mapping
from typing import Any

from centermerge_jax.linalg import MEMORY, Solver
from centermerge_jax.methods.truncated import merge_truncated
from centermerge_jax.ranks import Rank
from centermerge_jax.scales import leaf_scales
from centermerge_jax.task_vectors import Experts, center
from centermerge_jax.trees import Params, named_experts, named_leaves
from centermerge_jax.views import Views


def cart(
    experts: Experts,
    *,
    rank: Rank | Mapping[str, Rank],
    scale: Any,
    energy: float | None = None,
    noise: float | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Merges experts around their mean, by the top singular directions of each matrix.

        theta = mean + scale * sum_t SVD_k(theta_t - mean)

    Leaves that are no matrices come out as the plain mean. It is

        tv = cm.truncate(cm.center(experts), rank=rank, views=views)
        params = cm.combine(tv, scale=scale)

    done a few matrices at a time, so that beside the experts and the result only
    `memory` is needed; write the two lines to keep the factors, for other scales.

    Args:
      experts: Fine-tuned parameters, best of three or more experts of one base.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions. The paper sees
        the best accuracy near 0.08 to 0.32, more with more tasks. Or a mapping from
        each task's name to its rank.
      scale: One number (the published settings lie in 1.0 to 2.0), or as for
        `cm.combine`.
      energy: If given, of these directions only the fewest that make up this share in
        (0, 1] of the squares of a matrix's singular values.
      noise: If given, of these directions only those whose singular value is above so
        many times the edge of noise in its matrix, as for `cm.truncate`; where none is,
        a matrix is the mean.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

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
    named = named_experts(experts)
    first = next(iter(named.values()))
    by_leaf = dict(
        zip(named_leaves(first), leaf_scales(scale, first, tuple(named)), strict=True)
    )
    return merge_truncated(
        center,
        named,
        rank=rank,
        energy=energy,
        noise=noise,
        scales=lambda tv: [by_leaf[name] for name in tv.flat()],
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )
