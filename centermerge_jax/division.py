"""How a merge is divided into parts that fit into memory, from shapes alone.

A part is some leaves, or pieces of leaves, that are read from all models, merged and
written together. What belongs together stays together: matrices that one view joins,
and every matrix as a whole. Stacked matrices (a scanned layer) are divided along their
batch axis, and leaves that a method treats number by number anywhere.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from centermerge_jax.checkpoints import LeafInfo, Piece
from centermerge_jax.errors import ParameterError, ViewError
from centermerge_jax.methods import Scope
from centermerge_jax.views import MatrixView, Table, groups


@dataclass(frozen=True)
class Part:
    """What is read, merged and written together.

    Attributes:
      pieces: Of leaves, in the order of their names; at most one of each leaf.
      views: Views of the pieces; empty for methods without views.
      settings: Hyperparameters of these leaves.
      kept: Whether they are copied from one model and not merged.
    """

    pieces: tuple[Piece, ...]
    views: Table
    settings: Mapping[str, Any]
    kept: bool = False

    @property
    def numbers(self) -> int:
        """Numbers of one model in it."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def spans(self) -> list[tuple[str, int, int]]:
        """Name, start and stop of every piece."""
        return [(piece.leaf, piece.start, piece.stop) for piece in self.pieces]

    @property
    def matrix(self) -> MatrixView | None:
        """The view of its matrices, which are all of one shape, if it has any."""
        return next((view for view in self.views.values() if view is not None), None)


def divide(
    leaves: Mapping[str, LeafInfo],
    *,
    views: Table,
    settings: Mapping[str, Mapping[str, Any]],
    scope: Scope,
    most: int,
    divisible: bool = True,
) -> list[Part]:
    """Divides the leaves of a merge.

    Args:
      leaves: Shape and type of each leaf to merge.
      views: View of each floating leaf; empty for methods without views.
      settings: Hyperparameters of each leaf; a part has one kind.
      scope: How much of a tree the method has to see at once.
      most: Numbers of one model in a part; more only where less is impossible.
      divisible: Whether parts of a leaf can be read.

    Raises:
      ViewError: Leaves that one view joins have different hyperparameters.
      ParameterError: Leaves that the method has to see at once have.

    Example:
      >>> import numpy as np
      >>> leaves = {"a": LeafInfo((3, 2), np.dtype("float32"))}
      >>> how = {"views": {}, "settings": {"a": {}}, "scope": "element"}
      >>> [part.pieces[0].shape for part in divide(leaves, most=4, **how)]
      [(4,), (2,)]
    """
    if scope == "tree":
        whole = [_whole(name, info) for name, info in leaves.items()]
        return [Part(tuple(whole), dict(views), _of_all(settings))]
    _check_joined(views, settings)
    by_number = divisible and scope != "leaf"
    alike: dict[str, list[str]] = defaultdict(list)
    for name in leaves:
        alike[_key(settings[name])].append(name)
    parts = []
    for names in alike.values():
        common = settings[names[0]]
        table = {name: views[name] for name in names if views.get(name) is not None}
        dtypes = {name: leaves[name].dtype for name in table}
        for bundles in groups(table, dtypes, most=most):
            members = [name for bundle in bundles for name in bundle]
            parts += [
                Part(pieces, seen, common)
                for pieces, seen in _stacked(
                    members, leaves, table, most if by_number else math.inf
                )
            ]
        rest = {name: leaves[name] for name in names if name not in table}
        for pieces in _packed(rest, most=most, divisible=by_number):
            seen = {p.leaf: None for p in pieces if p.leaf in views}
            parts.append(Part(pieces, seen, common))
    return parts


def copies(
    leaves: Mapping[str, LeafInfo], *, most: int, divisible: bool = True
) -> list[Part]:
    """The parts of leaves that are copied from one model."""
    packed = _packed(leaves, most=most, divisible=divisible)
    return [Part(pieces, {}, {}, kept=True) for pieces in packed]


def _of_all(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The hyperparameters that all leaves have, as far as they have them."""
    found: dict[str, Any] = {}
    for name, own in settings.items():
        for key, value in own.items():
            if found.setdefault(key, value) != value:
                raise ParameterError(
                    f"{key} {value} for {name}, and {found[key]} for others: the "
                    "method sees the whole model at once, and takes one for all leaves"
                )
    return found


def _whole(name: str, info: LeafInfo) -> Piece:
    return Piece(name, 0, math.prod(info.shape), info.shape)


def _stacked(
    names: Sequence[str],
    leaves: Mapping[str, LeafInfo],
    views: Mapping[str, MatrixView | None],
    most: int | float,
) -> Iterator[tuple[tuple[Piece, ...], dict[str, MatrixView | None]]]:
    """Pieces of a group, and their views: along the batch axis if they are too many."""
    seen = {name: view for name in names if (view := views[name]) is not None}
    numbers = sum(math.prod(leaves[name].shape) for name in names)
    first = next(iter(seen.values()))
    layers = first.shape[0]
    if numbers <= most or any(view.batch[:1] != (0,) for view in seen.values()):
        yield tuple(_whole(name, leaves[name]) for name in names), dict(seen)
        return
    length = max(1, int(layers * most / numbers))
    length = -(-layers // -(-layers // length))  # of nearly equal length: few programs
    for begin in range(0, layers, length):
        end = min(layers, begin + length)
        pieces, table = [], {}
        for name, view in seen.items():
            layer = math.prod(view.shape[1:])
            shape = (end - begin, *view.shape[1:])
            pieces.append(Piece(name, begin * layer, end * layer, shape))
            table[name] = replace(view, shape=shape)
        yield tuple(pieces), table


def _packed(
    leaves: Mapping[str, LeafInfo], *, most: int, divisible: bool
) -> Iterator[tuple[Piece, ...]]:
    """Leaves one after the other, large ones in pieces if that is allowed."""
    pieces: list[Piece] = []
    filled = 0
    for name, info in leaves.items():
        whole = _whole(name, info)
        if pieces and filled + whole.stop > most:
            yield tuple(pieces)
            pieces, filled = [], 0
        if divisible and whole.stop > most and info.kind == "array":
            for start in range(0, whole.stop, most):
                stop = min(whole.stop, start + most)
                yield (Piece(name, start, stop, (stop - start,)),)
            continue
        pieces.append(whole)
        filled += whole.stop
    if pieces:
        yield tuple(pieces)


def _key(settings: Mapping[str, Any]) -> str:
    """Equal for equal hyperparameters: rank 1 is one direction, and 1.0 is all."""
    return json.dumps(settings, sort_keys=True, default=lambda number: number.item())


def _check_joined(views: Table, settings: Mapping[str, Mapping[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for name, view in views.items():
        if view is None or view.join is None:
            continue
        other = seen.setdefault(view.join.group, name)
        if _key(settings[other]) != _key(settings[name]):
            raise ViewError(
                f"{other} and {name} are one matrix, but have different "
                f"hyperparameters: {settings[other]} and {settings[name]}"
            )
