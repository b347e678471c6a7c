"""How much memory a part of a merge takes: the reckoning behind `--memory`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from centermerge_jax.checkpoints import Checkpoint, LeafInfo
from centermerge_jax.division import Part
from centermerge_jax.host_memory import cores
from centermerge_jax.linalg import BYTES_PER_NUMBER, workspace
from centermerge_jax.recipe import Recipe
from centermerge_jax.views import MatrixView, Table

RUNTIME = 300 * 2**20
"""Bytes that Python, JAX and its compiler take before any tensor is there."""

AT_ONCE = 2**28
"""Bytes of a part over all models, from which on larger parts gain nothing."""

_LEAST = 2**16
"""Numbers of a part below which its overhead is all that remains."""

_FLOAT = 4


@dataclass(frozen=True)
class Needs:
    """Bytes for each number of one model in a part.

    Attributes:
      stored: As they are read, over all models.
      trees: Number of models.
      elementwise: Beside that, for leaves that are seen number by number.
      matrices: Likewise for matrices that are factorised.
      written: Of the result, as it is computed and as it is stored.
      kept: Of leaves that are copied, as they are read.
      workspace: Beside all that, for the matrices that are solved at a time.
    """

    stored: int
    trees: int
    elementwise: int
    matrices: int
    written: int
    kept: int
    workspace: int

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        models: Sequence[Checkpoint],
        leaves: Mapping[str, LeafInfo],
        views: Table,
    ) -> "Needs":
        """The needs of a recipe."""
        widest = max((info.dtype.itemsize for info in leaves.values()), default=_FLOAT)
        stored = sum(
            max((m.leaves[x].dtype.itemsize for x in leaves), default=_FLOAT)
            for m in models
        )
        output = np.dtype(recipe.dtype).itemsize if recipe.dtype else widest
        computed = max(
            _FLOAT, widest if widest == 8 else 0, output if output == 8 else 0
        )
        cast = computed * len(models) if recipe.dtype else 0
        return cls(
            stored=stored,
            trees=len(models),
            elementwise=computed * (len(models) + 1) + cast,
            matrices=BYTES_PER_NUMBER * len(models) * computed // _FLOAT + cast,
            written=computed + output,
            kept=widest,
            workspace=max(map(_workspace, filter(None, views.values())), default=0),
        )

    def bytes(self, part: Part) -> int:
        """Resident memory while it is merged, the next read and the last written."""
        if part.kept:
            return RUNTIME + part.numbers * (2 * self.kept + self.written)
        each = 2 * self.stored + 2 * self.written
        return RUNTIME + self.work(part) + part.numbers * each

    def work(self, part: Part) -> int:
        """Of it what the method takes, beside its input and output."""
        if part.matrix is None:
            return part.numbers * self.elementwise
        return part.numbers * self.matrices + _workspace(part.matrix)

    def most(self, memory: int) -> int:
        """Numbers of one model in a part, so that all fits into memory."""
        work = max(self.elementwise, self.matrices if self.workspace else 0)
        each = work + 2 * self.stored + 2 * self.written
        left = memory - RUNTIME - self.workspace
        return max(_LEAST, min(left // each, AT_ONCE // self.stored))


def _workspace(view: MatrixView) -> int:
    return cores() * workspace(*view.joint_shape, itemsize=_FLOAT)
