"""CART with a rank and a scale that nobody has to search: found from the weights."""

from typing import Any

from centermerge_jax.linalg import MEMORY, Solver
from centermerge_jax.methods.truncated import merge_truncated
from centermerge_jax.ranks import Rank
from centermerge_jax.scales import leaf_scales
from centermerge_jax.task_vectors import Experts, TaskVectors, center, combine
from centermerge_jax.transforms import rescale, truncate
from centermerge_jax.transforms.rescale import Match
from centermerge_jax.trees import Params, named_experts, named_leaves
from centermerge_jax.views import Views

RANK = 0.08
"""Share of the directions near which the paper sees the best accuracy."""


def cart_data_free(
    experts: Experts,
    *,
    rank: Rank | None = None,
    energy: float | None = None,
    noise: float | None = None,
    match: Match = "projection",
    scale: Any = 1.0,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """CART without a search: each matrix scaled until its tasks are as far as alone.

        L_t   = SVD_k(theta_t - mean),  S = sum_t L_t
        theta = mean + scale * c S

        match=projection:  c = sum_t |L_t|^2 / |S|^2
        match=length:      c = mean_t |theta_t - mean| / |S|

    for each (joined) matrix, and at most 100. Leaves that are no matrices come out as
    the plain mean. It is

        whole = cm.center(experts)
        low = cm.rescale(cm.truncate(whole, rank=rank), match=match, whole=whole)
        params = cm.combine(low, scale=scale)

    Args:
      experts: Fine-tuned parameters, best of three or more experts of one base.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions. By default 0.08,
        and with `energy` or `noise` as many as there are.
      energy: If given, of these directions only the fewest that make up this share in
        (0, 1] of the squares of a matrix's singular values.
      noise: If given, of these directions only those whose singular value is above so
        many times the edge of noise in its matrix, as for `cm.truncate`; where none is,
        a matrix is the mean.
      match: What the scale is found from, as for `cm.rescale`.
      scale: Times the scale that was found: one number, or as for `cm.combine`.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    Note:
      Two experts merge into their average, and so do any at full rank: then S is zero.
      Centred vectors hold the other tasks' directions beside their own, in 1 / tasks
      of their length. An edge of noise keeps those as well, where they are clear of
      the noise, and then the sum cancels: ranks have to be lower than what is signal.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153, for the merge and the rank; the rules for the scale are this
      library's. Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is
      4/sqrt(3)", 2014, arXiv:1305.5870, for the edge of noise.
    """
    named = named_experts(experts)
    first = next(iter(named.values()))
    by_leaf = dict(
        zip(named_leaves(first), leaf_scales(scale, first, tuple(named)), strict=True)
    )

    def matched(low: TaskVectors, whole: TaskVectors) -> TaskVectors:
        return rescale(low, match=match, whole=whole)

    return merge_truncated(
        center,
        named,
        rank=_rank(rank, energy, noise),
        energy=energy,
        noise=noise,
        then=matched,
        scales=lambda tv: [by_leaf[name] for name in tv.flat()],
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def cart_data_free_whole(
    experts: Experts,
    *,
    rank: Rank | None = None,
    energy: float | None = None,
    noise: float | None = None,
    match: Match = "projection",
    scale: Any = 1.0,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """CART without a search, as `cart_data_free`, with one scale for the whole model.

        L_t   = SVD_k(theta_t - mean),  S = sum_t L_t
        theta = mean + scale * c S

    where c is that of `cart_data_free`, from the lengths of all matrices together.

    Args:
      experts: As for `cart_data_free`.
      rank: As for `cart_data_free`.
      energy: As for `cart_data_free`.
      noise: As for `cart_data_free`.
      match: As for `cart_data_free`.
      scale: As for `cart_data_free`.
      views: As for `cart_data_free`.
      solver: As for `cart_data_free`.
      dtype: As for `cart_data_free`.
      memory: Bytes of work space; all task vectors are held beside it.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153, for the merge and the rank; the rules for the scale are this
      library's.
    """
    whole = center(experts)
    low = truncate(
        whole,
        rank=_rank(rank, energy, noise),
        energy=energy,
        noise=noise,
        views=views,
        solver=solver,
        memory=memory,
    )
    matched = rescale(low, match=match, per="model", whole=whole)
    return combine(matched, scale=scale, dtype=dtype)


def _rank(rank: Rank | None, energy: float | None, noise: float | None) -> Rank:
    if rank is not None:
        return rank
    return RANK if energy is None and noise is None else 1.0
