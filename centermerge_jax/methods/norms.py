"""Task vectors weighed by their norms."""

from collections.abc import Sequence
from typing import Any

from centermerge_jax.elementwise import widened
from centermerge_jax.errors import ParameterError
from centermerge_jax.leafwise import merge_leaves
from centermerge_jax.lengths import norm
from centermerge_jax.methods.passes import Rows, whole_rows
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params, named_experts


def from_merging(
    experts: Experts,
    base: Params,
    *,
    power: float = 1.0,
    scale: Any = 1.0,
    dtype: Any = None,
) -> Params:
    """The mean of the task vectors of each leaf, weighed by a power of their norms.

        theta = theta_0 + scale * sum_t |tau_t|^power tau_t / sum_t |tau_t|^power

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      power: 0 is the plain mean.
      scale: One number, or one for each leaf, as a tree prefix.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `power` or `scale` is out of range.

    Note:
      The paper leaves the power open; 1 is taken.

    References:
      "FroM: Frobenius Norm-Based Data-Free Adaptive Model Merging", 2025,
      arXiv:2506.02478.
    """
    if not 0 <= power < float("inf"):
        raise ParameterError(f"power is a number from 0; got {power}")

    def merge(leaf: str, x: Any) -> Any:
        del leaf
        xp = x.__array_namespace__()
        norms = xp.stack([norm(one) for one in x])
        largest = norms.max()
        weights = (
            norms / xp.where(largest > 0, largest, xp.ones_like(largest))
        ) ** power
        total = weights.sum()
        weights = weights / xp.where(total > 0, total, xp.ones_like(total))
        return sum(w * one for w, one in zip(weights, x, strict=True))

    return merge_leaves(merge, experts, base, scale=scale, dtype=dtype)


def nan_merging(
    experts: Experts,
    base: Params,
    *,
    scale: Any = 1.0,
    norms: Sequence[Any] | None = None,
    dtype: Any = None,
) -> Params:
    """The mean of the task vectors, weighed by the inverse of their norms.

        theta = theta_0 + scale * sum_t tau_t / |tau_t| / sum_t 1 / |tau_t|

    The norms are those of whole task vectors; ones that are zero do not count.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      norms: Of each task vector, from `nan_statistics`, for those who cannot hold all
        trees; else they are found here.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `scale` is out of range.

    Note:
      The paper's norm is taken as that of task vectors, not of weights.

    References:
      "NAN: A Training-Free Solution to Coefficient Estimation in Model Merging", 2025,
      arXiv:2505.16148.
    """
    named_experts(experts)
    lengths_of = norms or nan_statistics(whole_rows(experts, base))["norms"]

    def merge(leaf: str, x: Any) -> Any:
        del leaf
        xp = x.__array_namespace__()
        lengths = xp.stack([xp.asarray(n, dtype=x.dtype) for n in lengths_of])
        there = lengths > 0
        smallest = xp.where(there, lengths, xp.full_like(lengths, float("inf"))).min()
        inverse = xp.where(
            there, smallest / xp.where(there, lengths, 1), xp.zeros_like(lengths)
        )
        total = inverse.sum()
        inverse = inverse / xp.where(total > 0, total, xp.ones_like(total))
        return sum(w * one for w, one in zip(inverse, x, strict=True))

    return merge_leaves(merge, experts, base, scale=scale, dtype=dtype)


def nan_statistics(rows: Rows) -> dict[str, Any]:
    """The norms of whole task vectors, from one pass.

    Args:
      rows: Called once; goes through all floating leaves, by name, those of each expert
        and last that of the base.

    Returns:
      `norms`, a number for each expert.
    """
    found: list[Any] = []
    for _, row in rows():
        *tuned, origin = widened(row)
        own = [norm(x - origin) for x in tuned]
        xp = origin.__array_namespace__()
        before = found or [xp.zeros_like(n) for n in own]
        found = [xp.hypot(a, b) for a, b in zip(before, own, strict=True)]
    return {"norms": found}
