"""Greedy soup: models are averaged as long as that helps on held-out data."""

import math
from collections.abc import Callable, Mapping, Sequence
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
    if scores is not None and scores.keys() != trees.keys():
        raise ParameterError(
            f"scores are a number for each of {', '.join(trees)}; got {dict(scores)}"
        )

    def score(members: tuple[str, ...]) -> float:
        if len(members) == 1 and scores is not None:
            return scores[members[0]]
        return float(evaluate(weight_average([trees[x] for x in members])))

    members = greedy_members(tuple(trees), score)
    return weight_average([trees[x] for x in members], dtype=dtype), members


def greedy_members(
    names: Sequence[str], score: Callable[[tuple[str, ...]], float]
) -> tuple[str, ...]:
    """Who is in a greedy soup, in the order of joining.

    Args:
      names: Of all experts.
      score: Of the average of some; asked first for each alone.

    Raises:
      ParameterError: A score is NaN.

    Example:
      >>> known = {("a",): 0.7, ("b",): 0.8, ("b", "a"): 0.9}
      >>> greedy_members(["a", "b"], known.__getitem__)
      ('b', 'a')
    """

    def checked(members: tuple[str, ...]) -> float:
        found = score(members)
        if math.isnan(found):
            raise ParameterError(f"the score of {', '.join(members)} is NaN")
        return found

    alone = {name: checked((name,)) for name in names}
    first, *others = sorted(names, key=lambda name: -alone[name])
    members, best = (first,), alone[first]
    for name in others:
        found = checked((*members, name))
        if found >= best:
            members, best = (*members, name), found
    return members
