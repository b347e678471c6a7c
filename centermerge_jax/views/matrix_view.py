"""`MatrixView`: a leaf seen as a batch of matrices."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

Side = Literal["rows", "cols"]


@dataclass(frozen=True)
class Join:
    """The place of one leaf in a matrix that several leaves make up together.

    Attributes:
      group: Name of the joint matrix.
      side: The side along which its members lie next to each other.
      start: First row or column of this member.
      total: Length of that side of the joint matrix.
    """

    group: str
    side: Side
    start: int = 0
    total: int = 0


@dataclass(frozen=True)
class MatrixView:
    """A leaf of a given shape seen as a batch of matrices `[*batch, m, n]`.

    Attributes:
      shape: Shape of the leaf.
      rows: Axes that make up the rows, in order.
      cols: Axes that make up the columns, in order.
      batch: Axes that count matrices.
      join: Set where the leaf is one part of a larger matrix.
      parts: Matrices of equal size that lie next to each other in the leaf, as fused
        queries, keys and values do; they count as a batch, after the batch axes.
      side: Along which side those parts lie.
      inputs: The side that the layer's inputs are multiplied with: rows of a Flax
        kernel, columns of a PyTorch weight. Truncating does not mind; methods that tell
        inputs from outputs do.

    Example:
      >>> view = MatrixView((64, 4, 16), rows=(0,), cols=(1, 2))
      >>> view.m, view.n, view.size
      (64, 64, 64)
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    batch: tuple[int, ...] = ()
    join: Join | None = None
    parts: int = 1
    side: Side = "rows"
    inputs: Side = "rows"

    def _length(self, axes: tuple[int, ...], side: Side) -> int:
        length = math.prod(self.shape[axis] for axis in axes)
        return length // self.parts if side == self.side else length

    @property
    def m(self) -> int:
        """Rows of this leaf's own matrix."""
        return self._length(self.rows, "rows")

    @property
    def n(self) -> int:
        """Columns of this leaf's own matrix."""
        return self._length(self.cols, "cols")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Lengths of what counts matrices: the batch axes, and the parts if any."""
        lengths = tuple(self.shape[axis] for axis in self.batch)
        return lengths if self.parts == 1 else (*lengths, self.parts)

    @property
    def joins_cols(self) -> bool:
        """Whether the leaf lies beside others, along the columns."""
        return self.join is not None and self.join.side == "cols"

    @property
    def joint_shape(self) -> tuple[int, int]:
        """`(m, n)` of the matrix that is factorised, all joined leaves included."""
        if self.join is None:
            return self.m, self.n
        total = self.join.total
        return (self.m, total) if self.joins_cols else (total, self.n)

    @property
    def size(self) -> int:
        """`min(m, n)` of the matrix that is factorised: shares of rank refer to it."""
        return min(self.joint_shape)

    def to_matrix(
        self, x: Float[Array | np.ndarray, "..."]
    ) -> Float[Array | np.ndarray, "... m n"]:
        """Leaves `[*lead, *shape]` as matrices `[*lead, *batch, m, n]`."""
        lead = x.ndim - len(self.shape)
        axes = (*self.batch, *self.rows, *self.cols)
        order = (*range(lead), *(lead + axis for axis in axes))
        x = x.transpose(order)
        matrix = (*x.shape[:lead], *self.batch_shape, self.m, self.n)
        if self.parts == 1 or self.side == "rows":
            return x.reshape(matrix)
        beside = (*matrix[:-3], self.m, self.parts, self.n)
        return x.reshape(beside).swapaxes(-3, -2)

    def from_matrix(
        self, x: Float[Array | np.ndarray, "... m n"]
    ) -> Float[Array | np.ndarray, "..."]:
        """Inverse of `to_matrix`."""
        lead = x.ndim - len(self.batch_shape) - 2
        if self.parts > 1 and self.side == "cols":
            x = x.swapaxes(-3, -2)
        axes = (*self.batch, *self.rows, *self.cols)
        split = tuple(self.shape[axis] for axis in axes)
        order = (*range(lead), *(lead + int(axis) for axis in np.argsort(axes)))
        return x.reshape(*x.shape[:lead], *split).transpose(order)
