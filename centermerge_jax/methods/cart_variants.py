"""CART for one task at a time, in two passes, and its truncation of a single model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY, Solver
from centermerge_jax.methods.cart import cart
from centermerge_jax.methods.task_arithmetic import (
    task_arithmetic,
    truncated_task_arithmetic,
)
from centermerge_jax.methods.truncated import merge_truncated
from centermerge_jax.parts import Leaves
from centermerge_jax.ranks import Rank
from centermerge_jax.scales import leaf_scales
from centermerge_jax.task_vectors import Experts, TaskVectors, center
from centermerge_jax.trees import (
    Params,
    check_task,
    compute_dtype,
    dtype_of,
    is_merged,
    named_experts,
    named_leaves,
)
from centermerge_jax.views import Views


def cart_indexing(
    experts: Experts,
    *,
    task: str,
    rank: Rank,
    scale: Any = 1.0,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """One task's model, from the mean and the leading directions of its own vector.

        theta = mean + scale * SVD_k(theta_task - mean)

    Leaves that are no matrices are, at scale 1, the expert's own. What has to be kept
    for all tasks is the mean and the factors.

    Args:
      experts: Fine-tuned parameters of all experts.
      task: Name of the task whose model it is.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions.
      scale: One number, or a tree prefix of the parameters that holds numbers.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes of work space.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: There is no such task, or `rank` or `scale` is out of range.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153, CART-Indexing.
    """
    trees = named_experts(experts)
    index = check_task(task, tuple(trees))
    first = trees[task]
    scales = leaf_scales(scale, first, (task,))
    by_leaf = dict(zip(named_leaves(first), scales, strict=True))

    def own(part: Mapping[str, Leaves]) -> TaskVectors:
        tv = center(part)
        deltas = [
            None if x is None else x[index : index + 1] for _, x in tv.flat().values()
        ]
        return replace(tv.with_deltas(deltas, zero_sum=False), tasks=(task,))

    return merge_truncated(
        own,
        trees,
        rank=rank,
        scales=lambda tv: [by_leaf[name] for name in tv.flat()],
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def two_pass_cart(
    experts: Experts,
    *,
    rank: Rank,
    scale: Any,
    first_rank: Rank = 0.08,
    first_scale: Any = 1.0,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """CART again, around what it gave the first time.

        origin = mean + first_scale * sum_t SVD_k1(theta_t - mean)
        theta  = origin + scale * sum_t SVD_k2(theta_t - origin)

    Around any other origin, such as a merge by `task_arithmetic`, it is
    `truncated_task_arithmetic` with that as base and `rest="base"`.

    Args:
      experts: Fine-tuned parameters, best of three or more experts of one base.
      rank: Of the second pass.
      scale: Of the second pass.
      first_rank: Of the first pass.
      first_scale: Of the first pass.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A rank or scale is out of range.

    Note:
      Published code of the AdaRank authors has this combination, without figures.
    """
    how = {"views": views, "solver": solver, "memory": memory}
    first = next(iter(named_experts(experts).values()), {})
    merged = [x for x in named_leaves(first).values() if is_merged(x)]
    wide = np.result_type(np.float32, *(compute_dtype(dtype_of(x)) for x in merged))
    origin = cart(experts, rank=first_rank, scale=first_scale, dtype=wide, **how)
    return truncated_task_arithmetic(
        experts, origin, rank=rank, scale=scale, rest="base", dtype=dtype, **how
    )


def low_rank(
    experts: Experts,
    base: Params,
    *,
    rank: Rank,
    scale: Any = 1.0,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """One expert, with only the leading directions of its task vector.

        theta = theta_0 + scale * SVD_k(tau)

    Leaves that are no matrices keep their whole vectors.

    Args:
      experts: Fine-tuned parameters of one expert, or of several, which are summed.
      base: The parameters that it was fine-tuned from.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions.
      scale: One number, or as for `cm.combine`.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `rank` or `scale` is out of range.
    """
    return truncated_task_arithmetic(
        experts,
        base,
        rank=rank,
        scale=scale,
        rest="sum",
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def wise_ft(
    experts: Experts, base: Params, *, scale: float, dtype: Any = None
) -> Params:
    """One expert, drawn back towards the base.

        theta = (1 - scale) theta_0 + scale * theta_1

    Args:
      experts: Fine-tuned parameters of one expert.
      base: The parameters that it was fine-tuned from.
      scale: 0 is the base and 1 the expert.
      dtype: Type of the result; the expert's by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: There are several experts, or `scale` is not finite.

    References:
      Wortsman et al., "Robust fine-tuning of zero-shot models", 2021,
      arXiv:2109.01903.
    """
    if (count := len(named_experts(experts))) != 1:
        raise ParameterError(
            f"wise_ft is of one expert; there are {count}: take task_arithmetic"
        )
    return task_arithmetic(experts, base, scale=scale, dtype=dtype)
