"""Methods whose merges at several ranks and scales share one factorisation.

What is kept of a matrix at a smaller rank is a slice of what is kept at a larger one,
and adding up is linear in the scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from centermerge_jax.matrixwise import Rest
from centermerge_jax.methods.task_arithmetic import rest_scales
from centermerge_jax.task_vectors import (
    TaskVectors,
    center,
    combine,
    combine_leaves,
    subtract,
)
from centermerge_jax.trees import Params


@dataclass(frozen=True)
class Factored:
    """A method in two steps, between which its task vectors are truncated.

    Attributes:
      vectors: `vectors(experts[, base]) -> TaskVectors`.
      merged: `merged(truncated, scale=..., ...) -> params`.
    """

    vectors: Callable[..., TaskVectors]
    merged: Callable[..., Params]


def _summed(
    tv: TaskVectors, *, scale: Any, rest: Rest = "mean", dtype: Any = None
) -> Params:
    return combine_leaves(tv, rest_scales(tv, scale=scale, rest=rest), dtype=dtype)


def _all_summed(tv: TaskVectors, *, scale: Any = 1.0, dtype: Any = None) -> Params:
    return _summed(tv, scale=scale, rest="sum", dtype=dtype)


FACTORED: Mapping[str, Factored] = {
    "cart": Factored(center, combine),
    "truncated_task_arithmetic": Factored(subtract, _summed),
    "low_rank": Factored(subtract, _all_summed),
}
"""Those methods, by name."""
