"""Checkpoints on disk, measured part by part: what `centermerge analyse` writes.

Leaves are chosen, checked, divided and read exactly as `merging` would for CART or its
uncentred control, whose task vectors and matrices are the ones that are measured.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from centermerge_jax.analysis.summary import ALIGNED, SHARES, Analysis
from centermerge_jax.atomic_files import write_whole
from centermerge_jax.checkpoints import refuse_existing
from centermerge_jax.division import Part
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.evaluation_files import now, versions
from centermerge_jax.host_memory import Arena, give_back
from centermerge_jax.part_reading import experts_and_base, read_ahead, read_part
from centermerge_jax.planning import MEMORY, Plan, plan
from centermerge_jax.progress import Report, silent
from centermerge_jax.recipe import Recipe, parse_size

NAME = "analysis.json"
"""The file in the folder of an analysis."""

MEASURING = 300 * 2**20
"""Bytes that the measures and their compiled programs take beside what a merge by full
factorisations would; up to 260 MiB were measured."""


def read_shares(text: str) -> tuple[float, ...]:
    """Ranks as shares, from `0.01,0.02,...`.

    Raises:
      ParameterError: It is not of that form. Whether they are shares is not looked at.

    Example:
      >>> read_shares("0.04,0.08,1.0")
      (0.04, 0.08, 1.0)
    """
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise ParameterError(
            f"--ranks {text}: expected shares of rank, such as 0.04,0.08,0.16"
        ) from None


def plan_analysis(recipe: Recipe) -> Plan:
    """Checks models against each other without reading a tensor.

    Args:
      recipe: The models and their views; method, rank and scale are not looked at.

    Raises:
      MergeError: As from `planning.plan`; or there is one expert and no base, or too
        little memory.
    """
    if len(recipe.experts) == 1 and recipe.base is None:
        raise ParameterError(
            "a single expert is its own mean: give several experts, or --base PATH"
        )
    given = recipe.memory or MEMORY
    left = max(1, parse_size(given, of="--memory") - MEASURING)
    method = "cart" if recipe.base is None else "truncated_task_arithmetic"
    as_merge = {"method": method, "rank": 1.0, "scale": 1.0, "memory": f"{left}B"}
    todo = plan(dataclasses.replace(recipe, **as_merge))
    if todo.peak_bytes > left:
        enough = -(-(todo.peak_bytes + MEASURING) // 2**20)
        raise ParameterError(
            f"--memory {given} is too little: this analysis needs {enough}MiB"
        )
    return todo


def analyse_checkpoints(
    todo: Plan,
    *,
    shares: Sequence[float] = SHARES,
    alignment: float = ALIGNED,
    progress: Report = silent,
) -> dict[str, Any]:
    """As `cm.analysis.analyse`, with no more than a part of each model in memory.

    Args:
      todo: From `plan_analysis`.
      shares: Ranks to look at.
      alignment: The rank at which subspaces are compared.
      progress: Told of every part.

    Raises:
      MergeError: A share is out of range, or the files are not what they seemed.
    """
    tasks = tuple(name for name in todo.models if name != "base")
    with_base = "base" in todo.models
    analysis = Analysis(tasks, with_base, shares, alignment)
    arenas = [Arena() for _ in range(1 + todo.needs.ahead)]
    total, done = max(1, sum(map(_work, todo.parts))), 0
    with ThreadPoolExecutor(1) as reading:
        parts = read_ahead(reading, todo, read_part, todo.parts, arenas)
        for part, (trees, carried, _) in zip(todo.parts, parts, strict=True):
            progress(f"{part.pieces[0].leaf}", done / total)
            experts, base = experts_and_base(todo, trees)
            table = {x: view for x, view in part.views.items() if x not in carried}
            analysis.add(
                experts,
                base[0] if base else None,
                table,
                memory=todo.needs.work(part),
                starts=_starts(part),
            )
            del trees, carried, experts, base
            give_back()
            done += _work(part)
    return analysis.document()


def write_analysis(
    folder: str | Path, found: Mapping[str, Any], *, command: Sequence[str]
) -> Path:
    """Writes an analysis into a folder, which is made if it is not there.

    Returns:
      The file.

    Raises:
      CheckpointError: As `refuse_analysis`.
    """
    path = Path(folder) / NAME
    content = {
        "kind": "analysis",
        "command": list(command),
        "date": now(),
        "versions": versions(),
        **found,
    }
    raw = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}") from error
    write_whole(path, raw + b"\n")
    return path


def refuse_analysis(folder: str | Path) -> None:
    """Refuses a folder that an analysis cannot be written into, before any work.

    Raises:
      CheckpointError: It holds one already, or it cannot be made or written to.
    """
    folder = Path(folder)
    refuse_existing(folder / NAME if folder.is_dir() else folder)


def _work(part: Part) -> int:
    """How long a part takes, but for a factor."""
    if part.matrix is None:
        return part.numbers
    return part.numbers * (1 + part.matrix.size)


def _starts(part: Part) -> dict[str, int]:
    """Which number the first matrix of each piece of a stack has in its leaf."""
    return {
        piece.leaf: piece.start // math.prod(view.shape[1:])
        for piece in part.pieces
        if (view := part.views.get(piece.leaf)) is not None and view.batch
    }
