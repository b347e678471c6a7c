"""Reading the parts of a plan from its models: checked, and one part ahead."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import (
    Checkpoint,
    HopelessError,
    constant_buffers,
    non_finite,
    sha256,
)
from centermerge_jax.division import Part
from centermerge_jax.errors import listing
from centermerge_jax.host_memory import Arena, cores
from centermerge_jax.planning import Plan, cast
from centermerge_jax.settings import find_method
from centermerge_jax.trees import compute_dtype

Leaves = dict[str, Any]

NON_FINITE = "{n} leaf name{s} with non-finite values"


def read_ahead(
    pool: ThreadPoolExecutor,
    todo: Plan,
    read: Callable[[Plan, Part, Arena], Any],
    parts: Sequence[Part],
    arenas: Sequence[Arena],
) -> Iterator[Any]:
    """What is read of each part; with two arenas one part ahead of the one in work."""
    pending: deque[Future[Any]] = deque()
    for turn, part in enumerate(parts):
        arena = arenas[turn % len(arenas)]
        pending.append(pool.submit(read, todo, part, arena))
        if len(pending) == len(arenas):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def models_of(todo: Plan, part: Part) -> Mapping[str, Checkpoint]:
    """The models that a part is read from."""
    if part.kept and todo.keeper is not None:
        return {str(todo.recipe.keep_from): todo.keeper}
    return todo.models


def read_bytes(todo: Plan, part: Part) -> int:
    """Bytes that are read of all models for a part."""
    return sum(
        (piece.stop - piece.start) * model.leaves[piece.leaf].dtype.itemsize
        for model in models_of(todo, part).values()
        for piece in part.pieces
    )


def _room(todo: Plan, part: Part) -> int:
    """Bytes of an arena that a part of every model fits into."""
    return read_bytes(todo, part) + 64 * len(models_of(todo, part)) * len(part.pieces)


def take_part(todo: Plan, part: Part, arena: Arena) -> dict[str, Leaves]:
    """A part of every model, as it is, but for what is carried."""
    arena.clear(_room(todo, part))
    trees = {
        name: dict(model.read_pieces(part.pieces, allocate=arena.allocate))
        for name, model in models_of(todo, part).items()
    }
    _take_carried(todo, part, trees, _constants(todo, trees))
    return trees


def _take_carried(
    todo: Plan, part: Part, trees: Mapping[str, Leaves], constants: Collection[str]
) -> Leaves:
    """Takes what is no parameter, though it floats, out of the trees of a part.

    That is constant buffers, and Python's own numbers, which Orbax keeps exactly.
    """
    first = next(iter(models_of(todo, part).values())).leaves
    # A piece of a leaf does not tell whether the rest of it is the same everywhere.
    whole = {p.leaf for p in part.pieces if p.shape == first[p.leaf].shape}
    numbers = {p.leaf for p in part.pieces if first[p.leaf].kind == "scalar"}
    names = numbers | whole.intersection(constants)
    taken = {model: {x: tree.pop(x) for x in names} for model, tree in trees.items()}
    one, *others = taken
    refuse(
        "{n} number{s} not the same in all models; only arrays are merged",
        [
            f"{other}: {name} is {taken[other][name]}, expected {value}"
            for other in others
            if other != "base"
            for name, value in taken[one].items()
            if not np.array_equal(taken[other][name], value)
        ],
        "--exclude leaves them out, --keep and --keep-from take one model's.",
    )
    return taken[one]


def _constants(todo: Plan, trees: Mapping[str, Leaves]) -> set[str]:
    """Names of the constant buffers in a part."""
    matrices = {name for name, view in todo.views.items() if view is not None}
    return constant_buffers(trees.values()) - matrices


def read_part(
    todo: Plan, part: Part, arena: Arena
) -> tuple[dict[str, Leaves], Leaves, dict[str, dict[str, str]]]:
    """A part of every model, all finite; what is carried; and digests of both."""
    models = models_of(todo, part)
    arena.clear(_room(todo, part))
    trees: dict[str, Leaves] = {}
    digests: dict[str, dict[str, str]] = {}
    problems: dict[str, list[str]] = {}
    with ThreadPoolExecutor(cores()) as checking:
        checks = []
        for name, model in models.items():
            trees[name] = {}
            for leaf, value in model.read_pieces(part.pieces, allocate=arena.allocate):
                trees[name][leaf] = value
                checks.append((name, leaf, checking.submit(_check, name, leaf, value)))
        for name, leaf, check in checks:
            value, faults = check.result()
            digests.setdefault(name, {})[leaf] = value
            problems.setdefault(leaf, []).extend(faults)
    constants = _constants(todo, trees) if any(problems.values()) else set()
    carried = _take_carried(todo, part, trees, constants)
    bad = {x: faults for x, faults in problems.items() if faults and x not in carried}
    refuse(
        NON_FINITE,
        [fault for faults in bad.values() for fault in faults],
        "Equal masks are carried where they are read as a whole: more --memory."
        if constants & bad.keys()
        else "",
    )
    _refuse_other_experts(todo, part, digests)
    return trees, carried, digests


def _refuse_other_experts(
    todo: Plan, part: Part, digests: Mapping[str, Mapping[str, str]]
) -> None:
    """Checks that statistics are of the experts that are merged, from whole leaves."""
    for name, known in todo.statistics.items():
        model = todo.models[name]
        whole = {p.leaf for p in part.pieces if p.shape == model.leaves[p.leaf].shape}
        own = {x: value for x, value in digests.get(name, {}).items() if x in whole}
        known.refuse_other(name, model, own)


def _check(name: str, leaf: str, value: Any) -> tuple[str, list[str]]:
    """Digest of a leaf, and what is not finite in it."""
    return sha256(np.asarray(value)), non_finite(name, {leaf: value})


def experts_and_base(
    todo: Plan, trees: Mapping[str, Leaves]
) -> tuple[dict[str, Leaves], tuple[Leaves, ...]]:
    """The first arguments of the method, from what was read."""
    if todo.recipe.dtype:
        dtype = compute_dtype(np.dtype(todo.recipe.dtype))
        trees = {name: cast(tree, dtype) for name, tree in trees.items()}
    experts = {name: tree for name, tree in trees.items() if name != "base"}
    base = (trees["base"],) if find_method(todo.recipe.method).needs_base else ()
    return experts, base


def refuse(header: str, problems: Sequence[str], cure: str = "") -> None:
    """Refuses inputs with which no other attempt would end better.

    Raises:
      HopelessError: There are problems.
    """
    if problems:
        raise HopelessError(listing(header, problems, cure))
