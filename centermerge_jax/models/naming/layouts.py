"""How an array lies in a public checkpoint, against how it lies in our trees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The way from their array to ours, and back without the loss of a bit.

    Attributes:
      axes: Their axes in our order; None keeps the order.
      lead: How many axes of length one stand in front, which ours does not have.
      along: Their axis along which several of our arrays lie, in equal parts. It
        counts, as `axes` does, without the axes in front.

    Example:
      >>> q, k, v = FUSED.ours(np.arange(12).reshape(6, 2), 3)
      >>> k.tolist()
      [[4, 6], [5, 7]]
      >>> FUSED.theirs([q, k, v]).shape
      (6, 2)
    """

    axes: tuple[int, ...] | None = None
    lead: int = 0
    along: int | None = None

    def ours(self, theirs: np.ndarray, count: int) -> list[np.ndarray]:
        """Their array as `count` of ours; its shape is one that `our_shape` takes."""
        inner = theirs.reshape(theirs.shape[self.lead :])
        parts = [inner] if self.along is None else np.split(inner, count, self.along)
        return [_turned(part, self.axes) for part in parts]

    def theirs(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Our arrays, of one shape and type, as theirs."""
        back = None if self.axes is None else tuple(map(int, np.argsort(self.axes)))
        parts = [_turned(part, back) for part in ours]
        inner = parts[0] if self.along is None else np.concatenate(parts, self.along)
        return inner.reshape((*[1] * self.lead, *inner.shape))

    def our_shape(self, theirs: Shape, count: int) -> Shape | None:
        """The shape of each of `count` arrays of ours; None where theirs cannot be."""
        lead, inner = theirs[: self.lead], list(theirs[self.lead :])
        if lead != (1,) * self.lead or len(inner) < len(self.axes or ()):
            return None
        if self.along is not None:
            if self.along >= len(inner) or inner[self.along] % count:
                return None
            inner[self.along] //= count
        if self.axes is None:
            return tuple(inner)
        if len(inner) != len(self.axes):
            return None
        return tuple(inner[axis] for axis in self.axes)

    def their_shape(self, ours: Shape, count: int) -> Shape:
        """The shape of their array."""
        inner = [0] * len(ours)
        for place, axis in enumerate(self.axes or range(len(ours))):
            inner[axis] = ours[place]
        if self.along is not None:
            inner[self.along] *= count
        return (*[1] * self.lead, *inner)


SAME = Layout()
"""As it is; also the `Conv1D` of GPT-2, which stores `[in, out]` as we do."""

DENSE = Layout(axes=(1, 0))
"""PyTorch's `Linear`, `[out, in]`."""

CONV = Layout(axes=(2, 3, 1, 0))
"""PyTorch's `Conv2d`, `[out, in, height, width]`."""

FUSED = Layout(axes=(1, 0), along=0)
"""Queries, keys and values in one `Linear`, `[3 out, in]`."""

FUSED_BIAS = Layout(along=0)
"""Their biases in one vector."""

FUSED_COLUMNS = Layout(along=1)
"""Queries, keys and values in one `Conv1D`, `[in, 3 out]`."""

ROW = Layout(lead=1)
"""With an axis for the batch: `[1, ...]`."""

TOKEN = Layout(lead=2)
"""A token with axes for batch and position: `[1, 1, width]`."""


def _turned(x: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """With its axes in another order, and in C order; copied only if it has to be."""
    # Not `ascontiguousarray`, which makes vectors of scalars.
    return np.asarray(x if axes is None else x.transpose(axes), order="C")
