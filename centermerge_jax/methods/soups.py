"""Greedy soup: models are averaged as long as that helps on held-out data."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from centermerge_jax.errors import ParameterError
from centermerge_jax.methods.weight_average import weight_average
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params, named_experts


def greedy_soup(
    experts: Experts,
    *,
    evaluate: Callable[[Params], float],
    scores: Mapping[str, float] | None = None,
    dtype: Any = None,
) -> tuple[Params, tuple[str, ...]]:
    """Averages the experts whose joining does not make the average worse.

    From the best expert on, each of the others, in the order of their own scores, joins
    if the mean of all that have joined and it scores at least as well.

    Args:
      experts: Parameters of at least one expert.
      evaluate: Score of parameters on held-out data; larger is better.
      scores: Of each expert, if they are known; else each is evaluated.
      dtype: Type of the result; the experts' by default.

    Returns:
      The average, and the names of the experts in it, in the order of their joining.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: `scores` is not one number for each expert, or a score is NaN.

    Example:
      >>> import numpy as np
      >>> experts = {"a": {"w": np.float32(1)}, "b": {"w": np.float32(3)}}
      >>> soup, members = greedy_soup(experts, evaluate=lambda x: -abs(x["w"] - 1.5))
      >>> soup["w"], members
      (Array(2., dtype=float32), ('a', 'b'))

    References:
      Wortsman et al., "Model soups", 2022, arXiv:2203.05482, recipe 1.
    """
    trees = named_experts(experts)
    if scores is None:
        scores = {name: evaluate(tree) for name, tree in trees.items()}
    if scores.keys() != trees.keys() or any(map(math.isnan, scores.values())):
        raise ParameterError(
            f"scores are a number for each of {', '.join(trees)}; got {dict(scores)}"
        )
    first, *others = sorted(trees, key=lambda name: -scores[name])
    members, best = (first,), scores[first]
    for name in others:
        together = (*members, name)
        score = evaluate(weight_average([trees[x] for x in together]))
        if score >= best:
            members, best = together, score
    return weight_average([trees[x] for x in members], dtype=dtype), members
