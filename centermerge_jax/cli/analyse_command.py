"""The command `centermerge analyse`: see `commands`."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from centermerge_jax.cli.recipe_flags import warn
from centermerge_jax.progress import progress

_Experts = Annotated[tuple[str, ...], arg(metavar="EXPERT ...")]


@dataclass(frozen=True, kw_only=True)
class Analyse:
    """Measure task vectors: interference, spectra, alignment, norms; no data is needed.

    Around the experts' mean, and around the base if it is given. What the measures are
    is in docs/analysis.md.

    Example: centermerge analyse cars dtd mnist --base base -o analysis
    """

    experts: Positional[_Experts]
    """Checkpoints of the fine-tuned models, as for `merge`."""

    output: Annotated[str, arg(aliases=("-o",))]
    """Folder for analysis.json; made if it is not there."""

    base: str | None = None
    """Checkpoint of the pretrained model: task vectors are measured around it too."""

    ranks: str = "0.01,0.02,0.04,0.08,0.12,0.16,0.24,0.32,0.48,0.64,0.8,1.0"
    """Ranks to look at, as shares of min(m, n) of each matrix, ascending."""

    alignment: float = 0.08
    """The rank at which the tasks' subspaces are compared, such a share too."""

    views: str | None = None
    """Which leaves are matrices: auto, fused (queries, keys and values as one), split,
    or a TOML file of rules."""

    dtype: str | None = None
    """Compute with all models cast to this type; by default the experts' own, and then
    all experts need the same."""

    path: str | None = None
    """Where the parameters lie inside Orbax directories."""

    names: UseAppendAction[tuple[str, ...]] = ()
    """MODEL=FILE, as for `merge`. Repeatable."""

    exclude: UseAppendAction[tuple[str, ...]] = ()
    """Regular expression; leaves whose whole name matches are left out. Repeatable."""

    memory: str | None = None
    """Memory that the process may take in all, such as 500MB; 4GiB by default."""

    quiet: bool = False
    """Show no progress and no table."""

    def run(self) -> None:
        """Measures, writes, and shows means over all matrices."""
        from rich.console import Console

        from centermerge_jax.analysis_checkpoints import (
            analyse_checkpoints,
            plan_analysis,
            read_shares,
            refuse_analysis,
            write_analysis,
        )
        from centermerge_jax.recipe import Recipe

        shares = read_shares(self.ranks)
        refuse_analysis(self.output)
        began = time.perf_counter()
        recipe = Recipe(
            experts=self.experts,
            base=self.base,
            views=self.views,
            dtype=self.dtype,
            path=self.path,
            names=self.names,
            exclude=self.exclude,
            memory=self.memory,
        )
        todo = plan_analysis(recipe)
        if len(self.experts) == 2:
            warn(
                ["two experts: around their mean they are opposite, and interfere most"]
            )
        with progress(quiet=self.quiet) as report:
            found = analyse_checkpoints(
                todo, shares=shares, alignment=self.alignment, progress=report
            )
        command = ["centermerge", *sys.argv[1:]]
        path = write_analysis(self.output, found, command=command)
        if not self.quiet:
            Console(highlight=False).print(_table(found))
            seconds = time.perf_counter() - began
            print(
                f"wrote {path} in {seconds:.1f} s: {len(found['tasks'])} tasks, "
                f"{len(found['matrices'])} matrices, {len(found['leaves'])} leaves"
            )


def _table(found: Mapping[str, Any]) -> Any:
    """Means over all matrices at each rank, around each origin."""
    from rich.table import Table

    changed = max(x["matrices"] for x in found["mean_over_matrices"].values())
    table = Table(title=f"means over the {changed} matrices that tasks have changed")
    table.add_column("rank", justify="right")
    columns = {
        "interference_top": "I(k), top",
        "interference_whole": "I(k), whole",
        "reconstruction_relative": "R(k), share",
    }
    curves = []
    for name, title in columns.items():
        for origin in found["origins"]:
            table.add_column(f"{title}\n{origin}", justify="right")
            curves.append(found["mean_over_matrices"][origin][name])
    for i, share in enumerate(found["shares"]):
        cells = ["-" if curve is None else f"{curve[i]:.3f}" for curve in curves]
        table.add_row(f"{100 * share:g} %", *cells)
    return table
