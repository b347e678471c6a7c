"""What a merge of checkpoints comes to, from the headers of their files alone.

Everything that can be known without reading a tensor (structure, views, ranks, what is
kept and left out) is checked here, so that a merge fails in the first second or not.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from centermerge_jax.checkpoints import Checkpoint, open_checkpoint
from centermerge_jax.errors import ParameterError
from centermerge_jax.leaf_selection import Leaves, sort_leaves
from centermerge_jax.linalg import (
    BYTES_PER_NUMBER,
    MEMORY,
    SOLVERS,
    Solver,
    choose_solver,
)
from centermerge_jax.methods import METHODS, RESTS, Method
from centermerge_jax.ranks import check_fits, check_rank
from centermerge_jax.recipe import DTYPES, Recipe
from centermerge_jax.trees import align, compute_dtype, dtype_of, is_merged
from centermerge_jax.views import MatrixView, Row, Table, load, resolve, rows

_RUNTIME = 300e6  # bytes that Python and JAX take before any tensor is there


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to, known from the headers of its files alone.

    Attributes:
      recipe: The recipe.
      models: Checkpoints by name: the experts in the order of the tasks, and last the
        base, called 'base', if the method needs one.
      keeper: The checkpoint that kept leaves come from.
      leaves: What becomes of which leaf.
      views: The view of each floating leaf; empty for methods without a rank.
      rows: The same as a table, with ranks.
      hyperparameters: What the method is called with.
      read_bytes: Bytes of tensors that are read.
      written_bytes: Bytes of tensors that are written.
      peak_bytes: Estimate of the peak resident memory.
      warnings: What is allowed but perhaps not meant.
    """

    recipe: Recipe
    models: Mapping[str, Checkpoint]
    keeper: Checkpoint | None
    leaves: Leaves
    views: Table
    rows: tuple[Row, ...]
    hyperparameters: Mapping[str, Any]
    read_bytes: int
    written_bytes: int
    peak_bytes: int
    warnings: tuple[str, ...]


def plan(recipe: Recipe) -> Plan:
    """Checks a recipe against its files without reading a tensor.

    Raises:
      MergeError: Anything that would make the merge fail, as far as headers tell.
    """
    method = find_method(recipe.method)
    hyperparameters = _hyperparameters(recipe, method)
    if recipe.base is None and (method.needs_base or recipe.keep_from == "base"):
        raise ParameterError(f"{recipe.method} needs the pretrained model: --base PATH")
    experts = _open_experts(recipe)
    if len(experts) == 1 and not method.needs_base:
        raise ParameterError(
            f"{recipe.method} of a single checkpoint is that checkpoint; give several"
        )
    warnings = []
    if method.centered and len(experts) == 2:
        warnings.append(
            "two experts: their centred vectors are opposite, so the result is their "
            "plain average for every rank and scale"
        )
    models, base = dict(experts), None
    if recipe.base is not None:
        base = open_checkpoint(recipe.base, subtree=recipe.path)
        if method.needs_base:
            models["base"] = base
        elif recipe.keep_from != "base":
            warnings.append(f"{recipe.method} takes no base; --base is not used")
    keeper = base if recipe.keep_from == "base" else experts.get(recipe.keep_from or "")
    leaves = sort_leaves(recipe, experts, base, keeper)

    headers = {
        name: _header(checkpoint, leaves.merged, recipe)
        for name, checkpoint in models.items()
    }
    align(headers, any_dtype=("base",))
    first = next(iter(headers.values()))
    table: dict[str, MatrixView | None] = {}
    lines: list[Row] = []
    if "rank" in hyperparameters:
        table = resolve(first, hyperparameters["views"])
        sizes = {name: view.size for name, view in table.items() if view is not None}
        check_fits(hyperparameters["rank"], sizes)
        lines = _with_solver(
            rows(first, table, rank=hyperparameters["rank"]),
            hyperparameters.get("solver", "auto"),
        )
    held = _header(keeper, leaves.kept, recipe) if keeper else {}
    kept = sum(keeper.leaves[name].nbytes for name in leaves.kept) if keeper else 0
    read = kept + sum(
        checkpoint.leaves[name].nbytes
        for checkpoint in models.values()
        for name in leaves.merged
    )
    outgoing = [*first.values(), *held.values()]
    written = sum(_output_bytes(recipe, leaf) for leaf in outgoing)
    return Plan(
        recipe=recipe,
        models=models,
        keeper=keeper,
        leaves=leaves,
        views=table,
        rows=tuple(lines),
        hyperparameters=hyperparameters,
        read_bytes=read,
        written_bytes=written,
        peak_bytes=_peak_bytes(read + written, first, len(models), lines),
        warnings=tuple(warnings),
    )


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
      ParameterError: There is none.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(METHODS)
        raise ParameterError(f"no method is called {name!r}{hint} ({known})")
    return METHODS[name]


_GENERAL = ("views", "solver", "dtype")
"""Hyperparameters that say how, not what: harmless to methods that do not take them."""


def _hyperparameters(recipe: Recipe, method: Method) -> dict[str, Any]:
    """The keyword arguments of the method, from the fields of the same name."""
    values: dict[str, Any] = {}
    for name in ("rank", "scale", "rest", *_GENERAL):
        value = getattr(recipe, name)
        parameter = method.hyperparameters.get(name)
        if parameter is None:
            if value is not None and name not in _GENERAL:
                raise ParameterError(f"{recipe.method} takes no --{name}")
        elif value is not None:
            values[name] = value
        elif parameter.default is parameter.empty:
            raise ParameterError(f"{recipe.method} needs --{name}")
    for name, choices in (("rest", RESTS), ("solver", SOLVERS), ("dtype", DTYPES)):
        if values.get(name, choices[0]) not in choices:
            raise ParameterError(
                f"--{name} is one of {', '.join(choices)}; got {values[name]!r}"
            )
    if not math.isfinite(values.get("scale", 0.0)):
        raise ParameterError(f"--scale is not finite: {values['scale']}")
    if "rank" in values:
        check_rank(values["rank"])
        values["views"] = load(recipe.views or "auto")
    if recipe.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ParameterError(
            "--dtype float64 needs JAX_ENABLE_X64=1 in the environment"
        )
    if recipe.dtype is not None:
        values["dtype"] = np.dtype(recipe.dtype)
    return values


def _open_experts(recipe: Recipe) -> dict[str, Checkpoint]:
    """The experts by name, in the order of the tasks."""
    experts: dict[str, Checkpoint] = {}
    for given in recipe.experts:
        # A path may hold a '='; a name holds no '/'.
        before, equals, after = given.partition("=")
        called = equals and "/" not in before and not Path(given).exists()
        name, path = (before, after) if called else ("", given)
        if not path or (called and not name):
            raise ParameterError(f"expert {given!r}: give a PATH or NAME=PATH")
        checkpoint = open_checkpoint(path, subtree=recipe.path)
        name = name or checkpoint.name
        if name in experts or name == "base":
            other = experts[name].path if name in experts else "that of the base"
            raise ParameterError(
                f"{path}: the name {name!r} is taken ({other}); call it otherwise with "
                "NAME=PATH"
            )
        experts[name] = checkpoint
    return dict(sorted(experts.items()))


def _header(
    checkpoint: Checkpoint, merged: Sequence[str], recipe: Recipe
) -> dict[str, Any]:
    """The leaves to merge, without their values: every array is one broadcast zero."""
    leaves: dict[str, Any] = {}
    for name in merged:
        info = checkpoint.leaves.get(name)
        if info is not None and info.kind == "array":
            leaves[name] = np.broadcast_to(np.zeros((), info.dtype), info.shape)
        elif info is not None:
            leaves[name] = "" if info.kind == "string" else info.dtype.type().item()
    return (
        cast(leaves, compute_dtype(np.dtype(recipe.dtype))) if recipe.dtype else leaves
    )


def cast(leaves: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The floating leaves in one type, the others as they are."""
    return {
        name: leaf.astype(dtype)
        if isinstance(leaf, np.ndarray) and is_merged(leaf)
        else leaf
        for name, leaf in leaves.items()
    }


def _output_bytes(recipe: Recipe, leaf: Any) -> int:
    if isinstance(leaf, str):
        return len(leaf)
    cast = recipe.dtype if recipe.dtype and is_merged(leaf) else dtype_of(leaf)
    return np.size(leaf) * np.dtype(cast).itemsize


def _with_solver(lines: Sequence[Row], solver: Solver) -> list[Row]:
    """The rows with the solver that each matrix goes to."""
    chosen = []
    for row in lines:
        if row.matrices is not None and row.rank is not None:
            size = min(row.matrices[1:])
            auto = choose_solver(row.rank, size)
            row = replace(row, solver=auto if solver == "auto" else solver)  # noqa: PLW2901
        chosen.append(row)
    return chosen


def _peak_bytes(
    files: int, header: Mapping[str, Any], trees: int, table: Sequence[Row]
) -> int:
    """Inputs and output, and what a method holds beside them, in float32."""
    sizes = [np.size(leaf) for leaf in header.values() if is_merged(leaf)]
    if not table:  # all task vectors at once
        return int(_RUNTIME + files + 4 * sum(sizes) * (trees + 2))
    shapes: dict[tuple[int, int], int] = {}
    for row in table:
        if row.matrices is not None:
            m, n = row.matrices[1:]
            shapes[m, n] = shapes.get((m, n), 0) + math.prod(row.shape)
            sizes.append(math.prod(row.matrices))
    # Part by part: as much as the budget allows, but one leaf or matrix at least.
    part = min(MEMORY, BYTES_PER_NUMBER * trees * max(shapes.values(), default=0))
    largest = BYTES_PER_NUMBER * trees * max(sizes, default=0)
    return int(_RUNTIME + files + max(largest, part))
