"""Lengths of arrays whose squares may leave the range of their type."""

from typing import Any


def unit(x: Any) -> Any:
    """An array divided by its norm; zero stays zero.

    Example:
      >>> import numpy as np
      >>> unit(np.float32([3, 4]) * 1e-30)
      array([0.6, 0.8], dtype=float32)
    """
    xp = x.__array_namespace__()
    # Squares of very large or small numbers would leave the range.
    largest = abs(x).max(initial=0)
    y = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    length = xp.sqrt((y * y).sum())
    return y / xp.where(length > 0, length, xp.ones_like(length))


def norm(x: Any) -> Any:
    """The root of the sum of squares.

    Example:
      >>> import numpy as np
      >>> norm(np.float32([3, 4]))
      np.float32(5.0)
    """
    xp = x.__array_namespace__()
    largest = abs(x).max(initial=0)
    y = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    return largest * xp.sqrt((y * y).sum())
