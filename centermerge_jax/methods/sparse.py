"""Task vectors of which few numbers are kept: the largest, a band, random ones."""

from typing import Any

from centermerge_jax.leafwise import merge_leaves
from centermerge_jax.magnitudes import check_share
from centermerge_jax.random_numbers import check_seed, task_uniforms
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.masks import band, largest, masked
from centermerge_jax.transforms.signs import disjoint_mean
from centermerge_jax.trees import Params, named_experts


def magnitude_mask(
    experts: Experts,
    base: Params,
    *,
    density: float,
    scale: Any = 1.0,
    dtype: Any = None,
) -> Params:
    """Keeps the largest numbers of each leaf of each task vector.

        theta = theta_0 + scale * sum_t top(tau_t)

    Args:
      experts: Fine-tuned parameters of at least one expert; with one it is a sparse
        form of it.
      base: The parameters that they were fine-tuned from.
      density: Share in (0, 1] of each leaf that is kept.
      scale: One number, or as for `cm.combine`.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.

    References:
      Huang et al., "Keeping Yourself is Important in Downstream Tuning MLLM", 2025,
      arXiv:2503.04543: "posterior selection".
    """
    check_share(density)
    return merge_leaves(
        lambda leaf, x: masked(x, largest(x, share=density)),  # noqa: ARG005
        experts,
        base,
        scale=scale,
        dtype=dtype,
    )


def random_mask(
    experts: Experts,
    base: Params,
    *,
    density: float,
    scale: Any = 1.0,
    seed: int = 0,
    dtype: Any = None,
) -> Params:
    """Keeps random numbers of each task vector, as they are.

        theta = theta_0 + scale * sum_t mask_t tau_t

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Probability in (0, 1] that a number is kept.
      scale: One number, or as for `cm.combine`.
      seed: Of the random numbers, which belong to task and leaf by name.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.
    """
    drop = _dropping("random_mask", experts, density, seed)
    return merge_leaves(
        lambda leaf, x: drop(leaf, x) * density, experts, base, scale=scale, dtype=dtype
    )


def dare(
    experts: Experts,
    base: Params,
    *,
    density: float,
    scale: Any,
    seed: int = 0,
    dtype: Any = None,
) -> Params:
    """Drops random numbers of each task vector, and makes up for it in the others.

        theta = theta_0 + scale * sum_t mask_t tau_t / density

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Probability in (0, 1] that a number is kept; the paper drops 10 to 99 %.
      scale: One number, or as for `cm.combine`.
      seed: Of the random numbers, which belong to task and leaf by name.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.

    Note:
      It presumes small task vectors; of models fine-tuned far away little survives.

    References:
      Yu et al., "Language Models are Super Mario", 2023, arXiv:2311.03099.
    """
    drop = _dropping("dare", experts, density, seed)
    return merge_leaves(drop, experts, base, scale=scale, dtype=dtype)


def dare_ties(
    experts: Experts,
    base: Params,
    *,
    density: float,
    scale: Any = 1.0,
    seed: int = 0,
    dtype: Any = None,
) -> Params:
    """DARE, and then the mean of the numbers that agree in sign.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Probability in (0, 1] that a number is kept.
      scale: One number, or one for each leaf, as a tree prefix.
      seed: Of the random numbers, which belong to task and leaf by name.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.

    Note:
      TIES elects signs as here, but trims by magnitude where this drops at random.

    References:
      Yu et al., "Language Models are Super Mario", 2023, arXiv:2311.03099, section
      4.3; Yadav et al., "TIES-Merging", 2023, arXiv:2306.01708.
    """
    drop = _dropping("dare_ties", experts, density, seed)
    return merge_leaves(
        lambda leaf, x: disjoint_mean(drop(leaf, x)),
        experts,
        base,
        scale=scale,
        dtype=dtype,
    )


def breadcrumbs(
    experts: Experts,
    base: Params,
    *,
    density: float = 0.1,
    outliers: float = 0.01,
    scale: Any,
    dtype: Any = None,
) -> Params:
    """Drops the very largest and the smallest numbers of each leaf.

        theta = theta_0 + scale * sum_t band(tau_t)

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Share in (0, 1] of each leaf that is kept, below the outliers; the
        authors search from 0.05 to 0.2.
      outliers: Share in [0, 1) of the largest magnitudes that are dropped.
      scale: One number (the paper: 0.3), or as for `cm.combine`.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density`, `outliers` or `scale` is out of range.

    Note:
      The paper's masks are of layers, as these; its authors' code masks each row of a
      tensor by itself.

    References:
      Davari and Belilovsky, "Model Breadcrumbs", 2023, arXiv:2312.06795, section 3.
    """
    check_share(density)
    return merge_leaves(
        lambda leaf, x: masked(x, band(x, share=density, outliers=outliers)),  # noqa: ARG005
        experts,
        base,
        scale=scale,
        dtype=dtype,
    )


def sce(
    experts: Experts,
    base: Params,
    *,
    density: float = 1.0,
    scale: Any = 1.0,
    dtype: Any = None,
) -> Params:
    """Selects what varies over the tasks, weighs tasks by energy, erases minorities.

        D_t = tau_t where the variance over tasks is among the largest of the leaf
        w_t = |D_t|^2
        theta = theta_0 + scale * weighted mean of the D_t that have the sum's sign

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Share in (0, 1] of each leaf that is selected.
      scale: One number, or one for each leaf, as a tree prefix.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.

    References:
      Wan et al., "FuseChat", 2024, arXiv:2408.07990, section 3.3.
    """
    check_share(density)

    def merge(leaf: str, x: Any) -> Any:
        del leaf
        if len(x) > 1:  # one task has no variance
            x = masked(x, largest(x.var(0)[None], share=density))
        axes = tuple(range(1, x.ndim))
        # Relative to the largest number: squares of small ones would leave the range.
        unit = abs(x).max(initial=0)
        xp = x.__array_namespace__()
        y = x / xp.where(unit > 0, unit, xp.ones_like(unit))
        return disjoint_mean(x, weights=(y * y).sum(axes))

    return merge_leaves(merge, experts, base, scale=scale, dtype=dtype)


def _dropping(method: str, experts: Experts, density: float, seed: int) -> Any:
    check_share(density)
    check_seed(seed)
    tasks = tuple(named_experts(experts))

    def drop(leaf: str, x: Any) -> Any:
        drawn = task_uniforms(seed, method, tasks, leaf, x)
        return masked(x, drawn < density) / density

    return drop
