"""What a solver returns."""

from typing import Any, NamedTuple


class Solved(NamedTuple):
    """Factors of one matrix, or of a stack of them, and how they were found.

    Attributes:
      u: Left singular vectors `[*batch, m, k]`.
      s: Singular values `[*batch, k]`.
      vh: Right singular vectors `[*batch, k, n]`.
      error: Estimate of the distance from the optimum, relative to the matrix's norm
        `[*batch]`; see `leading.py`.
      products: Products with the Gram matrix that an iteration took `[*batch]`.
      fell_back: Whether the full decomposition had to be taken in the end `[*batch]`.
    """

    u: Any
    s: Any
    vh: Any
    error: Any
    products: Any
    fell_back: Any


def workspace(m: int, n: int, *, itemsize: int) -> int:
    """Bytes that solving one matrix takes.

    The matrix scaled, its residual or full factors, and squares of the smaller side:
    the Gram matrix, blocks and their images.
    """
    return itemsize * (3 * m * n + 4 * min(m, n) ** 2)
