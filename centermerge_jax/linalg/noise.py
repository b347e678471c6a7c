"""Which singular values stand out of noise of which nobody says how strong it is."""

import functools
import math
from typing import Any

import scipy.integrate
import scipy.optimize


@functools.cache
def noise_edge(m: int, n: int) -> float:
    """The optimal hard threshold for singular values, in units of their median.

        edge = omega(b) median(s),  omega(b) = l(b) / sqrt(mu(b))
        l(b)^2 = 2 (b + 1) + 8 b / (b + 1 + sqrt(b^2 + 14 b + 1))

    where b is the smaller of m and n over the larger, and mu(b) the median of the
    Marchenko-Pastur distribution. Of all hard thresholds it is the one with
    asymptotically the least mean squared error for a matrix of low rank under white
    noise. Noise alone ends at `(1 + sqrt(b)) / sqrt(mu(b))`, in the same units; what
    lies between is signal that costs more than it brings.

    Args:
      m: Rows.
      n: Columns.

    Returns:
      omega. With `min(m, n)` of 1 or 2 no singular value can be above omega times their
      median.

    References:
      Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/sqrt(3)",
      2014, arXiv:1305.5870: the threshold for an unknown noise level, which is 2.858
      for square matrices.

    Example:
      >>> round(noise_edge(100, 100), 3), round(noise_edge(50, 100), 3)
      (2.858, 2.171)
    """
    b = min(m, n) / max(m, n)
    square = 2 * (b + 1) + 8 * b / (b + 1 + math.sqrt(b * b + 14 * b + 1))
    return math.sqrt(square / marchenko_pastur_median(b))


def marchenko_pastur_median(b: float) -> float:
    """The median of the squared singular values of noise.

    Of an `[m, n]` matrix of independent numbers of variance 1 / n, for large m and n
    with b = m / n; their density is

        sqrt((u - x) (x - l)) / (2 pi b x)  between  l, u = (1 -+ sqrt(b))^2

    Args:
      b: In (0, 1].

    Example:
      >>> round(marchenko_pastur_median(1.0), 4)
      0.6528
    """
    root = math.sqrt(b)

    # With x = 1 + b + 2 sqrt(b) cos(a) the density has no singular ends.
    def density(a: float) -> float:
        return 2 / math.pi * math.sin(a) ** 2 / (1 + b + 2 * root * math.cos(a))

    def above(a: float) -> float:
        return scipy.integrate.quad(density, 0, a)[0] - 0.5

    middle: Any = scipy.optimize.brentq(above, 0, math.pi - 1e-6, xtol=1e-13)
    return 1 + b + 2 * root * math.cos(middle)
