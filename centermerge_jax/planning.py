"""What a merge of checkpoints comes to, from the headers of their files alone.

Everything that can be known without reading a tensor (structure, views, ranks, what is
kept and left out) is checked here, so that a merge fails in the first second or not.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from centermerge_jax.checkpoints import (
    Checkpoint,
    LeafInfo,
    is_adapter,
    load_name_map,
    open_adapter,
    open_checkpoint,
    rename,
)
from centermerge_jax.division import Part, copies, divide
from centermerge_jax.errors import ParameterError, listing
from centermerge_jax.leaf_selection import Leaves, sort_leaves
from centermerge_jax.linalg import SOLVERS, Solver, choose_solver
from centermerge_jax.methods import METHODS, RESTS, Method
from centermerge_jax.needs import Needs
from centermerge_jax.overrides import leaf_settings
from centermerge_jax.ranks import check_fits, check_rank, resolve_rank
from centermerge_jax.recipe import DTYPES, Recipe, parse_size
from centermerge_jax.trees import align, compute_dtype, is_merged
from centermerge_jax.views import MatrixView, Row, Table, load, resolve, rows

MEMORY = "4GiB"
"""Resident memory that a merge keeps to unless told otherwise."""


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
      hyperparameters: What the method is called with, beside the settings of a part.
      parts: What is read, merged and written together, one after the other.
      outputs: Shape and type of each leaf of the result.
      read_bytes: Bytes of tensors that are read.
      written_bytes: Bytes of tensors that are written.
      memory: Bytes of resident memory that the merge may take.
      needs: How its bytes are reckoned.
      peak_bytes: Those that it is expected to take at most.
      warnings: What is allowed but perhaps not meant.
    """

    recipe: Recipe
    models: Mapping[str, Checkpoint]
    keeper: Checkpoint | None
    leaves: Leaves
    views: Table
    rows: tuple[Row, ...]
    hyperparameters: Mapping[str, Any]
    parts: tuple[Part, ...]
    outputs: Mapping[str, LeafInfo]
    read_bytes: int
    written_bytes: int
    memory: int
    needs: Needs
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
    base = _open(recipe, "base", recipe.base) if recipe.base else None
    experts = _open_experts(recipe, base)
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
    models = dict(experts)
    if base is not None:
        if method.needs_base:
            models["base"] = base
        elif recipe.keep_from != "base" and not any(_adapters(recipe)):
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
    if "views" in hyperparameters:
        table = resolve(first, hyperparameters.pop("views"))
    settings = _settings(recipe, method, first, table, tuple(experts))
    lines: list[Row] = []
    if table:
        solver = hyperparameters.get("solver", "auto")
        lines = _with_solver(rows(first, table), settings, solver)
    infos = next(iter(experts.values())).leaves
    merged = {name: infos[name] for name in leaves.merged}
    kept = {name: keeper.leaves[name] for name in leaves.kept} if keeper else {}
    memory = parse_size(recipe.memory or MEMORY)
    needs = Needs.of(recipe, method, list(models.values()), merged, table, settings)
    parts, peak = [], 0
    for needs in needs.thriftier():  # noqa: B020  the first that fits, or the last
        most = needs.most(memory)
        parts = [
            *divide(
                merged,
                views=table,
                settings=settings,
                scope=method.scope,
                most=most,
                divisible=all(model.fetch_range for model in models.values()),
            ),
            *copies(kept, most=most, divisible=bool(keeper and keeper.fetch_range)),
        ]
        peak = max(needs.bytes(part) for part in parts)
        if peak <= memory:
            break
    outputs = {name: _output(recipe, info) for name, info in (merged | kept).items()}
    read = sum(info.nbytes for info in kept.values()) + sum(
        checkpoint.leaves[name].nbytes
        for checkpoint in models.values()
        for name in leaves.merged
    )
    return Plan(
        recipe=recipe,
        models=models,
        keeper=keeper,
        leaves=leaves,
        views=table,
        rows=tuple(lines),
        hyperparameters=hyperparameters,
        parts=tuple(parts),
        outputs=outputs,
        read_bytes=read,
        written_bytes=sum(info.nbytes for info in outputs.values()),
        memory=memory,
        needs=needs,
        peak_bytes=peak,
        warnings=tuple(warnings),
    )


def check_memory(todo: Plan) -> None:
    """Checks that a merge can keep to its memory.

    Raises:
      ParameterError: It cannot; the message says how much would do.
    """
    if todo.peak_bytes > todo.memory:
        enough = -(-todo.peak_bytes // 2**20)
        raise ParameterError(
            f"--memory {todo.recipe.memory or MEMORY} is too little: this merge needs "
            f"{enough}MiB"
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


_BY_LEAF = ("rank", "scale")
"""Hyperparameters that may differ from leaf to leaf."""

_GENERAL = ("views", "solver", "dtype")
"""Hyperparameters that say how, not what: harmless to methods that do not take them."""


def _hyperparameters(recipe: Recipe, method: Method) -> dict[str, Any]:
    """The keyword arguments that all parts share, from the fields of the same name."""
    values: dict[str, Any] = {}
    for name in (*_BY_LEAF, "rest", "weights", *_GENERAL):
        value = getattr(recipe, name)
        parameter = method.hyperparameters.get(name)
        if parameter is None:
            if value is not None and name not in _GENERAL:
                raise ParameterError(f"{recipe.method} takes no --{name}")
        elif value is not None:
            values[name] = value
        elif parameter.default is parameter.empty and not _all_overridden(recipe, name):
            raise ParameterError(f"{recipe.method} needs --{name}")
    for name, choices in (("rest", RESTS), ("solver", SOLVERS), ("dtype", DTYPES)):
        if values.get(name, choices[0]) not in choices:
            raise ParameterError(
                f"--{name} is one of {', '.join(choices)}; got {values[name]!r}"
            )
    if "views" in method.hyperparameters:
        values["views"] = load(recipe.views or "auto")
    if recipe.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ParameterError(
            "--dtype float64 needs JAX_ENABLE_X64=1 in the environment"
        )
    if recipe.dtype is not None:
        values["dtype"] = np.dtype(recipe.dtype)
    return {name: value for name, value in values.items() if name not in _BY_LEAF}


def _all_overridden(recipe: Recipe, name: str) -> bool:
    return any(getattr(override, name) is not None for override in recipe.overrides)


def _settings(
    recipe: Recipe,
    method: Method,
    header: Mapping[str, Any],
    table: Table,
    tasks: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Rank and scale of each leaf, as far as the method takes them."""
    matrices = {name: view for name, view in table.items() if view is not None}
    floating = [name for name, leaf in header.items() if is_merged(leaf)]
    found = leaf_settings(recipe, floating, matrices=list(matrices))
    needed = [name for name in _BY_LEAF if name in method.hyperparameters]
    missing = []
    for leaf, values in found.items():
        for key, value in list(values.items()):
            if value is not None and key not in needed:
                raise ParameterError(f"{recipe.method} takes no {key} (for {leaf})")
            if value is not None:
                _check_setting(key, value, leaf, tasks)
            elif leaf in matrices or (key == "scale" and key in needed):
                missing.append(f"{leaf}: {key}")
            else:
                del values[key]
    if missing:
        raise ParameterError(listing("{n} hyperparameter{s} missing", missing))
    if "rank" in needed:
        _check_ranks(matrices, found)
    # What is carried goes along with some leaf that is merged.
    first = next(iter(found.values()), {})
    some = {key: value for key, value in first.items() if key != "rank"}
    return {name: found.get(name, some) for name in header}


def _check_setting(key: str, value: Any, leaf: str, tasks: Sequence[str]) -> None:
    if key == "rank":
        check_rank(value)
    elif isinstance(value, Mapping):
        if set(value) != set(tasks):
            raise ParameterError(
                f"scale for {leaf} names {', '.join(value)}; the tasks are "
                f"{', '.join(tasks)}"
            )
        for number in value.values():
            _check_setting(key, number, leaf, tasks)
    elif not math.isfinite(value):
        raise ParameterError(f"--scale is not finite: {value}")


def _check_ranks(
    matrices: Mapping[str, MatrixView], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks every rank against the matrices that it is for."""
    sizes: dict[Any, dict[str, int]] = {}
    for name, view in matrices.items():
        sizes.setdefault(settings[name]["rank"], {})[name] = view.size
    for rank, found in sizes.items() or [(1, {})]:
        check_fits(rank, found)


def _open_experts(recipe: Recipe, base: Checkpoint | None) -> dict[str, Checkpoint]:
    """The experts by name, in the order of the tasks."""
    experts: dict[str, Checkpoint] = {}
    for given in recipe.experts:
        name, path = _name_and_path(given)
        checkpoint = _open(recipe, name, path, base)
        name = name or checkpoint.name
        if name in experts or name == "base":
            other = experts[name].path if name in experts else "that of the base"
            raise ParameterError(
                f"{path}: the name {name!r} is taken ({other}); call it otherwise with "
                "NAME=PATH"
            )
        experts[name] = checkpoint
    renamed = {given.partition("=")[0] for given in recipe.names}
    if unknown := renamed - {*experts, "base"}:
        raise ParameterError(
            f"--names {', '.join(sorted(unknown))}: no such model, there are "
            f"{', '.join([*experts, 'base'])}"
        )
    return dict(sorted(experts.items()))


def _name_and_path(given: str) -> tuple[str, str]:
    """Of `NAME=PATH`, or of a path alone, whose name is then empty."""
    # A path may hold a '='; a name holds no '/'.
    before, equals, after = given.partition("=")
    called = equals and "/" not in before and not Path(given).exists()
    name, path = (before, after) if called else ("", given)
    if not path or (called and not name):
        raise ParameterError(f"expert {given!r}: give a PATH or NAME=PATH")
    return name, path


def _adapters(recipe: Recipe) -> Iterator[bool]:
    return (is_adapter(Path(_name_and_path(given)[1])) for given in recipe.experts)


def _open(
    recipe: Recipe, name: str, path: str, base: Checkpoint | None = None
) -> Checkpoint:
    """Opens a model: an adapter on its base, under other names if they are given."""
    if is_adapter(Path(path)):
        if base is None:
            raise ParameterError(f"{path} is an adapter: --base PATH says of what")
        opened = open_adapter(Path(path), base)
    else:
        opened = open_checkpoint(path, subtree=recipe.path)
    for given in recipe.names:
        model, _, file = given.partition("=")
        if not file:
            raise ParameterError(f"--names {given}: give MODEL=FILE")
        if model == (name or opened.name):
            opened = rename(opened, load_name_map(Path(file)))
    return opened


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
        name: leaf.astype(dtype, copy=False)
        if isinstance(leaf, np.ndarray) and is_merged(leaf)
        else leaf
        for name, leaf in leaves.items()
    }


def _output(recipe: Recipe, info: LeafInfo) -> LeafInfo:
    """Shape and type of a leaf of the result."""
    if info.kind == "array" and recipe.dtype and _is_floating(info):
        return LeafInfo(info.shape, np.dtype(recipe.dtype))
    return info


def _is_floating(info: LeafInfo) -> bool:
    return info.kind == "array" and jnp.issubdtype(info.dtype, jnp.floating)


def _with_solver(
    lines: Sequence[Row], settings: Mapping[str, Mapping[str, Any]], solver: Solver
) -> list[Row]:
    """The rows with the rank and the solver of each matrix."""
    chosen = []
    for row in lines:
        if row.matrices is None:
            chosen.append(row)
            continue
        size = min(row.matrices[1:])
        k = resolve_rank(settings[row.leaf]["rank"], size)
        by = choose_solver(k, size) if solver == "auto" else solver
        chosen.append(replace(row, rank=k, solver=by))
    return chosen
