"""LoRA adapters as PEFT writes them, folded into the model that they change.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. Of a linear layer
with weight `W [out, in]` it stores `A [r, in]` and `B [out, r]`, and means

    W + scale * B @ A,  scale = alpha / r, or alpha / sqrt(r) if rank-stabilised

A convolution's factors are such matrices with the kernel's axes behind `in`. Leaves
that are `[in, out]`, as all embeddings are, take the transposed product.

References:
  Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
  arXiv:2106.09685. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning
  with LoRA", 2023, arXiv:2312.03732. The format: PEFT's guide "PEFT checkpoint format".
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from centermerge_jax.checkpoints import (
    adapter_config,
    adapter_tensors,
    safetensors_files,
)
from centermerge_jax.checkpoints.adapter_tensors import (
    Change,
    is_floating,
    read_changes,
)
from centermerge_jax.checkpoints.checkpoint import (
    Allocate,
    Checkpoint,
    Leaf,
    LeafInfo,
    Piece,
    fresh,
)
from centermerge_jax.checkpoints.safetensors_files import Placed
from centermerge_jax.errors import CheckpointError, listing

_BLOCK = 2**20  # numbers of a leaf that are changed at a time


@dataclass(frozen=True)
class Factors:
    """The change of one leaf as the adapter stores it.

    Attributes:
      a: `[r, in]`; of a convolution with its kernel's axes flattened into `in`.
      b: `[out, r]`.
      scale: Factor of the product.
      transposed: Whether the leaf is `[in, out]`.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    transposed: bool

    def pair(
        self, dtype: np.dtype | type = np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Two matrices whose product is the change, in the leaf's own orientation.

        Args:
          dtype: Type to compute in.

        Returns:
          `[rows, r]` with the scale in it, and `[r, columns]`.

        Example:
          >>> factors = Factors(np.ones((1, 3)), np.ones((2, 1)), 0.5, transposed=True)
          >>> left, right = factors.pair()
          >>> left @ right
          array([[0.5, 0.5],
                 [0.5, 0.5],
                 [0.5, 0.5]], dtype=float32)
        """
        a, b = self.a.astype(dtype), self.b.astype(dtype)
        left, right = (a.T, b.T) if self.transposed else (b, a)
        return left * np.asarray(self.scale, dtype), right


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter: it has `adapter_config.json`."""
    return (path / adapter_config.NAME).is_file()


def open_adapter(path: Path, base: Checkpoint) -> Checkpoint:
    """Opens an adapter as the whole model that it makes of its base.

    Args:
      path: The adapter's folder.
      base: The model that it was trained on.

    Returns:
      A checkpoint with the base's leaves (names, shapes, types) and form. A changed
      leaf is computed when it is read, in float32 (float64 for float64), and cast
      once. Its files are the adapter's and the base's.

    Raises:
      CheckpointError: The adapter is of another kind, incomplete, or does not fit the
        base; everything wrong is listed.
    """
    placed, changes = read_changes(path, base.leaves)
    _check_fit(path, placed, changes, base)
    own = {
        file: file.stat().st_size
        for file in (path / adapter_config.NAME, path / adapter_tensors.NAME)
    }
    folded = _Folded(base, placed, changes)
    return replace(
        base,
        path=path,
        name=path.absolute().name,
        files={**own, **base.files},
        fetch=folded.fetch,
        fetch_range=folded.fetch_range if base.fetch_range else None,
    )


def read_factors(path: Path, base_leaf_names: Iterable[str]) -> dict[str, Factors]:
    """Reads an adapter without its base, for `low_rank_experts`.

    Args:
      path: The adapter's folder.
      base_leaf_names: Names of the base's leaves, which the result goes by.

    Returns:
      Factors of each leaf that the adapter changes, in the adapter's types.

    Raises:
      CheckpointError: As `open_adapter`, but for shapes; or the adapter also replaces
        whole leaves, which are no factors.
    """
    placed, changes = read_changes(path, dict.fromkeys(base_leaf_names))
    whole = [
        f"{leaf} is replaced" for leaf, x in changes.items() if x.whole is not None
    ]
    if whole:
        raise CheckpointError(
            listing(
                f"{path}: {{n}} change{{s}} that no factors can express",
                whole,
                "Merge the adapter folded into its base.",
            )
        )
    return {leaf: _factors(placed, change) for leaf, change in changes.items()}


def _check_fit(
    path: Path,
    placed: Mapping[str, Placed],
    changes: Mapping[str, Change],
    base: Checkpoint,
) -> None:
    """Checks the shapes that an adapter has against those of the base."""
    # Of one tensor under two names the adapter means one; a merge would change both.
    problems = [
        f"{leaf}: is also {other} in the base, which would change with it"
        for other, leaf in base.tied.items()
        if leaf in changes
    ]
    for leaf, change in changes.items():
        info = base.leaves[leaf]
        if not is_floating(info):
            problems.append(f"{leaf}: is {info} in the base, which is not floating")
            continue
        if change.whole is not None and placed[change.whole].info.shape != info.shape:
            shape = list(placed[change.whole].info.shape)
            problems.append(f"{leaf}: is replaced by {shape}, the base has {info}")
        if change.a is None or change.b is None:
            continue
        ins, out = placed[change.a].info.shape[1:], placed[change.b].info.shape[:1]
        shape = (*ins, *out) if change.transposed else (*out, *ins)
        if shape != info.shape:
            turned = f"; is 'fan_in_fan_out' right in {adapter_config.NAME}?"
            hint = turned if shape[::-1] == info.shape else ""
            problems.append(
                f"{leaf}: the change is {list(shape)}, the base has {info}{hint}"
            )
    if problems:
        raise CheckpointError(
            listing(
                f"{path}: {{n}} leaf name{{s}} that do not fit the base",
                problems,
                "Give the base that it was trained on.",
            )
        )


def _factors(placed: Mapping[str, Placed], change: Change) -> Factors:
    assert change.a is not None
    assert change.b is not None
    wanted = [change.a, change.b]
    tensors = dict(safetensors_files.reader(placed)(wanted, fresh))
    a, b = (np.asarray(tensors[name]) for name in wanted)
    rank = len(a)
    return Factors(
        a.reshape(rank, -1), b.reshape(-1, rank), change.scale, change.transposed
    )


@dataclass(frozen=True)
class _Folded:
    """Reads a base with an adapter folded in."""

    base: Checkpoint
    placed: Mapping[str, Placed]
    changes: Mapping[str, Change]

    def fetch(
        self, names: Sequence[str], allocate: Allocate
    ) -> Iterator[tuple[str, Leaf]]:
        """Yields leaves by name, those of the base first."""
        wholes = {n: x.whole for n, x in self.changes.items() if x.whole is not None}
        wanted = set(names) - wholes.keys()
        pieces = [
            Piece(name, 0, math.prod(info.shape), info.shape)
            for name, info in self.base.leaves.items()
            if name in wanted
        ]
        for name, leaf in self.base.read_pieces(pieces, allocate=allocate):
            yield name, self._changed(name, leaf)
        replaced = [name for name in names if name in wholes]
        tensors = safetensors_files.reader(self.placed)(
            [wholes[name] for name in replaced], allocate
        )
        for name, (_, leaf) in zip(replaced, tensors, strict=True):
            yield name, self._changed(name, leaf)

    def fetch_range(
        self, name: str, start: int, stop: int, allocate: Allocate
    ) -> np.ndarray:
        """Reads some of a leaf's flat elements."""
        change = self.changes.get(name)
        if change is not None and change.whole is not None:
            read = safetensors_files.range_reader(self.placed)
            flat = self._cast(name, read(change.whole, start, stop, allocate))
        else:
            assert self.base.fetch_range is not None
            flat = self.base.fetch_range(name, start, stop, allocate)
        if change is not None and change.a is not None:
            flat = np.require(flat, requirements=["C", "W"])
            self._add(change, self.base.leaves[name], flat, start)
        return flat

    def _changed(self, name: str, leaf: Leaf) -> Leaf:
        change = self.changes.get(name)
        if change is None:
            return leaf
        array = self._cast(name, np.asarray(leaf))
        if change.a is not None:
            array = np.require(array, requirements=["C", "W"])
            self._add(change, self.base.leaves[name], array.reshape(-1), 0)
        return array

    @np.errstate(over="ignore", invalid="ignore")  # the merge names what is not finite
    def _cast(self, name: str, array: np.ndarray) -> np.ndarray:
        return array.astype(self.base.leaves[name].dtype, copy=False)

    @np.errstate(over="ignore", invalid="ignore")
    def _add(
        self, change: Change, info: LeafInfo, flat: np.ndarray, start: int
    ) -> None:
        """Adds the change to a leaf's flat elements from `start` on, in place.

        Blocks of rows are the same whatever is read, and so are the rounded sums.
        """
        dtype = np.dtype(np.float64 if info.dtype == np.float64 else np.float32)
        left, right = _factors(self.placed, change).pair(dtype)
        columns, stop = right.shape[1], start + flat.size
        step = max(1, _BLOCK // max(1, columns))
        for row in itertools.count(start // max(1, columns) // step * step, step):
            begin = row * columns
            if begin >= stop:
                break
            block = (left[row : row + step] @ right).reshape(-1)
            low, high = max(begin, start), min(begin + block.size, stop)
            part = flat[low - start : high - start]
            part[...] = part.astype(dtype) + block[low - begin : high - begin]
