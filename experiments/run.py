"""Runs a configuration of the paper's benchmark: merges, evaluates, compares.

    python -m experiments.run vit_b32_8_cart --checkpoints checkpoints --data-dir data
    python -m experiments.run vit_b32_8_cart --smoke    # nothing to download
    python -m experiments.run all --smoke

`docs/benchmark.md` says what has to be in the two folders, and where it is from.
Hyperparameters that nobody published are chosen on validation images. What is found is
in `--output`: the search, the merged model with its manifest, and `results.json`. What
is there already is not done again.
"""

import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from tyro.conf import Positional

import centermerge_jax as cm
from centermerge_jax import evaluation_report as report
from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.convert import load_model, nested
from centermerge_jax.data import registry
from centermerge_jax.data.cache import Cached, Repeatable
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.errors import MergeError, ParameterError, listing
from centermerge_jax.evaluation_drafts import drafted
from centermerge_jax.evaluation_files import document, write_results
from centermerge_jax.models.vit import Params
from centermerge_jax.pipes import quiet_pipe
from centermerge_jax.progress import Report, progress
from centermerge_jax.task_evaluation import (
    counted,
    encoder,
    evaluate_tasks,
    open_tasks,
    read_heads,
)
from centermerge_jax.task_results import TaskResult
from centermerge_jax.zero_shot import tree_digest
from experiments.configs.table import CONFIGS, Config

ENCODER = "visual/"
"""What is merged: names of the image encoder's leaves begin so."""

CHOOSING = 500
"""Validation images of each task that hyperparameters are chosen on."""


@dataclass(frozen=True)
class Inputs:
    """Where everything is.

    Attributes:
      experts: Checkpoint of each task, by its name.
      base: The pretrained CLIP.
      heads: Zero-shot heads.
      data_dir: Data of the tasks.
    """

    experts: Mapping[str, Path]
    base: Path
    heads: Path
    data_dir: Path

    @classmethod
    def find(cls, config: Config, checkpoints: Path, data_dir: Path) -> "Inputs":
        """The files of a configuration.

        Raises:
          ParameterError: Some are not there; all of them are listed.
        """
        folder = checkpoints / config.model
        experts = {task.name: folder / task.title for task in _tasks(config)}
        found = cls(
            experts, folder / "zeroshot", folder / "heads.safetensors", data_dir
        )
        wanted = [*experts.values(), found.base, found.heads]
        if missing := [str(path) for path in wanted if not path.exists()]:
            cure = "docs/benchmark.md says where they are from."
            raise ParameterError(listing("{n} checkpoint{s} missing", missing, cure))
        return found


def main(
    name: Positional[str],
    /,
    *,
    checkpoints: Path | None = None,
    data_dir: Path | None = None,
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs"),
    batch: int = 64,
    workers: int = 0,
    limit: int | None = None,
    smoke: bool = False,
) -> None:
    """Runs configurations.

    Args:
      name: A configuration (`python -m experiments.configs.table` lists them), or all.
      checkpoints: Folder with the experts of each model.
      data_dir: Folder with the data of the tasks.
      output: Folder for what is found, with a folder for each configuration.
      batch: Images at a time.
      workers: Processes that prepare images.
      limit: At most so many test images of each task, for a first look.
      smoke: Tiny random checkpoints and made images instead: the whole chain in
        seconds, with numbers that mean nothing.
    """
    if name not in CONFIGS and name != "all":
        known = ", ".join(CONFIGS)
        raise ParameterError(f"no configuration {name!r}: known are {known}")
    configs = list(CONFIGS.values()) if name == "all" else [CONFIGS[name]]
    with tempfile.TemporaryDirectory() as made:
        if smoke:
            from experiments.smoke import make

            output = Path(made) / "runs"
            checkpoints, data_dir = make(Path(made), configs)
        if checkpoints is None or data_dir is None:
            raise ParameterError("--checkpoints and --data-dir are needed, or --smoke")
        for config in configs:
            inputs = Inputs.find(config, checkpoints, data_dir)
            with progress() as said:
                run(
                    config,
                    inputs,
                    output / config.name,
                    batch=batch,
                    workers=workers,
                    limit=limit,
                    grid=_corner(config.grid) if smoke else config.grid,
                    progress=said,
                )


def run(
    config: Config,
    inputs: Inputs,
    output: Path,
    *,
    grid: Mapping[str, tuple[float, ...]],
    batch: int,
    workers: int,
    limit: int | None,
    progress: Report,
) -> dict[str, Any]:
    """Merges as a configuration says, evaluates, and writes what came out.

    Args:
      config: The configuration.
      inputs: Its files.
      output: Folder for the results.
      grid: What to try for hyperparameters that are not known.
      batch: Images at a time.
      workers: Processes that prepare images.
      limit: At most so many test images of each task.
      progress: Told what is done.

    Returns:
      What is in `results.json`.
    """
    output.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(config)
    base = load_model(inputs.base)
    made = encoder(base)
    heads, remarks = read_heads([str(inputs.heads)], base, tasks, made.features)
    opened = functools.partial(
        open_tasks,
        tasks,
        made.preparation,
        data_dir=inputs.data_dir,
        batch=batch,
        workers=workers,
    )

    def measure(
        params: Params, batches: Mapping[str, Repeatable], *only: TaskSpec, **how: Any
    ) -> dict[str, TaskResult]:
        return evaluate_tasks(
            made.features,
            params,
            only or tasks,
            heads,
            batches,
            progress=progress,
            **how,
        )

    chosen = {k: v for k, v in config.hyperparameters.items() if v is not None}
    _check_same(output / "inputs.json", inputs)
    if grid:
        kept = {
            name: Cached(found)
            for name, found in opened(split="validation", limit=CHOOSING).items()
        }
        points = _search(
            config,
            inputs,
            grid,
            chosen,
            lambda params: measure(params, kept),
            record=output / "search.json",
        )
        chosen |= max(points, key=lambda point: point["score"])["hyperparameters"]
    merged = _merged(config, inputs, output, chosen, progress)
    found = load_model(merged, config=base.config)
    tests = opened(limit=limit)
    if limit is None:
        remarks += counted(tasks, tests)
    names = [task.name for task in tasks]
    how = {"limit": limit, "batch": batch, "preparation": repr(made.preparation)}
    drafts = output / "merged.json", output / "experts.json"
    with drafted(drafts[0], names, {**how, "hyperparameters": chosen}) as draft:
        results = measure(found.params, tests, known=draft.results, keep=draft.keep)
    with drafted(drafts[1], names, how) as draft:
        for task in tasks:
            if task.name not in draft.results:
                expert = load_model(inputs.experts[task.name], config=base.config)
                draft.keep(measure(expert.params, tests, task))
    experts = {name: one.answers for name, one in draft.results.items()}
    # The share of an expert that has nothing right is no number.
    idle = [name for name, one in experts.items() if not one.score]
    own = None if idle else experts
    if idle:
        remarks.append(f"experts with nothing right: {', '.join(idle)}; no shares")
    summary = report.summarise(results, own)
    written = document(
        results,
        summary,
        settings={
            "configuration": config.name,
            "published": config.published,
            "family": config.family,
            "hyperparameters": chosen,
            "searched": list(config.unknown),
            "limit": limit,
            "remarks": remarks,
            "model_digest": tree_digest(found.params),
            "experts": {name: one.score for name, one in experts.items()},
            "preparation": repr(made.preparation),
        },
    )
    write_results(written, output / "results.json")
    for draft in drafts:
        draft.unlink()
    console = Console(highlight=False)
    console.print(f"\n{config.name}: {_shown(chosen)}", *remarks, sep="\n")
    console.print(report.table(results, summary, own))
    if config.published is not None:
        console.print(
            f"published: {config.published} over {config.family or 'unknown'} "
            f"checkpoints; here {100 * summary.score:.1f}"
        )
    return written


def _tasks(config: Config) -> tuple[TaskSpec, ...]:
    return registry.select([config.suite])


def _corner(grid: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return {name: values[:2] for name, values in grid.items()}


def _shown(chosen: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in chosen.items()) or "no hyperparameters"


def _search(
    config: Config,
    inputs: Inputs,
    grid: Mapping[str, tuple[float, ...]],
    chosen: Mapping[str, float],
    measure: Callable[[Params], Mapping[str, TaskResult]],
    *,
    record: Path,
) -> list[dict[str, Any]]:
    """Validation accuracy at each point, noted in a file as it is found.

    All methods here are affine in the scale: one merge gives those of all scales. The
    encoders of all experts are held in memory.
    """
    known = json.loads(record.read_text())["points"] if record.exists() else []
    scores = {tuple(x["hyperparameters"].values()): x["score"] for x in known}
    points: list[dict[str, Any]] = [
        {"hyperparameters": point, "score": scores[key]}
        if (key := tuple(point.values())) in scores
        else {"hyperparameters": point}
        for point in _points(grid)
    ]
    if all("score" in point for point in points):
        return points
    experts = {name: _encoder_leaves(path) for name, path in inputs.experts.items()}
    method = cm.METHODS[config.method]
    arguments: list[Any] = [experts]
    if method.needs_base:
        arguments.append(_encoder_leaves(inputs.base))
    if "views" in method.hyperparameters:
        chosen = {**chosen, "views": getattr(cm.views, config.views)}
    zero = _tree(arguments[1] if method.needs_base else cm.weight_average(experts))
    merged: tuple[dict[str, float], Any] = ({}, None)
    for point in points:
        if "score" in point:
            continue
        others = {k: v for k, v in point["hyperparameters"].items() if k != "scale"}
        if merged[1] is None or merged[0] != others:
            one = method.function(*arguments, **{**chosen, **others}, scale=1.0)
            merged = others, _tree(one)
        scale = point["hyperparameters"]["scale"]
        params = jax.tree.map(lambda a, b, s=scale: a + s * (b - a), zero, merged[1])
        results = measure(params)
        point["score"] = float(np.mean([x.answers.score for x in results.values()]))
        done = [point for point in points if "score" in point]
        write_results({"points": done, "images": CHOOSING}, record)
    return points


def _points(grid: Mapping[str, tuple[float, ...]]) -> list[dict[str, float]]:
    """All combinations; the scale changes fastest."""
    ordered = sorted(grid, key=lambda name: name == "scale")
    values = itertools.product(*(grid[name] for name in ordered))
    return [dict(zip(ordered, combination, strict=True)) for combination in values]


def _check_same(record: Path, inputs: Inputs) -> None:
    """Refuses to go on with results that were made of other checkpoints."""
    now = {
        str(file): [file.stat().st_size, file.stat().st_mtime_ns]
        for path in (*inputs.experts.values(), inputs.base, inputs.heads)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    }
    if not record.exists():
        write_results(now, record)
    elif json.loads(record.read_text()) != now:
        raise ParameterError(
            f"{record.parent} holds results of other checkpoints; remove it or choose "
            "another --output"
        )


def _encoder_leaves(path: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(path)
    names = [name for name in checkpoint.leaves if name.startswith(ENCODER)]
    return {name: np.asarray(x) for name, x in checkpoint.read_all(names).items()}


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return nested(jax.tree.map(np.asarray, dict(leaves)))


def _merged(
    config: Config,
    inputs: Inputs,
    output: Path,
    chosen: Mapping[str, float],
    progress: Report,
) -> Path:
    """The merged image encoder on disk, unless it is there already."""
    merged = output / "merged"
    if merged.exists():
        noted = json.loads((merged / "centermerge.json").read_text())
        same = {k: noted["hyperparameters"].get(k) for k in chosen} == dict(chosen)
        if noted["method"] != config.method or not same:
            raise ParameterError(
                f"{merged} was merged in another way; remove it or choose another "
                "--output"
            )
        return merged
    method = cm.METHODS[config.method]
    models = [*inputs.experts.values()]
    settings: dict[str, Any] = dict(chosen)
    if method.needs_base:
        models.append(inputs.base)
        settings["base"] = str(inputs.base)
    if "views" in method.hyperparameters:
        settings["views"] = config.views
    # Leftovers of the text tower play no part.
    leaves = {name for path in models for name in open_checkpoint(path).leaves}
    if any(not name.startswith(ENCODER) for name in leaves):
        settings["exclude"] = (f"(?!{ENCODER}).*",)
    cm.stream.merge(
        dict(inputs.experts),
        merged,
        config.method,
        resume=True,
        progress=progress,
        **settings,
    )
    return merged


if __name__ == "__main__":
    try:
        with quiet_pipe():
            tyro.cli(main, description=__doc__)
    except MergeError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
