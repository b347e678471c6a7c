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
    "blue": ("#0072b2", "#5cb0ee"),
    "orange": ("#d55e00", "#f5934a"),
    "green": ("#00855f", "#3fc197"),
    "purple": ("#a8508a", "#dc93c5"),
    "amber": ("#9a6b00", "#e0b341"),
}
"""By name: on a light ground and on a dark one. After Okabe and Ito, "Color universal
design", 2008, shifted until each has a contrast of at least 3.5 on its ground."""

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


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """An empty figure, its size in inches, which lays its parts out by itself."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure; the same figure gives the same bytes.

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
