"""The floor: matrix products that no method through the Gram matrix can do without.

For a matrix `[m, n]`, m >= n, and rank k these are the Gram matrix (`m n^2` operations:
BLAS does the symmetric half), the projection `x v` (`2 m n k`), and in a merge the
product that adds the factors up (`2 m n k`). Two floors are given: the operations at
the rate of a large matrix product, and the same products really timed, in whichever of
two ways is faster: each on all cores, or side by side with one thread each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.measuring import once, side_by_side


@dataclass(frozen=True)
class Floor:
    """Of one stack of matrices.

    Attributes:
      operations: Additions and multiplications.
      seconds: Of the products really timed.
    """

    operations: float
    seconds: float

    def times(self, factor: float) -> "Floor":
        """The floor of so many such stacks."""
        return Floor(self.operations * factor, self.seconds * factor)


def products(x: np.ndarray, k: int, *, combine: bool, repeats: int) -> Floor:
    """The floor of a stack of matrices.

    Args:
      x: Matrices `[count, m, n]`.
      k: Directions kept of each.
      combine: Whether the factors are added up to one matrix in the end.
      repeats: The best of so many.
    """
    rng = np.random.default_rng(0)
    tall = [y if y.shape[0] >= y.shape[1] else y.T for y in x]
    m, n = tall[0].shape
    v = rng.standard_normal((n, k), np.float32)
    calls: list[Callable[[], object]] = [
        lambda y=y: _gram_and_project(y, v) for y in tall
    ]
    # All factors in one product, as a merge does it.
    u = rng.standard_normal((m, len(x) * k), np.float32)
    w = rng.standard_normal((len(x) * k, n), np.float32)
    ways = (lambda: _in_turn(calls), lambda: side_by_side(calls))
    seconds = min(once(way)[0] for way in ways for _ in range(repeats))
    operations = float(m * n * n + 2 * m * n * k)
    if combine:
        seconds += min(once(lambda: u @ w)[0] for _ in range(repeats))
        operations += 2 * m * n * k
    return Floor(len(x) * operations, seconds)


def _gram_and_project(x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.T @ x, x @ v


def _in_turn(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()
