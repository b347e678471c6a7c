"""Task vectors around the pretrained parameters: whole, and truncated."""

from collections.abc import Sequence
from typing import Any

from centermerge_jax.elementwise import elementwise
from centermerge_jax.linalg import MEMORY, LowRank, Solver
from centermerge_jax.matrixwise import Rest, check_rest, rest_scale
from centermerge_jax.methods.truncated import merge_truncated
from centermerge_jax.ranks import Rank
from centermerge_jax.scales import leaf_scales
from centermerge_jax.task_vectors import Experts, TaskVectors, check_dtype, subtract
from centermerge_jax.trees import Params, base_name, named_experts, named_leaves
from centermerge_jax.views import Views


def task_arithmetic(
    experts: Experts, base: Params, *, scale: Any, dtype: Any = None
) -> Params:
    """Adds all task vectors to the pretrained parameters.

        theta = theta_0 + scale * sum_t (theta_t - theta_0)

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number (0.3 is common for eight tasks; `1 / tasks` is the mean), or as
        for `cm.combine`.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.

    Example:
      >>> import numpy as np
      >>> base = {"w": np.float32([1, 1])}
      >>> experts = [{"w": np.float32([2, 1])}, {"w": np.float32([1, 3])}]
      >>> task_arithmetic(experts, base, scale=0.5)
      {'w': Array([1.5, 2. ], dtype=float32)}

    References:
      Ilharco et al., "Editing Models with Task Arithmetic", 2023, arXiv:2212.04089.
    """
    check_dtype(dtype)
    trees = named_experts(experts)
    scales = leaf_scales(scale, base, tuple(trees))
    # Number by number it needs no task vectors as a whole.
    name = base_name(trees)
    return elementwise(
        _add_scaled,
        trees | {name: base},
        given=scales,
        dtype=dtype,
        any_dtype=(name,),
    )


def _add_scaled(trees: Sequence[Any], scale: Any) -> Any:
    *experts, base = trees
    scales = [scale] * len(experts) if scale.ndim == 0 else scale
    return sum((s * (x - base) for s, x in zip(scales, experts, strict=True)), base)


def truncated_task_arithmetic(
    experts: Experts,
    base: Params,
    *,
    rank: Rank,
    scale: Any,
    views: Views | None = None,
    rest: Rest = "mean",
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Task arithmetic with truncated vectors: CART without the centring, its control.

        theta = theta_0 + scale * sum_t SVD_k(theta_t - theta_0)

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions.
      scale: One number, or as for `cm.combine`.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices: `mean` takes the experts' mean
        (as CART does, so that only the matrices differ), `sum` adds the whole vectors
        with the same scale, `scaled_mean` their mean with that scale, `base` leaves
        them pretrained.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `rank`, `scale` or `rest` is out of range.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153, where it is the comparison "original task vectors".
    """
    check_rest(rest)
    trees = named_experts(experts)
    tasks = tuple(trees)
    by_leaf = dict(
        zip(named_leaves(base), leaf_scales(scale, base, tasks), strict=True)
    )
    name = base_name(trees)
    return merge_truncated(
        lambda part: subtract({task: part[task] for task in tasks}, part[name]),
        trees | {name: base},
        rank=rank,
        scales=lambda tv: _with_rest(tv, [by_leaf[leaf] for leaf in tv.flat()], rest),
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
        any_dtype=(name,),
    )


def _with_rest(tv: TaskVectors, scales: list[Any], rest: Rest) -> list[Any]:
    """A scale for each leaf in tree order: its own for factors, else as `rest` says."""
    return [
        scale if isinstance(delta, LowRank) else rest_scale(rest, scale, len(tv.tasks))
        for scale, (_, delta) in zip(scales, tv.flat().values(), strict=True)
    ]


def rest_scales(tv: TaskVectors, *, scale: Any, rest: Rest) -> list[Any]:
    """A scale for each leaf in tree order: `scale` for factors, else as `rest` says.

    Raises:
      ParameterError: `rest` is not one of `RESTS`.
    """
    check_rest(rest)
    return _with_rest(tv, leaf_scales(scale, tv.origin, tv.tasks), rest)
