"""The magnitude that a share of all numbers reaches, without sorting them.

Magnitudes in float32 are ordered as their bits are. Counting how often each value of
the upper bits occurs tells the upper bits of the threshold, and counting the lower bits
of those that have them tells the rest: exact, from two passes in any order, over models
of any size.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int, UInt32

from centermerge_jax.errors import ParameterError

Passes = Callable[[], Iterable[Sequence[Float[np.ndarray, " n"]]]]
"""Goes through all numbers once each time it is called: some of each expert's task
vector after some."""

_UPPER, _LOWER = 16, 15  # of the 31 bits beside the sign


def magnitude_thresholds(passes: Passes, *, share: float) -> list[np.float32]:
    """For each expert the magnitude that a share of its numbers reaches.

    Args:
      passes: Called twice.
      share: In (0, 1]: `max(1, floor(share * count))` numbers, and those equal to the
        last of them, are at or above the threshold.

    Returns:
      A float32 number for each expert; numbers are to be compared in float32.

    Raises:
      ParameterError: `share` is out of range.

    Example:
      >>> x = np.float32([0.5, -4, 1, -2, 3])
      >>> magnitude_thresholds(lambda: [[x[:2]], [x[2:]]], share=0.4)
      [np.float32(3.0)]
    """
    check_share(share)
    upper = _counts(passes, [None])
    wanted = [kept(share, int(counts.sum())) for counts in upper]
    found = [_from_top(c, k) for c, k in zip(upper, wanted, strict=True)]
    lower = _counts(passes, [place for place, _ in found])
    thresholds = []
    for (place, left), counts in zip(found, lower, strict=True):
        last, _ = _from_top(counts, left)
        bits = np.uint32(place << _LOWER | last)
        thresholds.append(bits.view(np.float32))
    return thresholds


def kept(share: float, count: int) -> int:
    """How many of `count` numbers a share is.

    Example:
      >>> kept(0.29, 100), kept(0.001, 10)  # floor(0.29 * 100) is 28 in floating point
      (29, 1)
    """
    return max(1, int(Fraction(repr(float(share))) * count))


def check_share(share: float) -> None:
    """Refuses what is no share.

    Raises:
      ParameterError: It is not in (0, 1].
    """
    if not 0 < share <= 1:  # NaN too
        raise ParameterError(f"density is in (0, 1]; got {share}")


def _counts(
    passes: Passes, places: Sequence[int | None]
) -> list[Int[np.ndarray, " values"]]:
    """For each expert how often its upper bits, or lower bits under some, have a value.

    Args:
      passes: Called once.
      places: For each expert the upper bits of those whose lower bits are counted; None
        to count upper bits.
    """
    totals: list[Int[np.ndarray, " values"]] = []
    for blocks in passes():
        if not totals:
            values = 2**_UPPER if places[0] is None else 2**_LOWER
            totals = [np.zeros(values, np.int64) for _ in blocks]
        for i, block in enumerate(blocks):
            bits = _bits(block)
            upper = bits >> _LOWER
            place = places[i % len(places)]
            lower = bits & (2**_LOWER - 1)
            digits = upper if place is None else lower[upper == place]
            totals[i] += np.bincount(digits, minlength=len(totals[i]))
    return totals


def _bits(block: Float[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    return np.abs(block.astype(np.float32, copy=False)).view(np.uint32)


def _from_top(counts: Int[np.ndarray, " values"], k: int) -> tuple[int, int]:
    """The value of the k-th largest number, and its place among those of that value."""
    reached = np.cumsum(counts[::-1])[::-1]  # this value or a larger one
    value = int(np.flatnonzero(reached >= k)[-1])
    return value, k - int(reached[value] - counts[value])
