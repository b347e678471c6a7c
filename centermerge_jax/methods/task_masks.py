"""Masks that tell which numbers matter to a task: consensus, TALL masks, EMR."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from centermerge_jax.elementwise import elementwise, widened
from centermerge_jax.errors import ParameterError
from centermerge_jax.methods.passes import Rows, whole_rows
from centermerge_jax.scales import one_scale
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.transforms.masks import masked
from centermerge_jax.trees import Params, base_name, check_task, named_experts


def consensus(
    experts: Experts,
    base: Params,
    *,
    threshold: float = 0.4,
    agree: int = 2,
    scale: Any,
    dtype: Any = None,
) -> Params:
    """Task arithmetic without the numbers that matter to too few tasks.

        m_t   = |tau_t| >= threshold |tau_1 + ... + tau_T - tau_t|
        theta = theta_0 + scale * [sum_t m_t >= agree] sum_t tau_t

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      threshold: Of the masks, from 0; the paper chooses from 0.2 to 0.6 on validation.
      agree: Number of tasks, from 1 to all, that a number has to matter to.
      scale: One number, or one for each leaf, as a tree prefix.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: A hyperparameter is out of range.

    References:
      Wang et al., "Localizing Task Information for Improved Model Merging and
      Compression", 2024, arXiv:2405.07813, section 4.2.
    """
    trees = named_experts(experts)
    _check_threshold(threshold)
    if type(agree) is not int or not 1 <= agree <= len(trees):
        raise ParameterError(
            f"agree is a number of tasks from 1 to {len(trees)}; got {agree!r}"
        )

    def merge(leaves: Sequence[Any], scale: Any) -> Any:
        *tuned, origin = leaves
        deltas = [x - origin for x in tuned]
        total = sum(deltas)
        votes = sum(_matters(x, total, threshold).astype(origin.dtype) for x in deltas)
        return origin + scale * masked(total, votes >= agree)

    return _around_base(merge, experts, base, scale=scale, dtype=dtype)


def tall_mask(
    experts: Experts,
    base: Params,
    *,
    task: str,
    threshold: float = 0.4,
    dtype: Any = None,
) -> Params:
    """One task's model, from the sum of all task vectors and a binary mask.

        theta = theta_0 + m_task (tau_1 + ... + tau_T),
        m_task = |tau_task| >= threshold |tau_1 + ... + tau_T - tau_task|

    What has to be kept is the sum and a bit for each task and number.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      task: Name of the task whose model it is.
      threshold: Of the mask, from 0; the paper chooses it for each task from 0.2 to 0.6
        on validation.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: There is no such task, or `threshold` is out of range.

    References:
      Wang et al., "Localizing Task Information for Improved Model Merging and
      Compression", 2024, arXiv:2405.07813, equation 2.
    """
    _check_threshold(threshold)
    index = check_task(task, tuple(named_experts(experts)))

    def merge(leaves: Sequence[Any], _: Any) -> Any:
        *tuned, origin = leaves
        deltas = [x - origin for x in tuned]
        total = sum(deltas)
        return origin + masked(total, _matters(deltas[index], total, threshold))

    return _around_base(merge, experts, base, scale=1.0, dtype=dtype)


def emr(
    experts: Experts,
    base: Params,
    *,
    task: str,
    rescales: Sequence[Any] | None = None,
    dtype: Any = None,
) -> Params:
    """One task's model, from one unified task vector, a binary mask and a factor.

        gamma = sign(sum_t tau_t)
        uni   = gamma max |tau_t| over the tasks that have this sign
        theta = theta_0 + l_task M_task uni,
        M_t = [tau_t gamma > 0],  l_t = |tau_t|_1 / |M_t uni|_1 over all parameters

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      task: Name of the task whose model it is.
      rescales: The factor `l_t` of each task, from `emr_statistics`, for those who
        cannot hold all trees; else they are found here.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: There is no such task.

    References:
      Huang et al., "EMR-Merging", 2024, arXiv:2405.17461, section 3.2.
    """
    index = check_task(task, tuple(named_experts(experts)))
    factors = rescales or emr_statistics(whole_rows(experts, base))["rescales"]

    def merge(leaves: Sequence[Any], _: Any) -> Any:
        *tuned, origin = leaves
        unified, masks = _unify([x - origin for x in tuned])
        xp = origin.__array_namespace__()
        factor = xp.asarray(factors[index], dtype=origin.dtype)
        return origin + factor * masked(unified, masks[index])

    return _around_base(merge, experts, base, scale=1.0, dtype=dtype)


def emr_statistics(rows: Rows) -> dict[str, Any]:
    """What EMR has to know of whole task vectors, from one pass.

    Args:
      rows: Called once; goes through all floating leaves, by name, those of each expert
        and last that of the base.

    Returns:
      `rescales`, a number for each expert.
    """
    own: list[Any] = []
    unified: list[Any] = []
    for _, row in rows():
        *tuned, origin = widened(row)
        deltas = [x - origin for x in tuned]
        together, masks = _unify(deltas)
        own = _plus(own, [abs(x).sum() for x in deltas])
        unified = _plus(unified, [masked(abs(together), mask).sum() for mask in masks])
    pairs = zip(own, unified, strict=True)
    return {"rescales": [a / jnp.where(b > 0, b, 1) for a, b in pairs]}


def _plus(totals: list[Any], new: list[Any]) -> list[Any]:
    return [a + b for a, b in zip(totals, new, strict=True)] if totals else new


def _unify(deltas: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The unified task vector, and which numbers of each task agree with it."""
    xp = deltas[0].__array_namespace__()
    sign = xp.sign(sum(deltas))
    masks = [x * sign > 0 for x in deltas]
    unified = functools.reduce(
        xp.maximum,
        [masked(abs(x), mask) for x, mask in zip(deltas, masks, strict=True)],
    )
    return sign * unified, masks


def _matters(delta: Any, total: Any, threshold: float) -> Any:
    # As >=, but what is not a number is not lost.
    return ~(abs(delta) < threshold * abs(total - delta))


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < float("inf"):
        raise ParameterError(f"threshold is a number from 0; got {threshold}")


def _around_base(
    merge: Any, experts: Experts, base: Params, *, scale: Any, dtype: Any
) -> Params:
    check_dtype(dtype)
    trees = named_experts(experts)
    name = base_name(trees)
    return elementwise(
        merge,
        trees | {name: base},
        given=one_scale(scale, base, tuple(trees)),
        dtype=dtype,
        any_dtype=(name,),
    )
