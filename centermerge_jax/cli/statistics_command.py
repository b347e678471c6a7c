"""The command `centermerge statistics`: see `commands`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from centermerge_jax.progress import Report, progress

_Experts = Annotated[tuple[str, ...], arg(metavar="EXPERT ...")]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Measure what fisher, regmean and esm have to know of each expert and its data.

    The files go to `centermerge merge --statistics NAME=FILE`.

    Example: centermerge statistics cars --task cars -o cars.gram.safetensors
    """

    experts: Positional[_Experts]
    """The expert of --task; or several as TASK=EXPERT, and the output is a folder."""

    output: Annotated[str, arg(aliases=("-o",))]
    """A file that ends in .safetensors; of several experts a folder, which then holds
    TASK.safetensors for each."""

    task: str | None = None
    """Name of the expert's task, as for `evaluate`."""

    kind: Literal["gram", "merged_gram", "fisher"] = "gram"
    """gram: Gram matrices of the inputs of all layers, for regmean and esm. fisher:
    diagonal Fisher information, for fisher. merged_gram: Gram matrices behind layers
    that regmean has merged already, for regmean_plus_plus; give all experts."""

    examples: int = 256
    """Examples of each task, or all if there are fewer."""

    split: Literal["train", "validation", "test"] = "train"
    """Where they are from. Statistics of test examples make results incomparable."""

    seed: int = 0
    """Decides which examples, and for fisher which labels are drawn."""

    labels: Literal["sampled", "given"] = "sampled"
    """For fisher: labels drawn from what the expert says, or those of the data."""

    heads: UseAppendAction[tuple[str, ...]] = ()
    """For fisher: heads as for `evaluate`. By default the expert's own."""

    data_dir: str = "data"
    """Folder of all data: prepared TFDS sets, or image folders."""

    batch: int = 32
    """Examples at a time."""

    workers: int = 0
    """Processes that read and prepare images."""

    preprocessing: Literal["clip", "imagenet", "dino", "half"] | None = None
    """As for `evaluate`."""

    size: int | None = None
    """As for `evaluate`."""

    tokenizer: str | None = None
    """As for `evaluate`."""

    path: str | None = None
    """Where the parameters lie inside an Orbax directory."""

    json: bool = False
    """Print JSON, for machines, instead of a summary."""

    quiet: bool = False
    """Show no progress and no summary."""

    def run(self) -> None:
        """Measures and writes."""
        from centermerge_jax.checkpoints import refuse_existing
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.statistics import write_statistics
        from centermerge_jax.task_statistics import origins

        if not self.experts:
            raise ParameterError("statistics of what? Give the experts' checkpoints")
        if self.examples < 1:
            raise ParameterError(f"--examples is at least 1; got {self.examples}")
        places = self._places()
        files = self._files(list(places))
        folder = None if self.task else Path(self.output)
        new = [folder] if folder and not folder.is_dir() else files.values()
        for place in new:
            refuse_existing(place)
        with progress(quiet=self.json or self.quiet) as report:
            experts = {
                name: self._expert(name, place, report)
                for name, place in places.items()
            }
            found = self._measured(experts, report)
            report("digests of the experts", 1.0)
            made = origins(experts, self.kind)
        if folder:
            folder.mkdir(exist_ok=True)
        for name, file in files.items():
            write_statistics(file, found[name], origin=made[name])
        if self.json:
            written = {
                name: {
                    "file": str(file),
                    "leaves": len(found[name]),
                    **_shown(made[name]),
                }
                for name, file in files.items()
            }
            print(json.dumps(written, indent=2))
        elif not self.quiet:
            for name, file in files.items():
                print(
                    f"wrote {file}: {self.kind} of {len(found[name])} leaves, "
                    f"{made[name].source}"
                )

    def _places(self) -> dict[str, str]:
        """The experts' paths by task."""
        from centermerge_jax.data import registry
        from centermerge_jax.errors import ParameterError

        if self.task is not None:
            if len(self.experts) != 1:
                raise ParameterError(
                    "--task names the task of one expert; of several give TASK=EXPERT"
                )
            if self.kind == "merged_gram":
                raise ParameterError(
                    "merged_gram depends on all experts: give all as TASK=EXPERT, "
                    "without --task"
                )
            return {registry.find(self.task).name: self.experts[0]}
        places: dict[str, str] = {}
        for text in self.experts:
            task, equals, path = text.partition("=")
            if not (equals and task and path):
                raise ParameterError(
                    f"{text}: of which task? Give --task NAME, or TASK={text}"
                )
            name = registry.find(task).name
            if name in places:
                raise ParameterError(f"two experts are given for {name}")
            places[name] = path
        return places

    def _files(self, tasks: list[str]) -> dict[str, Path]:
        from centermerge_jax.errors import ParameterError

        output = Path(self.output)
        if (output.suffix == ".safetensors") != (self.task is not None):
            wanted = "a file, NAME.safetensors" if self.task else "a folder"
            raise ParameterError(f"--output {output}: the output is {wanted} here")
        if self.task is not None:
            return {tasks[0]: output}
        return {task: output / f"{task}.safetensors" for task in tasks}

    def _expert(self, name: str, place: str, report: Report) -> Any:
        """An expert and its examples, opened."""
        from centermerge_jax.convert import load_model
        from centermerge_jax.data import registry
        from centermerge_jax.task_evaluation import encoder, open_tasks
        from centermerge_jax.task_statistics import TaskExpert

        report(f"reading {name}", 0.0)
        model = load_model(place, subtree=self.path)
        task = registry.find(name)
        made = encoder(
            model,
            preprocessing=self.preprocessing,
            size=self.size,
            tokenizer=self.tokenizer,
        )
        (batches,) = open_tasks(
            [task],
            made.preparation,
            data_dir=self.data_dir,
            split=self.split,
            limit=self.examples,
            batch=self.batch,
            workers=self.workers,
            seed=self.seed,
        ).values()
        count = len(batches.source)
        source = f"{count} examples of {name}, {self.split}, seed {self.seed}"
        if self.kind == "fisher":
            source += f", labels {self.labels}"
        return TaskExpert(model, made, task, batches, source)

    def _measured(self, experts: Mapping[str, Any], report: Report) -> dict[str, Any]:
        from centermerge_jax.task_evaluation import read_heads
        from centermerge_jax.task_statistics import (
            task_fisher,
            task_grams,
            task_merged_grams,
        )

        if self.kind == "merged_gram":
            return task_merged_grams(experts, progress=report)
        found = {}
        for number, (name, expert) in enumerate(experts.items()):

            def tell(
                text: str, share: float, name: str = name, number: int = number
            ) -> None:
                report(f"{name}: {text}", (number + share) / len(experts))

            if self.kind == "gram":
                found[name] = task_grams(expert, progress=tell)
                continue
            heads, remarks = read_heads(
                self._heads(name), expert.model, [expert.task], expert.encoder.features
            )
            for remark in remarks:
                print(f"note: {remark}", file=sys.stderr)
            found[name] = task_fisher(
                expert, heads[name], seed=self.seed, labels=self.labels, progress=tell
            )
        return found

    def _heads(self, task: str) -> list[str]:
        """What is given for a task: files for all, and TASK=CHECKPOINT for it."""
        from centermerge_jax.data import registry

        kept = []
        for text in self.heads:
            name, equals, _ = text.partition("=")
            if not equals or Path(text).exists() or registry.find(name).name == task:
                kept.append(text)
        return kept


def _shown(origin: Any) -> dict[str, Any]:
    """What statistics are of, without the long lists of digests."""
    from centermerge_jax.statistics import expert_digest

    facts = asdict(origin)
    facts["expert_sha256"] = expert_digest(origin.expert_sha256)
    return facts
