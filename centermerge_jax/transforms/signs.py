"""One task vector out of several: where they agree in sign, or where one is largest.

All functions take task vectors of one leaf, `[tasks, *shape]`, as NumPy or JAX arrays.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

_Array = Array | np.ndarray


def agreeing(x: Float[_Array, "tasks *shape"]) -> Bool[_Array, "tasks *shape"]:
    """Where a number is not 0 and has the sign of the sum over the tasks.

    Example:
      >>> agreeing(np.float32([[1, -1, 2], [-3, 1, 0]]))
      array([[False, False,  True],
             [ True, False, False]])
    """
    return x * x.__array_namespace__().sign(x.sum(0, keepdims=True)) > 0


def disjoint_mean(
    x: Float[_Array, "tasks *shape"], weights: Any = None
) -> Float[_Array, "*shape"]:
    """The mean of the numbers that agree in sign with their sum; 0 where none does.

    Args:
      x: Task vectors.
      weights: `[tasks]`, the weight of each task; equal by default.

    Example:
      >>> disjoint_mean(np.float32([[1, 2, 3], [3, -1, 5], [-1, 0, 4]]))
      array([2., 2., 4.], dtype=float32)

    References:
      Yadav et al., "TIES-Merging", 2023, arXiv:2306.01708, section 3.2.
    """
    agree = agreeing(x).astype(x.dtype)
    if weights is not None:
        agree = agree * weights.reshape(-1, *(1,) * (x.ndim - 1))
    total = agree.sum(0)
    xp = x.__array_namespace__()
    mean = (agree * x).sum(0) / xp.where(total > 0, total, xp.ones_like(total))
    # What is not a number agrees with nothing, but is not to be lost.
    return mean + 0 * x.sum(0)


def largest_magnitude(x: Float[_Array, "tasks *shape"]) -> Float[_Array, "*shape"]:
    """Of each number the one of the task where it is largest; the later one if equal.

    Example:
      >>> largest_magnitude(np.float32([[1, -5, 2], [-3, 4, -2]]))
      array([-3., -5., -2.], dtype=float32)
    """
    result = x[0]
    for new in x[1:]:
        result = magmax_update(result, new)
    return result


def magmax_update(
    running: Float[_Array, "*shape"], new: Float[_Array, "*shape"]
) -> Float[_Array, "*shape"]:
    """The streaming form of `largest_magnitude`: all that one has to remember.

    Example:
      >>> magmax_update(np.float32([1, -5]), np.float32([-1, 4]))
      array([-1., -5.], dtype=float32)
    """
    xp = new.__array_namespace__()
    return xp.where(abs(new) >= abs(running), new, running)
