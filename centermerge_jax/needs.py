"""How much memory a part of a merge takes: the reckoning behind `--memory`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import Checkpoint, LeafInfo
from centermerge_jax.division import Part
from centermerge_jax.host_memory import cores
from centermerge_jax.linalg import BYTES_PER_NUMBER, workspace
from centermerge_jax.methods import Method
from centermerge_jax.ranks import resolve_rank
from centermerge_jax.recipe import Recipe
from centermerge_jax.views import MatrixView, Table

RUNTIME = 200 * 2**20
"""Bytes that Python and JAX take before any tensor is there."""

SOLVING = 150 * 2**20
"""Bytes of SciPy and compiled programs beside that, where matrices are solved."""

TORCH = 250 * 2**20
"""Bytes that PyTorch takes, where it reads a file. It maps files whole, and what is
mapped and read stays resident: their sizes come on top."""

ORBAX_WRITING = 3
"""Bytes that writing an Orbax folder takes for each byte of the result, whatever the
budget: the library holds it whole, beside the mapped file that it comes from."""

AT_ONCE = 2**28
"""Bytes of a part over all models, from which on larger parts gain nothing."""

LEAST = 2**16
"""Numbers of a part below which its overhead is all that remains."""

_FLOAT = 4


@dataclass(frozen=True)
class Needs:
    """Bytes, of which most are for each number of one model in a part.

    Attributes:
      runtime: Before any tensor is there, for the whole process.
      trees: How many models are read.
      stored: For each number as it is read, over all models.
      written: For each number of the result.
      dense: For each number of one leaf that is no matrix, as the method sees it.
      matrices: For each number of matrices that are factorised.
      cast: For each number, where inputs are cast before they are merged.
      workspace: For one matrix that is solved.
      workers: Matrices that are solved at a time.
      ahead: Whether the next part is read while one is merged.
      data: For each number, where the method takes statistics of the experts' data.
    """

    runtime: int
    trees: int
    stored: int
    written: int
    dense: int
    matrices: int
    cast: int
    workspace: int
    workers: int
    ahead: bool = True
    data: int = 0

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        method: Method,
        models: Sequence[Checkpoint],
        leaves: Mapping[str, LeafInfo],
        views: Table,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> "Needs":
        """The needs of a recipe."""
        widths = [max(m.leaves[x].dtype.itemsize for x in leaves) for m in models]
        written = np.dtype(recipe.dtype).itemsize if recipe.dtype else widths[0]
        computed = max(_FLOAT, written, widths[0])
        matrices = {name: view for name, view in views.items() if view is not None}
        # An edge of noise is found from all singular values.
        all_of_them = any(each.startswith("noise=") for each in recipe.set)
        held = [
            _held(view, 1.0 if all_of_them else settings[name].get("rank", 1.0))
            for name, view in matrices.items()
        ]
        work = (_workspace(view) for view in matrices.values())
        torch = [sum(m.files.values()) for m in models if m.format == "torch"]
        return cls(
            runtime=RUNTIME
            + (SOLVING if matrices else 0)
            + (TORCH if torch else 0)
            + sum(torch),
            trees=len(models),
            stored=sum(widths),
            written=written,
            dense=0 if method.scope == "element" else computed * (len(models) + 2),
            matrices=int(computed * len(models) * max(held, default=0)),
            cast=computed * sum(w != computed for w in widths) if recipe.dtype else 0,
            workspace=max(work, default=0),
            workers=cores(),
        )

    def thriftier(self) -> Iterator["Needs"]:
        """These needs, and then smaller ones, which cost time."""
        yield self
        yield replace(self, ahead=False)
        if self.workspace:
            yield replace(self, ahead=False, workers=1)

    @property
    def _moved(self) -> int:
        """Bytes for each number that is read and written."""
        return (1 + self.ahead) * self.stored + 2 * self.written + self.cast

    def bytes(self, part: Part) -> int:
        """Resident memory while it is merged, the next read and the last written."""
        if part.kept:
            work = 0
        elif part.matrix is None:  # these are merged leaf by leaf
            work = self.dense * max(piece.stop - piece.start for piece in part.pieces)
        else:
            work = part.numbers * self.matrices + self.workers * self.workspace
        return self.runtime + part.numbers * self._moved + work

    def publishing(self, recipe: Recipe, first: Checkpoint, written: int) -> int:
        """Resident memory while the result gets its form, after the last part."""
        orbax = recipe.format or first.format
        if orbax != "orbax" or (recipe.output or "").endswith(".safetensors"):
            return 0
        return self.runtime + int(ORBAX_WRITING * written)

    def work(self, part: Part) -> int:
        """What to tell a method about the memory for its work on a part."""
        if self.workers < cores():
            return max(1, self.workers * self.workspace)
        # Enough for it as a whole: it was divided before.
        each = BYTES_PER_NUMBER * self.trees
        return each * part.numbers + self.workers * self.workspace

    def most(self, memory: int) -> int:
        """Numbers of one model in a part, so that all fits into memory."""
        each = self._moved + max(self.dense, self.matrices) + self.data
        left = memory - self.runtime - self.workers * self.workspace
        return max(LEAST, min(left // each, AT_ONCE // self.stored))


def _held(view: MatrixView, rank: int | float) -> float:
    """Numbers that truncating takes for each number of a task vector.

    It, a copy if it is joined, its factors three times (as they come, stacked, and
    scaled), and a little.
    """
    m, n = view.joint_shape
    factors = resolve_rank(rank, view.size) * (m + n) / (m * n)
    return 1.25 + (view.join is not None) + 3 * factors


def _workspace(view: MatrixView) -> int:
    return workspace(*view.joint_shape, itemsize=_FLOAT)
