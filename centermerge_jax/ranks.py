"""How many singular directions to keep of one matrix."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from jax.core import Tracer

from centermerge_jax.errors import ParameterError

Rank = int | float | np.integer | np.floating
"""A share of `min(m, n)` as a float in (0, 1], or a number of directions as an int."""


def check_rank(rank: Any) -> int | float:
    """Returns the rank as a Python number, or says what is wrong with it.

    Raises:
      ParameterError: It is traced, a bool, not a number, NaN, or outside its range.

    Example:
      >>> check_rank(0.08)
      0.08
      >>> check_rank(0)
      Traceback (most recent call last):
      centermerge_jax.errors.ParameterError: rank is at least 1 direction, got 0
    """
    if isinstance(rank, Tracer):
        raise ParameterError(
            "rank decides shapes and so has to be static under jax.jit: close over it, "
            "or name it in static_argnames"
        )
    if isinstance(rank, Integral) and not isinstance(rank, bool):
        if rank < 1:
            raise ParameterError(f"rank is at least 1 direction, got {rank}")
        return int(rank)
    if isinstance(rank, Real) and not isinstance(rank, bool):
        if not 0 < float(rank) <= 1:  # also false for NaN
            raise ParameterError(
                f"rank as a share of min(m, n) lies in (0, 1], got {rank}; write a "
                "number of directions as an integer"
            )
        return float(rank)
    raise ParameterError(f"rank is a share (float) or a number (int), got {rank!r}")


def resolve_rank(rank: Rank, size: int) -> int:
    """The number of directions kept of a matrix with `size = min(m, n)`.

    A share gives `max(1, floor(share * size))` and 1.0 everything; an integer gives
    itself, or `size` where the matrix has no more.

    Args:
      rank: Share in (0, 1] or integer of at least 1.
      size: `min(m, n)` of the matrix, at least 1.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153: the rounding is that of the authors' published code.

    Example:
      >>> resolve_rank(0.08, 768), resolve_rank(0.001, 768), resolve_rank(1.0, 768)
      (61, 1, 768)
      >>> resolve_rank(100, 64)
      64
    """
    rank = check_rank(rank)
    if isinstance(rank, int):
        return min(rank, size)
    return max(1, math.floor(rank * size))


def check_ranks(rank: Any, tasks: Sequence[str]) -> tuple[int | float, ...]:
    """The rank of each task, from one for all or one for each by name.

    Raises:
      ParameterError: One is out of range, or the names are not those of the tasks.

    Example:
      >>> check_ranks({"b": 0.1, "a": 3}, ["a", "b"]), check_ranks(0.5, ["a", "b"])
      ((3, 0.1), (0.5, 0.5))
    """
    if not isinstance(rank, Mapping):
        return (check_rank(rank),) * len(tasks)
    if set(rank) != set(tasks):
        raise ParameterError(
            f"ranks are given for {', '.join(map(str, rank))}; the tasks are "
            f"{', '.join(tasks)}"
        )
    return tuple(check_rank(rank[task]) for task in tasks)


def check_fits(rank: Rank, sizes: Mapping[str, int]) -> None:
    """Checks that there is a matrix at all, and one of at least `rank` directions.

    Args:
      rank: As for `resolve_rank`.
      sizes: `min(m, n)` of every matrix, by the name of its leaf.

    Raises:
      ParameterError: There is none, or `rank` is above the size of every matrix.
    """
    if not sizes:
        raise ParameterError("no leaf is a matrix, so there is nothing to truncate")
    largest = max(sizes, key=lambda name: sizes[name])
    rank = check_rank(rank)
    if isinstance(rank, int) and rank > sizes[largest]:
        raise ParameterError(
            f"rank {rank} is above the size of every matrix; the largest is {largest} "
            f"with min(m, n) = {sizes[largest]}"
        )
