"""The statistics of the experts of a merge: found, checked, and read part by part."""

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from centermerge_jax.checkpoints import Checkpoint, LeafInfo, Piece
from centermerge_jax.division import Part
from centermerge_jax.errors import CheckpointError, ParameterError, listing
from centermerge_jax.methods import Method
from centermerge_jax.recipe import Recipe
from centermerge_jax.statistics import Statistics, read_statistics

_MEMORY = 3
"""Bytes that statistics take for each byte of theirs: as they are read, as an array on
the device, and what a method makes of them."""


def find_statistics(
    recipe: Recipe,
    method: Method,
    experts: Mapping[str, Checkpoint],
    merged: Collection[str],
) -> dict[str, Statistics]:
    """Opens the statistics of all experts, and checks them from their headers.

    Args:
      recipe: Its `statistics` are looked at.
      method: Its method.
      experts: By name, in the order of the tasks.
      merged: Names of the leaves that are merged.

    Returns:
      One for each expert, in that order; none for methods that need none.

    Raises:
      ParameterError: One is missing, of another kind, or not needed.
      CheckpointError: A file cannot be read, or does not fit the expert's leaves.
    """
    paths = _paths(recipe, method, experts)
    if method.data is None:
        return {}
    found = {name: read_statistics(paths[name]) for name in experts}
    wrong = [
        f"{one.path}: {one.origin.kind} of {one.origin.task}"
        for one in found.values()
        if one.origin.kind != method.data
    ]
    if wrong:
        header = (
            f"{recipe.method} needs statistics of the kind {method.data}; "
            "{n} file{s} of another"
        )
        raise ParameterError(listing(header, wrong))
    problems = []
    for name, one in found.items():
        problems += _faults(one, name, experts[name], merged)
    if method.data == "fisher":
        problems += _without(found, experts, merged)
    else:
        problems += _uneven(found, merged)
    if problems:
        header = "{n} problem{s} with statistics"
        cure = "Make them of these experts: centermerge statistics."
        raise CheckpointError(listing(header, problems, cure))
    if method.data == "merged_gram":
        _check_together(found)
    return found


def _paths(
    recipe: Recipe, method: Method, experts: Mapping[str, Checkpoint]
) -> dict[str, str]:
    """The file of each expert."""
    paths: dict[str, str] = {}
    for given in recipe.statistics:
        name, equals, path = given.partition("=")
        if not (equals and name and path):
            raise ParameterError(f"--statistics {given}: give NAME=FILE")
        if name not in experts:
            raise ParameterError(
                f"--statistics {given}: no expert is called {name}; there are "
                f"{', '.join(experts)}"
            )
        if name in paths:
            raise ParameterError(f"--statistics gives two files for {name}")
        paths[name] = path
    if method.data is None and paths:
        raise ParameterError(f"{recipe.method} takes no --statistics")
    missing = [name for name in experts if name not in paths]
    if method.data is not None and missing:
        if method.data == "merged_gram":
            cure = "centermerge statistics TASK=EXPERT ... --kind merged_gram -o FOLDER"
        else:
            kind = method.data
            some = experts[missing[0]].path
            cure = f"centermerge statistics {some} --task TASK --kind {kind} -o FILE"
        raise ParameterError(
            f"{recipe.method} needs statistics of every expert, --statistics "
            f"NAME=FILE: none for {', '.join(missing)}. Make them by: {cure}"
        )
    return paths


def _faults(
    one: Statistics, name: str, expert: Checkpoint, merged: Collection[str]
) -> Iterator[str]:
    """In what a file does not fit its expert."""
    if not any(leaf in merged for leaf in one.leaves):
        yield f"{one.path}: none of its leaves is merged; of {one.origin.expert}"
        return
    for leaf, info in one.leaves.items():
        own = expert.leaves.get(leaf)
        if own is None:
            yield f"{one.path}: has {leaf}, which {name} has not"
        elif leaf not in merged:
            continue
        elif one.origin.kind == "fisher" and info.shape != own.shape:
            yield f"{one.path}: {leaf} is {info}, that of {name} is {own}"
        elif one.origin.kind != "fisher" and not _is_gram_of(info, own):
            yield f"{one.path}: {leaf} is {info}, no Gram matrix for {own} of {name}"


def _is_gram_of(gram: LeafInfo, leaf: LeafInfo) -> bool:
    shape = gram.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or not shape[-1]:
        return False
    return math.prod(leaf.shape) % math.prod(shape[:-1]) == 0


def _without(
    found: Mapping[str, Statistics],
    experts: Mapping[str, Checkpoint],
    merged: Collection[str],
) -> Iterator[str]:
    """Floating leaves that have no Fisher information."""
    for name, one in found.items():
        for leaf in merged:
            info = experts[name].leaves[leaf]
            floating = info.kind == "array" and jnp.issubdtype(info.dtype, jnp.floating)
            if floating and leaf not in one.leaves:
                yield f"{one.path}: has no {leaf}; heads can be left out: --exclude"


def _uneven(found: Mapping[str, Statistics], merged: Collection[str]) -> Iterator[str]:
    """Leaves that have a Gram matrix for some experts only."""
    leaves = {leaf for one in found.values() for leaf in one.leaves}
    for leaf in sorted(leaves & {*merged}):
        if lacking := [name for name, one in found.items() if leaf not in one.leaves]:
            yield f"{leaf}: no Gram matrix for {', '.join(lacking)}"


def _check_together(found: Mapping[str, Statistics]) -> None:
    """Files behind merged layers are of one run, over just these experts."""
    runs = [dict(one.origin.together) for one in found.values()]
    if any(run != runs[0] for run in runs) or len(runs[0]) != len(found):
        tasks = ", ".join(runs[0])
        raise CheckpointError(
            "statistics of the kind merged_gram depend on all experts, and these were "
            f"not made together for just these ones (the first with {tasks}); make "
            "them again: centermerge statistics TASK=EXPERT ... --kind merged_gram"
        )


def part_bytes(found: Mapping[str, Statistics], pieces: Sequence[Piece]) -> int:
    """Memory that the statistics of a part take."""
    return _MEMORY * sum(
        one.leaves[piece.leaf].nbytes
        for one in found.values()
        for piece in pieces
        if piece.leaf in one.leaves
    )


def number_bytes(
    found: Mapping[str, Statistics], leaves: Mapping[str, LeafInfo]
) -> int:
    """The same for each number of a leaf, at most."""
    shares = (
        sum(one.leaves[name].nbytes for one in found.values() if name in one.leaves)
        / max(1, math.prod(info.shape))
        for name, info in leaves.items()
    )
    return math.ceil(_MEMORY * max(shares, default=0))


def part_arguments(
    found: Mapping[str, Statistics],
    method: Method,
    part: Part,
    merged: Collection[str],
    trees: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The arguments of a method about the data, for the leaves of a part.

    Args:
      found: From `find_statistics`.
      method: The method.
      part: The part.
      merged: Names of all leaves that are merged.
      trees: The leaves of the part of each expert.

    Raises:
      CheckpointError: A file is damaged.
    """
    if method.data is None:
        return {}
    values = {}
    for name, one in found.items():
        pieces = [p for p in part.pieces if p.leaf in one.leaves]
        if method.data != "fisher":
            pieces = [p for piece in pieces for p in _gram_piece(one, piece, part)]
        values[name] = {
            leaf: _spread(np.asarray(x), leaf, method, part)
            for leaf, x in one.read_pieces(pieces).items()
        }
    if method.data == "fisher":
        # Trees like the experts: with the leaves that are carried.
        values = {name: {**trees[name], **own} for name, own in values.items()}
    arguments: dict[str, Any] = {method.data_argument: values}
    taken = inspect.signature(method.function).parameters
    if method.data == "fisher" and "norms" in taken:
        arguments["norms"] = {
            name: one.norm(leaf for leaf in merged if leaf in one.leaves) or 1.0
            for name, one in found.items()
        }
    return arguments


def _gram_piece(one: Statistics, piece: Piece, part: Part) -> Iterator[Piece]:
    """The piece of a Gram matrix for a piece of a leaf."""
    shape = one.leaves[piece.leaf].shape
    view = part.views.get(piece.leaf)
    if view is None and part.views:
        return  # not a matrix, and perhaps not whole
    lead = shape[:-2]
    layers = lead[0] if lead else 1
    if not lead or piece.shape[:1] == (layers,):
        yield Piece(piece.leaf, 0, math.prod(shape), shape)
        return
    # Some layers of a stack.
    layer = math.prod(shape[1:])
    first = piece.start // math.prod(piece.shape[1:])
    count = piece.shape[0]
    yield Piece(piece.leaf, first * layer, (first + count) * layer, (count, *shape[1:]))


def _spread(x: np.ndarray, leaf: str, method: Method, part: Part) -> np.ndarray:
    """A Gram matrix for each of the matrices that lie side by side in a leaf."""
    view = part.views.get(leaf)
    if method.data == "fisher" or view is None or view.parts == 1:
        return x
    return np.broadcast_to(x[..., None, :, :], (*view.batch_shape, *x.shape[-2:]))


def describe_statistics(found: Mapping[str, Statistics]) -> dict[str, Any]:
    """What a manifest says of them."""
    return {
        name: {
            "path": str(one.path),
            "kind": one.origin.kind,
            "task": one.origin.task,
            "examples": one.origin.examples,
            "source": one.origin.source,
            "tensors_sha256": dict(one.sha256),
        }
        for name, one in found.items()
    }
