"""The commands, as dataclasses: their fields are the flags, their docstrings the help."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from centermerge_jax.recipe import Recipe


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
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.merging import merge
        from centermerge_jax.planning import plan

        if self.format not in (None, "hub", "orbax", "safetensors"):
            raise ParameterError(f"--format is hub or orbax; got {self.format!r}")
        recipe = _recipe(self)
        with _progress(quiet=self.json) as report:
            manifest = merge(
                recipe,
                self.output,
                format=self.format,  # pyright: ignore[reportArgumentType]  checked above
                command=["centermerge", *sys.argv[1:]],
                progress=report,
            )
        if self.json:
            print(json.dumps(manifest, indent=2))
            return
        for warning in plan(recipe).warnings:
            print(f"note: {warning}", file=sys.stderr)
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
        for warning in todo.warnings:
            print(f"note: {warning}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show the leaves of a checkpoint: shapes, types, bytes, and whether all is finite."""

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
        problems: list[str] = []
        with _progress(quiet=self.json or self.headers_only) as report:
            for i, name in enumerate(() if self.headers_only else checkpoint.leaves):
                leaf = {name: checkpoint.read(name)}
                problems += non_finite(checkpoint.name, leaf)
                report(f"reading {name}", (i + 1) / len(checkpoint.leaves))
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


Command = Merge | Plan | Inspect
COMMANDS = {"merge": Merge, "plan": Plan, "inspect": Inspect}


def _recipe(command: Recipe) -> Recipe:
    names = [field.name for field in dataclasses.fields(Recipe)]
    return Recipe(**{name: getattr(command, name) for name in names})


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


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """A bar on stderr, with the time left, that leaves no trace when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:40.40}"),
        BarColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    off = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("", total=1.0)

        def report(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        yield report


def _size(count: int | float) -> str:
    """A number of bytes in the unit that suits it.

    Example:
      >>> _size(1536), _size(88.2e6)
      ('1.5 kB', '88.2 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
