"""Orbax folders: find the tree, read some of its leaves, write one.

Works on what `StandardCheckpointer`, `PyTreeCheckpointer`, `CheckpointManager` and the
newer free functions write: in all of them a folder with a `_METADATA` file holds one
tree. Arrays come back as numpy arrays, whatever devices they were saved from.
"""

import contextlib
import gc
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from centermerge_jax.checkpoints import orbax_trees
from centermerge_jax.checkpoints.checkpoint import Allocate, Fetch, Leaf, LeafInfo
from centermerge_jax.errors import CheckpointError

_T = TypeVar("_T")
_TREE = "_METADATA"
_MARKS = (_TREE, "_CHECKPOINT_METADATA", "manifest.ocdbt", "commit_success.txt")
_UNFINISHED = ".orbax-checkpoint-tmp"
# One call of Orbax costs some 10 ms; a call for everything would hide progress.
_BATCH_LEAVES, _BATCH_BYTES = 256, 1 << 28
_LATE_CALLBACKS = 0.1  # seconds; up to 0.04 were seen


@dataclass(frozen=True)
class Part:
    """The wanted part of the tree in an item folder.

    Attributes:
      item: The folder that holds the tree.
      subtree: Keys from the root of the tree to the part.
      tree: Orbax's description of the whole tree.
      structure: The part's containers, with leaf names at the leaves.
      leaves: The part's leaves by name.
    """

    item: Path
    subtree: tuple[str, ...]
    tree: Any
    structure: Any
    leaves: Mapping[str, LeafInfo]


def is_orbax(folder: Path) -> bool:
    """Whether a folder looks written by Orbax, complete or not."""
    return (
        any((folder / mark).exists() for mark in _MARKS)
        or folder.name.endswith(_UNFINISHED)
        or bool(_items(folder) or _steps(folder))
    )


def _items(folder: Path) -> list[str]:
    return sorted(child.parent.name for child in folder.glob(f"*/{_TREE}"))


def _steps(folder: Path) -> list[str]:
    marked = {mark.parent.name for mark in folder.glob("*/_CHECKPOINT_METADATA")}
    return sorted((step for step in marked if step.isdecimal()), key=int)


def open_part(folder: Path, subtree: Sequence[str]) -> Part:
    """Opens the part of an Orbax folder that `subtree` leads to.

    Raises:
      CheckpointError: There is no tree, or more than one; it is damaged; the part does
        not exist; or two leaves share a name.
    """
    item, inside = _find_item(folder, tuple(subtree))
    tree = _describe(item)
    part = orbax_trees.descend(item, tree, inside)
    structure, leaves = orbax_trees.name_leaves(item, part)
    if isinstance(structure, str):
        where = "/".join(inside) or "the root"
        raise CheckpointError(f"{item}: {where} is a leaf, not a tree of leaves")
    return Part(item, inside, tree, structure, leaves)


def _find_item(folder: Path, subtree: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    if folder.name.endswith(_UNFINISHED):
        raise CheckpointError(f"{folder}: an Orbax save that was never finished")
    if (folder / _TREE).is_file():
        return folder, subtree
    items, steps = _items(folder), _steps(folder)
    if subtree and subtree[0] in items:
        return folder / subtree[0], subtree[1:]
    if len(items) == 1 and not steps:
        return folder / items[0], subtree
    if choice := steps or items:
        kind = "training steps" if steps else "trees"
        raise CheckpointError(
            f"{folder}: holds several {kind} ({', '.join(choice)}); name one, for "
            f"instance {folder / choice[-1]}"
        )
    raise CheckpointError(
        f"{folder}: an Orbax folder without its tree ({_TREE} is missing): incomplete, "
        "or of an old version; restore it and save it again"
    )


def _describe(item: Path) -> Any:
    import orbax.checkpoint as ocp
    from etils import epath

    handler = ocp.PyTreeCheckpointHandler()
    try:
        # absolute, because Orbax refuses relative paths
        folder = epath.Path(item.absolute())
        return _undisturbed(lambda: handler.metadata(folder).tree)
    except Exception as error:
        raise CheckpointError(
            f"{item}: truncated or damaged: {_reason(error)}"
        ) from error
    finally:
        handler.close()


def _undisturbed(call: Callable[[], _T]) -> _T:
    # Ctrl-C inside Orbax leaves its threads running, and writing into a folder that is
    # being cleaned up. In a worker it finishes; leaving the pool waits for it, and only
    # then the interrupt goes on.
    with _quiet(), ThreadPoolExecutor(max_workers=1) as pool:
        try:
            return pool.submit(call).result()
        except Exception as error:
            # The other reads of a failed batch complain when their results arrive or
            # when they are freed: both have to happen while it is quiet.
            time.sleep(_LATE_CALLBACKS)
            error.__traceback__ = error.__cause__ = error.__context__ = None
            gc.collect()
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Orbax logs whole tracebacks before it raises, warns about choices made on purpose,
    # and after one failed read the others report to an event loop that is closed. What
    # went wrong arrives as an exception; the user should see only that.
    hook = sys.unraisablehook
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}

    def drop(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            hook(event)

    sys.unraisablehook = drop
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    # `CODE: while doing: in file: reason [annotation='...']`: the end says it best
    line = (str(error).splitlines() or [type(error).__name__])[0]
    plain = re.split(r" \[\w+='", line)[0]
    return ": ".join(plain.split(": ")[-2:])[:300]


def reader(part: Part) -> Fetch:
    """Returns the function that yields leaves by name, several per call of Orbax."""

    def fetch(names: Sequence[str], allocate: Allocate) -> Iterator[tuple[str, Leaf]]:
        del allocate  # Orbax brings its own memory
        for batch in _batches(names, part.leaves):
            found = None
            with contextlib.suppress(Exception):
                found = _restore(part, batch)
            if found is None:
                # Again, one by one: only then is it known which leaf is bad.
                found = {name: _restore_one(part, name) for name in batch}
            yield from found.items()

    return fetch


def _batches(
    names: Sequence[str], leaves: Mapping[str, LeafInfo]
) -> Iterator[list[str]]:
    batch: list[str] = []
    filled = 0
    for name in names:
        size = leaves[name].nbytes
        if batch and (len(batch) == _BATCH_LEAVES or filled + size > _BATCH_BYTES):
            yield batch
            batch, filled = [], 0
        batch.append(name)
        filled += size
    if batch:
        yield batch


def _restore_one(part: Part, name: str) -> Leaf:
    try:
        return _restore(part, [name])[name]
    except Exception as error:
        raise CheckpointError(
            f"{part.item}: cannot read {name}: truncated or damaged: {_reason(error)}"
        ) from error


def _restore(part: Part, names: Sequence[str]) -> dict[str, Leaf]:
    import jax
    import orbax.checkpoint as ocp
    from etils import epath

    wanted = set(names)
    named = orbax_trees.place(part.tree, part.structure, part.subtree)
    target = orbax_trees.select(part.tree, named, wanted)
    args = jax.tree.map(
        lambda leaf: ocp.RestoreArgs(
            restore_type=str if orbax_trees.is_string(leaf) else np.ndarray
        ),
        target,
    )
    handler = ocp.PyTreeCheckpointHandler()
    try:
        restored = _undisturbed(
            lambda: handler.restore(
                epath.Path(part.item.absolute()),
                args=ocp.args.PyTreeRestore(
                    item=target, restore_args=args, partial_restore=True
                ),
            )
        )
    finally:
        handler.close()
    return dict(orbax_trees.collect(restored, part.tree, named, wanted))


def write(tree: Any, folder: Path, *, output: Path) -> None:
    """Writes a tree as `StandardCheckpointer` does.

    Args:
      tree: Nested containers of arrays, numbers and strings.
      folder: Where; it must not exist yet.
      output: What to call it in a message.

    Raises:
      CheckpointError: Orbax failed, for instance because the disk is full.
    """
    import jax
    import orbax.checkpoint as ocp

    # The standard format has no strings; `StandardCheckpointer` reads the other one.
    strings = any(isinstance(leaf, str) for leaf in jax.tree.leaves(tree))
    kind = ocp.PyTreeCheckpointer if strings else ocp.StandardCheckpointer

    def run() -> None:
        with kind() as checkpointer:
            checkpointer.save(folder.absolute(), tree)

    try:
        _undisturbed(run)
    except Exception as error:
        raise CheckpointError(f"cannot write {output}: {_reason(error)}") from error
