"""Merging checkpoints on disk into a new one, part by part.

The same pure functions as in memory, applied to flat dictionaries from leaf name to
array, after `planning.plan` has found nothing wrong. While a part is merged, the next
is read and checked and the last is written.
"""

import dataclasses
import hashlib
import inspect
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints import (
    Checkpoint,
    Format,
    HopelessError,
    Stage,
    choose_format,
    describe,
    finish,
    non_finite,
    prepare,
    refuse_existing,
    refuse_inside,
    sha256,
    staged,
)
from centermerge_jax.division import Part
from centermerge_jax.errors import listing
from centermerge_jax.host_memory import Arena, give_back
from centermerge_jax.linalg import recorded_solves
from centermerge_jax.merge_statistics import describe_statistics, part_arguments
from centermerge_jax.part_reading import (
    NON_FINITE,
    Leaves,
    experts_and_base,
    read_ahead,
    read_bytes,
    read_part,
    refuse,
    take_part,
)
from centermerge_jax.planning import Plan, cast, check_memory
from centermerge_jax.progress import Report, silent, size_text
from centermerge_jax.ranks import resolve_rank
from centermerge_jax.recipe import Recipe
from centermerge_jax.settings import find_method
from centermerge_jax.trees import (
    align,
    base_name,
    is_merged,
    named_experts,
)
from centermerge_jax.twins import same_leaves
from centermerge_jax.views import digest


def merge(
    todo: Plan,
    output: str | Path,
    *,
    format: Format | None = None,  # noqa: A002  the word that users know
    resume: bool = False,
    hash_files: bool = False,
    command: Sequence[str] | None = None,
    progress: Report = silent,
) -> dict[str, Any]:
    """Merges checkpoints into a new one, with a manifest beside it.

    Args:
      todo: What `planning.plan` made of a recipe.
      output: A path ending in `.safetensors` for one file, else a folder.
      format: Of an output folder; by default that of the first expert.
      resume: Continue an unfinished merge into this output, if there is one.
      hash_files: Note the SHA-256 of whole input files too, not of tensors only.
      command: The command line to note in the manifest.
      progress: Told what is being done.

    Returns:
      The manifest.

    Raises:
      MergeError: Something is wrong with the files or the output. What was finished of
        the merge is kept to be continued, unless the inputs are at fault.
    """
    started = time.perf_counter()
    output = Path(output)
    check_memory(todo)
    refuse_existing(output)
    refuse_inside(output, _opened(todo))
    template = next(iter(todo.models.values()))
    if todo.keeper is not None:
        # A kept head goes with the configuration that names its classes.
        template = dataclasses.replace(template, sidecars=todo.keeper.sidecars)
    kind = choose_format(output, template, format)
    layout = prepare(todo.outputs, output, kind, template)
    files = _files(todo)
    with staged(output, layout, _identity(todo, kind), resume=resume) as stage:
        passes = find_method(todo.recipe.method).passes
        given = _statistics(todo, progress)
        for text, share in _merge_parts(todo, stage, given):
            progress(text, (passes + share) / (passes + 1))
        now = _files(todo)
        if changed := [file for file, state in files.items() if now[file] != state]:
            header = "{n} input{s} changed while they were merged"
            raise HopelessError(listing(header, changed, "Merge them again."))
        notes = [stage.finished[number] for number in range(len(todo.parts))]
        digests = _digests(notes)
        manifest = describe(
            method=todo.recipe.method,
            hyperparameters=_chosen(todo.recipe),
            inputs=_inputs(todo),
            digests=digests,
            hash_files=hash_files,
            started=started,
            views_digest=digest(todo.views) if todo.views else None,
            command=command,
        )
        manifest["config"] = todo.settings
        manifest["warnings"] = [
            *todo.warnings,
            *same_leaves(todo.models, digests, todo.leaves.merged),
        ]
        manifest["statistics"] = describe_statistics(todo.statistics)
        manifest["solves"] = [solve for note in notes for solve in note["solves"]]
        progress("publishing", 1.0)
        objects = {name: x for note in notes for name, x in note["objects"].items()}
        return finish(stage, output, kind, template, objects=objects, manifest=manifest)


def _statistics(todo: Plan, progress: Report) -> dict[str, Any]:
    """What the method has to know of whole models, from passes before the merge."""
    method = find_method(todo.recipe.method)
    if method.names is not None:
        return dict(method.names(todo.leaves.merged))
    if method.statistics is None:
        return {}
    tasks = tuple(sorted(name for name in todo.models if name != "base"))
    parts = [part for part in todo.parts if not part.kept]
    done = 0

    def rows() -> Iterator[tuple[Any, ...]]:
        nonlocal done
        arenas = [Arena() for _ in range(1 + todo.needs.ahead)]
        with ThreadPoolExecutor(1) as reading:
            for trees in read_ahead(reading, todo, take_part, parts, arenas):
                experts, base = experts_and_base(todo, trees)
                named = named_experts(experts)
                name = base_name(named)
                if base:
                    named[name] = base[0]
                _, leaves = align(named, any_dtype=(name,))
                yield from (item for item in leaves.items() if is_merged(item[1][0]))
                done += 1
                share = done / len(parts) / (method.passes + 1)
                number = 1 + (done - 1) // len(parts)
                progress(f"pass {number} of {method.passes} before the merge", share)

    accepted = inspect.signature(method.statistics).parameters
    known = {**todo.hyperparameters, "tasks": tasks}
    chosen = {name: value for name, value in known.items() if name in accepted}
    return dict(method.statistics(rows, **chosen))


def _merge_parts(
    todo: Plan, stage: Stage, given: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    """Reads, merges and writes all parts; yields where it is, and the share done."""
    began = time.perf_counter()
    waiting = [i for i in range(len(todo.parts)) if i not in stage.finished]
    sizes = [read_bytes(todo, part) for part in todo.parts]
    total = max(1, sum(sizes))
    found = done = total - sum(sizes[i] for i in waiting)
    arenas = [Arena() for _ in range(1 + todo.needs.ahead)]
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
        written: Future[None] | None = None
        parts = [todo.parts[number] for number in waiting]
        read = read_ahead(reading, todo, read_part, parts, arenas)
        for number, (leaves, carried, digests) in zip(waiting, read, strict=True):
            part = _without(todo.parts[number], carried)
            merged, solves = _merge_part(todo, part, leaves, given)
            merged |= _carried(todo, carried)
            del leaves, carried
            # What a method passes on unchanged lies where the next part is read to.
            merged = {
                name: leaf.copy()
                if any(arena.holds(leaf) for arena in arenas)
                else leaf
                for name, leaf in merged.items()
            }
            if written is not None:
                written.result()
            notes = {"digests": digests, "solves": solves}
            written = writing.submit(_write, stage, todo, number, merged, notes)
            del merged
            give_back()
            done += sizes[number]
            rate = int((done - found) / (time.perf_counter() - began))
            place = f"part {number + 1} of {len(sizes)}"
            yield f"{place}, {size_text(rate)}/s read", done / total
        if written is not None:
            written.result()


def _merge_part(
    todo: Plan, part: Part, trees: Mapping[str, Leaves], given: Mapping[str, Any]
) -> tuple[Leaves, list[dict[str, Any]]]:
    """The merged leaves of a part as they are to be stored, and how it was solved."""
    recipe = todo.recipe
    solves: list[Any] = []
    if part.kept:
        (result,) = trees.values()
        if recipe.dtype:
            result = cast(result, np.dtype(recipe.dtype))
    elif not any(map(is_merged, next(iter(trees.values())).values())):
        _, rows = align(trees, any_dtype=("base",))  # nothing for a method to do
        result = {name: leaves[0] for name, leaves in rows.items()}
    else:
        experts, base = experts_and_base(todo, trees)
        method, merged = find_method(recipe.method), todo.leaves.merged
        known = part_arguments(todo.statistics, method, part, merged, experts)
        arguments = {**_arguments(todo, part), **given, **known}
        with recorded_solves() as solves:
            result = method.function(experts, *base, **arguments)
    leaves = {name: _stored(todo, name, leaf) for name, leaf in result.items()}
    # A narrow type may overflow where the inputs did not.
    refuse(NON_FINITE, non_finite("the merged model", leaves))
    return leaves, [dataclasses.asdict(solve) for solve in solves]


def _without(part: Part, carried: Leaves) -> Part:
    """The part without the leaves that are carried."""
    return dataclasses.replace(
        part,
        pieces=tuple(p for p in part.pieces if p.leaf not in carried),
        views={name: x for name, x in part.views.items() if name not in carried},
    )


def _carried(todo: Plan, carried: Leaves) -> Leaves:
    """What is carried, as it is to be stored."""
    leaves = {name: _stored(todo, name, leaf) for name, leaf in carried.items()}
    others = {
        name: np.asarray(x)[~np.isneginf(carried[name])]
        for name, x in leaves.items()
        if not isinstance(x, str)
    }
    refuse(NON_FINITE, non_finite("the merged model", others))
    return leaves


def _arguments(todo: Plan, part: Part) -> dict[str, Any]:
    """The keyword arguments of the method for one part."""
    arguments = {**todo.hyperparameters, **part.settings}
    method = find_method(todo.recipe.method)
    accepted = method.hyperparameters
    if isinstance(scale := arguments.get("scale"), Mapping):
        # By name it could be taken for a tree, where leaves are called as tasks are.
        tasks = sorted(name for name in todo.models if name != "base")
        arguments["scale"] = np.array([scale[task] for task in tasks])
    if "views" in accepted:
        arguments["views"] = part.views
    if "memory" in accepted:
        arguments["memory"] = todo.needs.work(part)
    if part.matrix is None and "rank" in accepted:
        arguments["rank"] = 1.0  # of no matrix
    elif part.matrix is not None and "rank" in arguments and method.scope != "tree":
        # An integer above this matrix's size keeps it whole.
        arguments["rank"] = resolve_rank(arguments["rank"], part.matrix.size)
    return arguments


def _stored(todo: Plan, name: str, leaf: Any) -> Any:
    """A leaf in the type that the output was laid out for."""
    info = todo.outputs[name]
    return leaf if info.kind == "string" else np.asarray(leaf, info.dtype)


def _write(
    stage: Stage, todo: Plan, number: int, merged: Leaves, notes: Mapping[str, Any]
) -> None:
    """Puts a part to its place; what has none (a string) goes with the notes."""
    slots = stage.layout.slots
    spans = [
        ((piece.leaf, piece.start, piece.stop), merged[piece.leaf])
        for piece in todo.parts[number].pieces
        if piece.leaf in slots
    ]
    objects = {
        name: leaf if isinstance(leaf, str) else leaf.item()
        for name, leaf in merged.items()
        if name not in slots
    }
    stage.write(number, spans, {**notes, "objects": objects})


def _identity(todo: Plan, kind: Format) -> dict[str, Any]:
    """What a merge is, as far as it decides about the bytes of the result."""
    recipe = dataclasses.asdict(todo.recipe)
    files = {
        f"file {file}": f"{size} bytes, changed at {file.stat().st_mtime_ns} ns"
        for model in _opened(todo)
        for file, size in model.files.items()
    }
    files |= {
        f"name map {given}": sha256(np.fromfile(given.partition("=")[2], np.uint8))
        for given in todo.recipe.names
    }
    parts = json.dumps([part.spans() for part in todo.parts])
    return {
        "version": version("centermerge_jax"),
        "format": kind,
        "views table": digest(todo.views) if todo.views else None,
        "parts": hashlib.sha256(parts.encode()).hexdigest(),
        **{
            key: value
            for key, value in recipe.items()
            if key not in ("output", "format")
        },
        **files,
    }


def _files(todo: Plan) -> dict[str, tuple[int, ...]]:
    """What tells whether an input is still the same file with the same content."""
    found = {}
    for model in _opened(todo):
        for file in model.files:
            if not file.exists():
                found[str(file)] = ()
                continue
            state = file.stat()
            # Two files written at once may have one time: clocks of files are coarse.
            found[str(file)] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def _inputs(todo: Plan) -> dict[str, Checkpoint]:
    """All models that are read, by name."""
    inputs = dict(todo.models)
    if todo.keeper is not None:
        inputs[str(todo.recipe.keep_from)] = todo.keeper
    return inputs


def _opened(todo: Plan) -> list[Checkpoint]:
    """All files and folders that are read."""
    measured = (one.checkpoint for one in todo.statistics.values())
    return [*_inputs(todo).values(), *measured]


def _digests(notes: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Digests of tensors by model and leaf; of what was read in pieces, a list."""
    found: dict[str, dict[str, Any]] = {}
    for note in notes:
        for model, leaves in note["digests"].items():
            known = found.setdefault(model, {})
            for leaf, value in leaves.items():
                before = known.get(leaf, [])
                pieces = [before] if isinstance(before, str) else before
                known[leaf] = [*pieces, value] if pieces else value
    return found


def _chosen(recipe: Recipe) -> dict[str, Any]:
    """What was asked for beside the models; the rest are defaults."""
    fields = dataclasses.asdict(recipe)
    elsewhere = ("experts", "base", "method", "output", "format")
    return {
        k: v for k, v in fields.items() if k not in elsewhere and v not in (None, ())
    }
