"""Merging checkpoints on disk into a new one.

The same pure functions as in memory, applied to flat dictionaries from leaf name to
array, after `planning.plan` has found nothing wrong.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from centermerge_jax.checkpoints import (
    Format,
    choose_format,
    describe,
    non_finite,
    refuse_existing,
    save,
)
from centermerge_jax.errors import CheckpointError, listing
from centermerge_jax.linalg import recorded_solves
from centermerge_jax.planning import Plan, cast, find_method
from centermerge_jax.progress import Report, silent
from centermerge_jax.recipe import Recipe
from centermerge_jax.trees import compute_dtype
from centermerge_jax.views import digest


def merge(
    todo: Plan,
    output: str | Path,
    *,
    format: Format | None = None,  # noqa: A002  the word that users know
    command: Sequence[str] | None = None,
    progress: Report = silent,
) -> dict[str, Any]:
    """Merges checkpoints into a new one, with a manifest beside it.

    Args:
      todo: What `planning.plan` made of a recipe.
      output: A path ending in `.safetensors` for one file, else a folder.
      format: Of an output folder; by default that of the first expert.
      command: The command line to note in the manifest.
      progress: Told what is being done.

    Returns:
      The manifest.

    Raises:
      MergeError: Something is wrong with the files or the output; nothing is written.
    """
    started = time.perf_counter()
    recipe = todo.recipe
    template = next(iter(todo.models.values()))
    refuse_existing(output)
    choose_format(Path(output), template, format)
    trees = _read(todo, progress)
    progress("merging", 0.0)
    method = find_method(recipe.method)
    base = (trees.pop("base"),) if method.needs_base else ()
    with recorded_solves() as solves:
        result = method.function(trees, *base, **todo.hyperparameters)
    merged = {
        name: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
        for name, leaf in result.items()
    }
    inputs = dict(todo.models)
    if todo.keeper is not None:
        kept = todo.keeper.read_all(todo.leaves.kept)
        _check_finite(str(recipe.keep_from), kept)
        merged |= cast(kept, np.dtype(recipe.dtype)) if recipe.dtype else kept
        inputs[str(recipe.keep_from)] = todo.keeper
        # A kept head goes with the configuration that names its classes.
        template = dataclasses.replace(template, sidecars=todo.keeper.sidecars)
    # A narrow type may overflow where the inputs did not.
    _check_finite("the merged model", merged)
    progress("writing", 0.0)
    manifest = describe(
        method=recipe.method,
        hyperparameters=_chosen(recipe),
        inputs=inputs,
        started=started,
        views_digest=digest(todo.views) if todo.views else None,
        command=command,
    )
    manifest["warnings"] = list(todo.warnings)
    manifest["solves"] = [dataclasses.asdict(solve) for solve in solves]
    save(merged, output, manifest=manifest, template=template, format=format)
    progress("writing", 1.0)
    return manifest


def _read(todo: Plan, progress: Report) -> dict[str, dict[str, Any]]:
    """The leaves to merge of every model, all finite."""
    trees = {}
    read = 0

    def count(leaf: str, size: int) -> None:
        nonlocal read
        read += size
        progress(f"reading {leaf}", read / max(1, todo.read_bytes))

    for name, checkpoint in todo.models.items():
        leaves = checkpoint.read_all(todo.leaves.merged, progress=count)
        _check_finite(name, leaves)
        if todo.recipe.dtype:
            leaves = cast(leaves, compute_dtype(np.dtype(todo.recipe.dtype)))
        trees[name] = leaves
    return trees


def _chosen(recipe: Recipe) -> dict[str, Any]:
    """What was asked for beside the models; the rest are defaults."""
    fields = dataclasses.asdict(recipe)
    models = ("experts", "base", "method")
    return {k: v for k, v in fields.items() if k not in models and v not in (None, ())}


def _check_finite(name: str, leaves: Mapping[str, Any]) -> None:
    if problems := non_finite(name, leaves):
        raise CheckpointError(
            listing("{n} leaf name{s} with non-finite values", problems)
        )
