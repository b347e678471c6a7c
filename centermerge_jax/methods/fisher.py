"""Fisher merging: numbers weighed by how much each expert's likelihood minds them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from centermerge_jax.elementwise import elementwise
from centermerge_jax.errors import ParameterError
from centermerge_jax.lengths import norm
from centermerge_jax.methods.regmean import check_grams
from centermerge_jax.methods.weight_average import task_shares
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.trees import Params, is_merged, named_experts, named_leaves


def fisher(
    experts: Experts,
    *,
    fishers: Mapping[str, Params],
    floor: float = 1e-6,
    weights: Any = None,
    norms: Mapping[str, float] | None = None,
    dtype: Any = None,
) -> Params:
    """The mean of the experts, number by number weighed by their Fisher information.

        theta = sum_t w_t F_t theta_t / sum_t w_t F_t,  F_t = max(F_t / |F_t|, floor)

    Args:
      experts: Fine-tuned parameters of at least one expert.
      fishers: Diagonal of the Fisher information of each expert, trees like theirs
        (`centermerge statistics --kind fisher`).
      floor: Least weight of a number, above 0, so that numbers that no expert minds
        are averaged.
      weights: As for `cm.weight_average`; positive.
      norms: `|F_t|` over whole trees, for those who merge part by part; else they are
        found here.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: A hyperparameter is out of range, or an expert has no statistics.

    References:
      Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2021,
      arXiv:2111.09832.
    """
    check_dtype(dtype)
    if not 0 < floor < float("inf"):
        raise ParameterError(f"floor is above 0; got {floor}")
    trees = named_experts(experts)
    tasks = tuple(trees)
    check_grams(fishers, experts)
    shares = [1 / len(tasks)] * len(tasks)
    if weights is not None:
        shares = [float(share) for share in task_shares(weights, tasks)]
        if min(shares) <= 0:
            raise ParameterError("weights of Fisher merging are positive")
    if norms is None:
        norms = {task: tree_norm(fishers[task]) for task in tasks}
    lengths = [norms[task] for task in tasks]

    def merge(leaves: Sequence[Any], _: Any) -> Any:
        tuned, weights = leaves[: len(tasks)], leaves[len(tasks) :]
        xp = tuned[0].__array_namespace__()
        number = functools.partial(xp.asarray, dtype=tuned[0].dtype)
        weights = [
            share * xp.maximum(f / number(n), number(floor))
            for share, f, n in zip(shares, weights, lengths, strict=True)
        ]
        total = sum(weights)
        first = tuned[0]
        return first + sum(
            w / total * (x - first) for w, x in zip(weights, tuned, strict=True)
        )

    prefix = "Fisher information of "
    found = {prefix + task: fishers[task] for task in tasks}
    return elementwise(merge, trees | found, dtype=dtype, any_dtype=tuple(found))


def tree_norm(tree: Params) -> Any:
    """The root of the sum of squares of all floating leaves; 1 if it is zero.

    Example:
      >>> import numpy as np
      >>> tree_norm({"a": np.float32([3]), "b": np.float32([4]), "n": 7})
      np.float32(5.0)
    """
    found = [norm(leaf) for leaf in named_leaves(tree).values() if is_merged(leaf)]
    xp = found[0].__array_namespace__()
    total = norm(xp.stack(found))
    return xp.where(total > 0, total, xp.ones_like(total))[()]
