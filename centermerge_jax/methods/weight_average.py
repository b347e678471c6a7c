"""The plain mean of the experts."""

from typing import Any

from centermerge_jax.task_vectors import Experts, center, combine
from centermerge_jax.trees import Params


def weight_average(experts: Experts, *, dtype: Any = None) -> Params:
    """The mean of the experts, leaf by leaf.

        theta = mean_t theta_t

    This *is* task arithmetic around the mean, for every scale: the centred vectors sum
    to zero.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      dtype: Type of the result; the experts' by default.

    Returns:
      Parameters like those of one expert, averaged in float32 and cast once.

    Raises:
      StructureError: The experts are not the same tree.

    Example:
      >>> import numpy as np
      >>> weight_average([{"w": np.float32([1, 2])}, {"w": np.float32([3, 4])}])
      {'w': Array([2., 3.], dtype=float32)}

    References:
      Wortsman et al., "Model soups", 2022, arXiv:2203.05482.
    """
    return combine(center(experts), scale=1.0, dtype=dtype)
