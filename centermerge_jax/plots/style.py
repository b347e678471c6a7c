"""How figures look, and how they become files.

Figures are drawn on white with the colours of `PALETTE`. In a page that also has a dark
side, `svg` names these colours instead (`var(--ink)`), and the page says what they are.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from centermerge_jax.errors import ParameterError

PALETTE = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#656d76", "#9198a1"),
    "grid": ("#d8dee4", "#30363d"),
    "paper": ("#fffffe", "#0d1117"),
    "blue": ("#1a6fdb", "#8cc0fa"),
    "orange": ("#e8590c", "#dd5b43"),
    "green": ("#0ca06a", "#55e09c"),
    "purple": ("#7d1f7a", "#c95be3"),
    "amber": ("#5e4a12", "#e3bc33"),
}
"""By name: on a light ground and on a dark one. They differ in lightness as well as in
hue, so that no kind of colour blindness makes two of them alike; a test measures it."""

INK, MUTED, GRID, PAPER, BLUE, ORANGE, GREEN, PURPLE, AMBER = (
    light for light, _ in PALETTE.values()
)

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}
"""Settings of matplotlib under which figures are made: `@rc_context(STYLE)`."""

WIDTH = 5.3
"""Of a figure, in inches: fits a page of text, and a telephone without becoming
unreadable."""


def new_figure(height: int | float, *, width: int | float = WIDTH) -> Figure:
    """An empty figure, its size in inches, which lays its parts out by itself."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str, *, most: int = 28) -> str:
    r"""A name as it is written into a figure: one line, not too long, no formula.

    Example:
      >>> plain("cars"), plain("a$b$"), plain("a long name", most=6)
      ('cars', 'a\\$b\\$', 'a lon…')
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure; made and written anew, it has the same bytes.

    Args:
      figure: From any function here.
      path: Its ending decides: .png, .svg or .pdf.

    Raises:
      ParameterError: The ending is another.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ParameterError(f"{path}: figures end in .png, .svg or .pdf")
    # What would differ from run to run is left out.
    dates = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=160, format=kind, metadata=dates[kind])


def svg(figure: Figure, name: str) -> str:
    """A figure as an `<svg>` element for a page of HTML.

    Text stays text. The ground is transparent and colours are CSS variables, by the
    names in `PALETTE`. Identifiers begin with `name`, so that several figures can be
    in one page.

    Example:
      >>> from centermerge_jax import plots
      >>> figure = plots.rank_curve([0, 1], {"CART": [0.5, 0.6]}, lines={})
      >>> text = plots.svg(figure, "ranks")
      >>> text.startswith("<svg"), 'id="ranks-' in text, "var(--ink)" in text
      (True, True, True)
    """
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{colour})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
