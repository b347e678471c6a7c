"""Writing a report: its page, and its figures as files."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.checkpoints import refuse_existing
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.plots.style import save
from centermerge_jax.progress import Report, silent
from centermerge_jax.report.document import Picture
from centermerge_jax.report.html import html
from centermerge_jax.report.markdown import markdown
from centermerge_jax.report.pages import page
from centermerge_jax.report.results import Result

HTML = (".html", ".htm")
MARKDOWN = (".md",)


def write_report(
    results: Sequence[Result],
    output: str | Path,
    *,
    figures: str | Path | None = None,
    progress: Report = silent,
) -> list[Path]:
    """Writes a page, and a folder of figures where one is wanted.

    Args:
      results: As from `read_results`.
      output: A file that ends in .html, which has its figures in itself, or in .md,
        which has them in a folder.
      figures: Folder for the figures as PNG and SVG, which is made. By default there is
        none for HTML, and for `study.md` it is `study-figures`, with PNG alone.
      progress: Told of every figure.

    Returns:
      What was written.

    Raises:
      ParameterError: The output has another ending.
      CheckpointError: It or the folder exists, or cannot be written; then neither is
        there.
    """
    output = Path(output)
    folder = check_output(output, figures)
    with warnings.catch_warnings():
        # Letters that matplotlib's font lacks; pages have them as text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        return _write(
            results, output, folder, drawings=figures is not None, progress=progress
        )


def check_output(output: str | Path, figures: str | Path | None) -> Path | None:
    """Refuses outputs that exist or cannot be made. Call it before any work.

    Returns:
      The folder of figures, if there is to be one.

    Raises:
      ParameterError: The output ends in something that no page is written in.
      CheckpointError: As `refuse_existing`.
    """
    output = Path(output)
    ending = output.suffix.lower()
    if ending not in HTML + MARKDOWN:
        raise ParameterError(f"a report ends in .html or .md; got {output}")
    refuse_existing(output)
    if figures is None and ending in HTML:
        return None
    folder = Path(figures or output.with_name(f"{output.stem}-figures"))
    refuse_existing(folder)
    return folder


def _write(
    results: Sequence[Result],
    output: Path,
    folder: Path | None,
    *,
    drawings: bool,
    progress: Report,
) -> list[Path]:
    made = page(results)
    pictures = made.pictures()
    if output.suffix.lower() in HTML:
        text = html(made)
    else:
        assert folder is not None  # Markdown always has one
        place = os.path.relpath(folder, output.parent).replace(os.sep, "/")
        text = markdown(made, lambda name: quote(f"{place}/{name}.png"))
    if folder is None:
        write_whole(output, text.encode())
        return [output]
    endings = ("png", "svg") if drawings else ("png",)
    _write_figures(pictures, folder, endings, progress)
    try:
        write_whole(output, text.encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return [output, folder]


def _write_figures(
    pictures: Sequence[Picture],
    folder: Path,
    endings: Sequence[str],
    progress: Report,
) -> None:
    """A folder with all figures, or none."""
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for i, picture in enumerate(pictures):
                progress(f"drawing {picture.name}", i / len(pictures))
                for ending in endings:
                    save(picture.figure, stage / f"{picture.name}.{ending}")
            stage.chmod(0o755)  # a temporary folder is its owner's alone
            stage.rename(folder)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
