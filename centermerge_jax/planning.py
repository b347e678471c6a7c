"""What a merge of checkpoints comes to, from the headers of their files alone.

Everything that can be known without reading a tensor (structure, views, ranks, what is
kept and left out) is checked here, so that a merge fails in the first second or not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from centermerge_jax.checkpoints import Checkpoint, LeafInfo, refuse_inside
from centermerge_jax.division import Part, copies, divide
from centermerge_jax.errors import ParameterError
from centermerge_jax.leaf_selection import Leaves, sort_leaves
from centermerge_jax.linalg import Solver, choose_solver
from centermerge_jax.merge_statistics import find_statistics, number_bytes, part_bytes
from centermerge_jax.methods import Method
from centermerge_jax.model_inputs import adapters, open_experts, open_model
from centermerge_jax.models.configurations.reader import Settings
from centermerge_jax.needs import Needs
from centermerge_jax.ranks import resolve_rank
from centermerge_jax.recipe import Recipe, parse_size
from centermerge_jax.settings import find_method, leaf_hyperparameters, try_out
from centermerge_jax.settings import hyperparameters as shared
from centermerge_jax.shared_settings import shared_settings
from centermerge_jax.statistics import Statistics
from centermerge_jax.trees import align, compute_dtype, is_merged
from centermerge_jax.twins import same_files
from centermerge_jax.views import MatrixView, Row, Table, resolve, rows

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
      statistics: Of each expert's data, where the method needs them.
      settings: What no shape tells of the network, in the words of a `config.json`.
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
    statistics: Mapping[str, Statistics]
    settings: Settings | None


def plan(recipe: Recipe) -> Plan:
    """Checks a recipe against its files without reading a tensor.

    Raises:
      MergeError: Anything that would make the merge fail, as far as headers tell.
    """
    method = find_method(recipe.method)
    hyperparameters = shared(recipe, method)
    if recipe.base is None and (method.needs_base or recipe.keep_from == "base"):
        raise ParameterError(f"{recipe.method} needs the pretrained model: --base PATH")
    base = open_model(recipe, "base", recipe.base) if recipe.base else None
    experts = open_experts(recipe, base)
    if len(experts) == 1 and not method.needs_base:
        raise ParameterError(
            f"{recipe.method} of a single checkpoint is that checkpoint; give several"
        )
    if recipe.output:
        refuse_inside(recipe.output, [*experts.values(), *([base] if base else [])])
    models = experts | ({"base": base} if base and method.needs_base else {})
    keeper = base if recipe.keep_from == "base" else experts.get(recipe.keep_from or "")
    leaves = sort_leaves(recipe, experts, base, keeper)

    headers = {
        name: _header(checkpoint, leaves.merged, recipe)
        for name, checkpoint in models.items()
    }
    align(headers, any_dtype=("base",))
    statistics = find_statistics(recipe, method, experts, leaves.merged)
    first = next(iter(headers.values()))
    table: dict[str, MatrixView | None] = {}
    if "views" in hyperparameters:
        table = resolve(first, hyperparameters.pop("views"))
    settings = leaf_hyperparameters(recipe, method, first, table, tuple(experts))
    try_out(recipe, method, hyperparameters, tuple(experts))
    lines: list[Row] = []
    if table:
        solver = hyperparameters.get("solver", "auto")
        lines = _with_solver(rows(first, table), settings, solver)
    infos = next(iter(experts.values())).leaves
    merged = {name: infos[name] for name in leaves.merged}
    kept = {name: keeper.leaves[name] for name in leaves.kept} if keeper else {}
    memory = parse_size(recipe.memory or MEMORY, of="--memory")
    needs = Needs.of(recipe, method, list(models.values()), merged, table, settings)
    needs = replace(needs, data=number_bytes(statistics, merged))
    divisible = all(model.fetch_range for model in models.values())
    parts, peak = [], 0
    for needs in needs.thriftier():  # noqa: B020  the first that fits, or the last
        most = needs.most(memory)
        parts = divide(
            merged,
            views=table,
            settings=settings,
            scope=method.scope,
            most=most,
            divisible=divisible,
        )
        parts += copies(kept, most=most, divisible=bool(keeper and keeper.fetch_range))
        peak = max(needs.bytes(p) + part_bytes(statistics, p.pieces) for p in parts)
        if peak <= memory:
            break
    outputs = {name: _output(recipe, info) for name, info in (merged | kept).items()}
    written = sum(info.nbytes for info in outputs.values())
    first_model = next(iter(experts.values()))
    peak = max(peak, needs.publishing(recipe, first_model, written))
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
        written_bytes=written,
        memory=memory,
        needs=needs,
        peak_bytes=peak,
        warnings=(*_warnings(recipe, method, experts), *same_files(models)),
        statistics=statistics,
        settings=shared_settings(experts, keeper),
    )


def _warnings(
    recipe: Recipe, method: Method, experts: Mapping[str, Checkpoint]
) -> Iterator[str]:
    if method.centered and len(experts) == 2:
        yield (
            "two experts: their centred vectors are opposite, so the result is their "
            "plain average for every rank and scale"
        )
    used = method.needs_base or recipe.keep_from == "base" or any(adapters(recipe))
    if recipe.base is not None and not used:
        yield f"{recipe.method} takes no base; --base is not used"


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
        rank = settings[row.leaf].get("rank")
        if row.matrices is None or rank is None:
            chosen.append(row)
            continue
        size = min(row.matrices[1:])
        k = resolve_rank(rank, size)
        by = choose_solver(k, size) if solver == "auto" else solver
        chosen.append(replace(row, rank=k, solver=by))
    return chosen
