"""The command that makes pages from results, as a dataclass: see `commands`."""

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from centermerge_jax.progress import progress


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make a page with figures, tables and a summary from results.

    Example: centermerge report study/ -o report.html
    """

    results: Positional[tuple[str, ...]]
    """JSON files that `analyse`, `sweep` and studies write, or folders with such files
    at any depth."""

    output: Annotated[str, arg(aliases=("-o",))]
    """The page: one self-contained file if it ends in .html; if it ends in .md,
    Markdown with its figures in a folder beside it."""

    figures: str | None = None
    """A new folder for all figures as PNG and SVG."""

    quiet: bool = False
    """Show no progress and no summary."""

    def run(self) -> None:
        """Reads, draws and writes."""
        from centermerge_jax.errors import ParameterError

        try:
            from centermerge_jax.report import check_output, read_results, write_report
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise ParameterError(
                "figures take matplotlib: pip install 'centermerge_jax[plots]'"
            ) from error
        check_output(self.output, self.figures)
        results, notes = read_results(self.results)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        with progress(quiet=self.quiet) as told:
            written = write_report(
                results, self.output, figures=self.figures, progress=told
            )
        if not self.quiet:
            shown = " and ".join(map(str, written))
            count = len(results)
            print(f"wrote {shown}: {count} result{'s' * (count != 1)}")
