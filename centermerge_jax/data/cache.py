"""Prepared batches kept in memory, where all of them fit.

An evaluation meets the same images for every model. Decoding and resizing them costs
more than a small model's forward pass, and a task's bytes are often few: 10,000 images
at 224 pixels are 1.5 GB.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from centermerge_jax.data.pipeline import Batch
from centermerge_jax.recipe import parse_size


@runtime_checkable
class Repeatable(Protocol):
    """What can be passed over again and again: `pipeline.Batches`, a list."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Cached:
    """Batches that are made once, if they fit under a limit; else each time anew.

    All or nothing: a part of them would save that part of the work, at most, and always
    cost the whole limit. The first batch tells, as all have one size.

    Args:
      batches: What is kept. Its order is kept with it, so a pass with another seed is
        not for this.
      limit: Memory that the kept batches take at most, such as 500MB.

    Raises:
      ParameterError: The limit is no size.

    Example:
      >>> import numpy as np
      >>> from centermerge_jax.data.pipeline import batches
      >>> from centermerge_jax.data.preprocess import CLIP
      >>> from centermerge_jax.data.examples import Example
      >>> source = [Example(np.zeros((8, 8), np.uint8), 0)] * 5
      >>> cached = Cached(batches(source, batch=2, preprocessing=CLIP.at(4)))
      >>> len(cached), cached.full, len(list(cached)), cached.full
      (3, False, 3, True)
    """

    def __init__(self, batches: Repeatable, *, limit: str = "2GiB") -> None:
        """Keeps nothing before the first pass."""
        self._batches = batches
        self._limit = parse_size(limit, of="limit")
        self._kept: list[Batch] | None = None

    @property
    def full(self) -> bool:
        """Whether all batches are kept."""
        return self._kept is not None

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """A pass; the first one that is not broken off fills the cache."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        for batch in self._batches:
            # As if all were as large as this one: so the sum stays below as well.
            if kept is not None and len(self) * batch.nbytes <= self._limit:
                kept.append(batch)
            else:
                kept = None
            yield batch
        self._kept = kept
