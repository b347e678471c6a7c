"""Which numbers of task vectors to keep: the largest, a band, a random share.

All functions take task vectors of one leaf, `[tasks, *shape]` (or any stack of arrays
that are treated one by one), as NumPy or JAX arrays, and return such.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from centermerge_jax.errors import ParameterError
from centermerge_jax.magnitudes import kept

_Array = Array | np.ndarray


def largest(
    x: Float[_Array, "tasks *shape"], *, share: float
) -> Bool[_Array, "tasks *shape"]:
    """Where each array is among the largest of its own magnitudes.

    Args:
      x: Arrays.
      share: In (0, 1]: `max(1, floor(share * count))` numbers, and those equal to the
        last of them.

    Example:
      >>> largest(np.float32([[1, -3, 2, 0]]), share=0.5)
      array([[False,  True,  True, False]])
    """
    size = abs(x)
    count = math.prod(x.shape[1:])
    if not count:
        return size > 0
    at = _ordered(size)[:, count - kept(share, count)]
    # What is not a number is not lost, as no comparison is true of it.
    return ~(size < at.reshape(-1, *(1,) * (x.ndim - 1)))


def band(
    x: Float[_Array, "tasks *shape"], *, share: float, outliers: float
) -> Bool[_Array, "tasks *shape"]:
    """Where each array is neither among its very largest magnitudes nor small.

    Args:
      x: Arrays.
      share: In (0, 1]: `max(1, floor(share * count))` numbers stay, if there are so
        many below the outliers. Which of equal numbers stay is left to sorting.
      outliers: In [0, 1): the largest `floor(outliers * count)` go.

    Example:
      >>> band(np.float32([[1, -9, 2, 0]]), share=0.5, outliers=0.25)
      array([[ True, False,  True, False]])
    """
    if not 0 <= outliers < 1:
        raise ParameterError(f"outliers is a share in [0, 1); got {outliers}")
    count = math.prod(x.shape[1:])
    if not count:
        return abs(x) > 0
    rank = ranks(x.reshape(len(x), count)).reshape(x.shape)  # 0 is the smallest
    top = count - int(Fraction(repr(float(outliers))) * count)
    return (rank < top) & (rank >= top - kept(share, count))


def ranks(x: Float[_Array, "*rows n"]) -> Int[_Array, "*rows n"]:
    """The place of each number among the magnitudes of its row, from 0, ascending.

    Equal ones are numbered from left to right.

    Example:
      >>> ranks(np.float32([5, -1, 3]))
      array([2, 0, 1])
    """
    xp = x.__array_namespace__()
    order = xp.argsort(abs(x), axis=-1, stable=True)
    return xp.argsort(order, axis=-1, stable=True)


def masked(x: Any, mask: Any) -> Any:
    """Numbers where a mask is true, and zero elsewhere; what is not finite stays NaN.

    Example:
      >>> masked(np.float32([1, 2]), np.array([True, False]))
      array([1., 0.], dtype=float32)
    """
    xp = x.__array_namespace__()
    return xp.where(mask, x, abs(0 * x))


def _ordered(size: Any) -> Any:
    """Magnitudes of each array in ascending order."""
    flat = size.reshape(len(size), -1)
    return flat.__array_namespace__().sort(flat, axis=1)
