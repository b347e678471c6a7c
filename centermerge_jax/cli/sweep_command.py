"""The command `centermerge sweep`: see `commands`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from centermerge_jax.cli.recipe_flags import Arguments, read_recipe, warn
from centermerge_jax.progress import progress


@dataclass(frozen=True, kw_only=True)
class Sweep(Arguments):
    """Search the hyperparameters of a method: merge, evaluate on validation, choose.

    What merges have in common is computed once. The setting that is chosen is tested
    once, and merged into --merged if that is given.

    Example: centermerge sweep cars dtd mnist --method cart --grid rank=0.04,0.08
    --grid scale=1,2,3 --tasks cars dtd mnist --heads heads.safetensors -o search
    """

    tasks: Annotated[tuple[str, ...], arg(metavar="TASK ...")]
    """Names of tasks, or of suites: clip8, clip14, clip20, glue7, real."""

    grid: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE,VALUE: values of a hyperparameter, in the order in which they are
    tried. Repeatable. By default the grid of the method (`centermerge methods`)."""

    search: Literal["grid", "successive"] = "grid"
    """grid tries all combinations; successive one hyperparameter after the other, the
    others at their best so far."""

    patience: int | None = None
    """Leave the rest of a row of values once so many in succession were no better."""

    together: int = 1
    """How many merged models are evaluated in one program."""

    heads: UseAppendAction[tuple[str, ...]] = ()
    """As for `evaluate`: a file of zero-shot heads, or TASK=CHECKPOINT. Repeatable."""

    data_dir: str = "data"
    """Folder of all data: prepared TFDS sets, or image folders."""

    split: Literal["validation", "train"] = "validation"
    """Which examples the choice is by."""

    limit: int | None = None
    """At most so many examples of each task for the choice, the same ones every
    time."""

    no_test: bool = False
    """Do not test the setting that was chosen."""

    merged: str | None = None
    """Checkpoint to write the merge of the chosen setting to."""

    resume: bool = False
    """Continue the search in the output folder; with a larger grid too."""

    batch: int = 64
    """Examples at a time."""

    preprocessing: Literal["clip", "imagenet", "dino", "half"] | None = None
    """How images are prepared; by default as is usual for the model's family."""

    size: int | None = None
    """Side of the images in pixels, as for `evaluate`."""

    tokenizer: str | None = None
    """Folder or file of the tokeniser, as for `evaluate`."""

    quiet: bool = False
    """Show no progress and no table."""

    def run(self) -> None:
        """Searches, shows the points, tests and writes what was chosen."""
        from rich.console import Console

        from centermerge_jax.checkpoints import refuse_existing
        from centermerge_jax.convert import load_model
        from centermerge_jax.data import registry
        from centermerge_jax.data.cache import Cached
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.merging import merge
        from centermerge_jax.planning import plan
        from centermerge_jax.settings import SOUP
        from centermerge_jax.sweep_checkpoints import (
            at,
            evaluator,
            read_candidates,
            read_grid,
        )
        from centermerge_jax.sweep_files import sweep_file
        from centermerge_jax.sweep_report import results_of_setting, table
        from centermerge_jax.sweeping import best, soup, sweep
        from centermerge_jax.task_evaluation import encoder, open_tasks, read_heads

        if not self.output:
            raise ParameterError("where to? --output FOLDER")
        if self.merged:
            refuse_existing(self.merged)
        recipe, notes = read_recipe(self)
        warn(notes)
        is_soup = recipe.method == SOUP
        if is_soup:
            recipe = replace(recipe, method="weight_average")
        grid = read_grid(recipe.method, self.grid)
        tasks = registry.select(self.tasks)
        with progress(quiet=self.quiet) as report:
            candidates = read_candidates(recipe, grid, progress=report)
            warn(candidates.todo.warnings)
            first = next(iter(candidates.todo.models.values()))
            model = load_model(first.path, subtree=recipe.path)
            made = encoder(
                model,
                preprocessing=self.preprocessing,
                size=self.size,
                tokenizer=self.tokenizer,
            )
            heads, remarks = read_heads(self.heads, model, tasks, made.features)
            warn(remarks)

            def opened(split: Any, limit: int | None) -> dict[str, Any]:
                return open_tasks(
                    tasks,
                    made.preparation,
                    data_dir=self.data_dir,
                    split=split,
                    limit=limit,
                    batch=self.batch,
                )

            inputs = {n: Cached(x) for n, x in opened(self.split, self.limit).items()}
            about = self._about(recipe, grid, candidates, tasks, heads)
            about["method"] = SOUP if is_soup else recipe.method
            with sweep_file(self.output, about, resume=self.resume) as file:
                how: dict[str, Any] = {
                    "evaluate": evaluator(
                        candidates, made.features, tasks, heads, inputs
                    ),
                    "known": list(file.points),
                    "keep": file.keep,
                    "progress": report,
                }
                if is_soup:
                    points, chosen = soup(candidates.experts, **how)
                else:
                    points = sweep(
                        recipe.method,
                        candidates.experts,
                        candidates.base,
                        grid=grid,
                        search=self.search,
                        patience=self.patience,
                        batch=self.together,
                        **how,
                        **candidates.fixed,
                    )
                    chosen = best(points)
                found = None
                if not self.no_test:
                    found = results_of_setting(
                        candidates,
                        recipe.method,
                        chosen.setting,
                        made.features,
                        tasks,
                        heads,
                        opened("test", None),
                        progress=report,
                    )
                file.finish(
                    chosen={"setting": chosen.setting, "validation": chosen.mean},
                    test=found,
                )
            if self.merged:
                final = at(recipe, chosen.setting)
                merge(
                    plan(final),
                    self.merged,
                    command=["centermerge", *sys.argv[1:]],
                    progress=report,
                )
        if not self.quiet:
            console = Console(highlight=False)
            console.print(table(points, chosen, found))

    def _about(
        self,
        recipe: Any,
        grid: Mapping[str, Sequence[Any]],
        candidates: Any,
        tasks: Sequence[Any],
        heads: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What the points depend on."""
        from centermerge_jax.methods import METHODS
        from centermerge_jax.zero_shot import tree_digest

        data = METHODS[recipe.method].data_argument
        models = {**candidates.experts, "base": candidates.base or {}}
        return {
            "command": ["centermerge", *sys.argv[1:]],
            "grid": {name: list(values) for name, values in grid.items()},
            "search": self.search,
            "patience": self.patience,
            "tasks": [task.name for task in tasks],
            "inputs": {name: tree_digest(x) for name, x in models.items()},
            "not_merged": tree_digest(candidates.others),
            "statistics": tree_digest(candidates.fixed.get(data, {})),
            "fixed": {
                "set": recipe.set,
                "views": recipe.views,
                "rest": recipe.rest,
                "weights": recipe.weights,
                "density": recipe.density,
                "rank": recipe.rank,
                "scale": recipe.scale,
                "dtype": recipe.dtype,
            },
            "evaluation": {
                "heads": tree_digest(heads),
                "split": self.split,
                "limit": self.limit,
                "data_dir": str(Path(self.data_dir)),
                "preprocessing": self.preprocessing,
                "size": self.size,
                "tokenizer": self.tokenizer,
            },
        }
