"""Measures of whole leaves: norms, what averaging takes from them, weight scopes.

All follow from the inner products of a leaf's versions in the models, which add up over
pieces of it: one pass over the memory, in float64. Each version but the first is taken
relative to the first, so that what models have in common does not drown in what they
do not: equal ones differ by exactly 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from centermerge_jax.elementwise import BLOCK
from centermerge_jax.errors import ParameterError
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params, align, base_name, is_merged, named_experts

Products = Float64[np.ndarray, "n n"]
"""Of a leaf, from `products`; n is one more than there are models."""


def products(leaves: Sequence[Any]) -> Products:
    """Inner products of ones, the first model's leaf, and how others differ from it.

    Those of a leaf are the sums of those of its pieces.

    Example:
      >>> products([np.float32([1, 2]), np.float32([1, 3])])
      array([[2., 3., 1.],
             [3., 5., 2.],
             [1., 2., 1.]])
    """
    flat = [np.asarray(leaf).reshape(-1) for leaf in leaves]
    total = np.zeros((len(flat) + 1, len(flat) + 1))
    for start in range(0, flat[0].size, BLOCK):
        block = [x[start : start + BLOCK].astype(np.float64) for x in flat]
        first, *others = block
        rows = np.stack([np.ones_like(first), first, *(x - first for x in others)])
        total += rows @ rows.T
    return total


def combination(models: int, weights: Mapping[int, float]) -> Float64[np.ndarray, " n"]:
    """The coefficients, in rows of `products`, of a weighted sum of models.

    Example:
      >>> combination(3, {2: 1.0, 0: -1.0})  # the last model less the first
      array([0., 0., 0., 1.])
    """
    row = np.zeros(models + 1)
    for model, weight in weights.items():
        row[1] += weight
        if model:
            row[1 + model] += weight
    return row


def difference(
    a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """The coefficients of a difference of two means of models.

    The first model itself drops out, exactly: without this some of its norm would stay
    where weights do not sum to 1 to the last bit.
    """
    row = a - b
    row[1] = 0.0
    return row


def length(found: Products, row: Float64[np.ndarray, " n"]) -> float:
    """The norm of a combination."""
    return float(np.sqrt(max(0.0, row @ found @ row)))


def norm_ratios(
    merged: Params, experts: Experts, base: Params | None = None
) -> dict[str, float]:
    """The norm of each leaf of a merged model, in units of its norm in the experts.

        |theta_merged| / mean_t |theta_t|,  or with a base
        |theta_merged - theta_0| / mean_t |theta_t - theta_0|

    Averaging shrinks norms: of task vectors that are orthogonal to each other the mean
    has 1 / sqrt(tasks) of theirs.

    Args:
      merged: Parameters of the merged model.
      experts: Parameters of at least one expert.
      base: If given, the norms are those of task vectors.

    Returns:
      By the names of the floating leaves; NaN where the experts' norms are 0.

    Raises:
      StructureError: The trees are not the same.

    References:
      Wang et al., "Rethinking Weight-Averaged Model-merging", 2024, arXiv:2411.09263,
      their study of magnitudes.

    Example:
      >>> experts = [{"w": np.float32([2, 0])}, {"w": np.float32([0, 2])}]
      >>> round(norm_ratios({"w": np.float32([1, 1])}, experts)["w"], 6)
      0.707107
    """
    trees = named_experts(experts)
    tasks = len(trees)
    trees = {**trees, "the merged model": merged}
    any_dtype = ["the merged model"]
    if base is not None:
        any_dtype.append(base_name(trees))
        trees[any_dtype[-1]] = base
    minus = {} if base is None else {tasks + 1: -1.0}
    rows = [combination(len(trees), {t: 1.0, **minus}) for t in range(tasks + 1)]
    ratios = {}
    _, leaves = align(trees, any_dtype=any_dtype)
    for name, versions in leaves.items():
        if is_merged(versions[0]):
            found = products(versions)
            *own, ours = (length(found, row) for row in rows)
            ratios[name] = ratio(ours, own)
    return ratios


def ratio(ours: float, own: Sequence[float]) -> float:
    """A norm in units of the mean of others; NaN if they are all 0."""
    mean = float(np.mean(own))
    return ours / mean if mean > 0 else float("nan")


def weight_scopes(params: Params) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the numbers of each floating leaf.

    Models whose leaves have other scopes average badly, as those who align them found.
    `cm.methods.weight_scope_alignment` gives all experts the same.

    Args:
      params: Parameters.

    Raises:
      ParameterError: A leaf is empty.

    References:
      Xu et al., "Weight Scope Alignment: A Frustratingly Easy Method for Model
      Merging", 2024, arXiv:2408.12237.

    Example:
      >>> weight_scopes({"w": np.float32([1, 3])})
      {'w': (2.0, 1.0)}
    """
    _, leaves = align({"the model": params})
    return {
        name: scope(products(versions), combination(1, {0: 1.0}))
        for name, versions in leaves.items()
        if is_merged(versions[0])
    }


def scope(found: Products, row: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and standard deviation of the numbers of a combination."""
    count = found[0, 0]
    if not count:
        raise ParameterError("a leaf without numbers has no scope")
    mean = (found[0] @ row) / count
    # Relative to the mean, or it would cancel in the squares.
    centred = row.copy()
    centred[0] -= mean
    return float(mean), length(found, centred) / float(np.sqrt(count))
