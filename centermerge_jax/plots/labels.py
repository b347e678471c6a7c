"""Names beside points, none over another."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from centermerge_jax.plots.style import MUTED

_GAP = 2.5  # pixels around a name
_RADII = (
    7,
    10,
    13,
    17,
    22,
    28,
    35,
    43,
    52,
    62,
    74,
    88,
    104,
    122,
    142,
    165,
    190,
    220,
)  # points
# To the sides first, then ever steeper: a name beside its point is read most easily.
_ANGLES = np.deg2rad([a for d in range(0, 91, 15) for a in (d, 180 - d, -d, 180 + d)])
_NEAR = 9  # points; a name farther away gets a line to its point

Box = Float[np.ndarray, "4"]
"""Left, bottom, right and top."""


def place_labels(
    axes: Axes,
    points: Sequence[Sequence[int | float]],
    names: Sequence[str],
    *,
    bold: Sequence[str] = (),
    obstacles: Sequence[Box] = (),
    size: float = 7.5,
) -> list[str]:
    """Writes a name beside each point, in a place where there is nothing else.

    Names are tried ever farther from their points, the most crowded points first; far
    ones get a line. The figure's layout is final afterwards.

    Args:
      axes: Which have all their other contents, and their limits.
      points: In the coordinates of the data.
      names: Of the points.
      bold: Which of the names are bold.
      obstacles: What else is not to be written over, in the coordinates of the data.
      size: Of the letters, in points.

    Returns:
      Names that found no place, and are not there.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    figure.set_layout_engine("none")
    pixel = figure.dpi / 72
    centres = axes.transData.transform(points)
    taken = [_box(centre, 7 * pixel, 7 * pixel) for centre in centres]
    lines: list[tuple[np.ndarray, np.ndarray]] = []
    frame = axes.get_window_extent()
    bars = [
        axes.transData.transform(np.reshape(one, (2, 2))).ravel() for one in obstacles
    ]
    left_out = []
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    crowded = np.argsort(-(distances < 60 * pixel).sum(1), kind="stable")
    for i in map(int, crowded):
        weight = "bold" if names[i] in bold else "normal"
        text = axes.annotate(
            names[i],
            (points[i][0], points[i][1]),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            fontweight=weight,
        )
        extent = text.get_window_extent()
        # Lines go around markers and names; if there is no such place, across them.
        uncrossed = (taken[:i] + taken[i + 1 :], taken[len(points) :], [])
        for others, radius, angle in itertools.product(uncrossed, _RADII, _ANGLES):
            direction = np.array([np.cos(angle), np.sin(angle)])
            # The near edge of the name, not its middle, is `radius` away.
            reach = radius * pixel + abs(direction[0]) * extent.width / 2
            middle = centres[i] + direction * (reach, radius * pixel)
            box = _box(middle, extent.width + 2 * _GAP, extent.height + 2 * _GAP)
            inside = (box[:2] > frame.min).all() and (box[2:] < frame.max).all()
            nearest = np.clip(centres[i], box[:2], box[2:])
            line = (centres[i], nearest)
            far = np.linalg.norm(nearest - centres[i]) > _NEAR * pixel
            if (
                inside
                and not _overlaps(box, taken + bars).any()
                and not any(_crosses(old, box) for old in lines)
                and not (far and any(_crosses(line, one) for one in others))
            ):
                break
        else:
            text.remove()
            left_out.append(names[i])
            continue
        text.set_position(tuple((middle - centres[i]) / pixel))
        taken.append(box)
        if far:
            lines.append(line)
            ends = axes.transData.inverted().transform(line)
            axes.plot(*ends.T, color=MUTED, lw=0.6, zorder=1, scalex=False)
    return left_out


def _box(middle: Float[np.ndarray, "2"], width: float, height: float) -> Box:
    half = np.array([width / 2, height / 2])
    return np.concatenate([middle - half, middle + half])


def _overlaps(box: Box, others: Sequence[Box]) -> Bool[np.ndarray, " n"]:
    many = np.array(others).reshape(-1, 4)
    return np.all((many[:, :2] < box[2:]) & (many[:, 2:] > box[:2]), axis=1)


def _crosses(line: tuple[np.ndarray, np.ndarray], box: Box) -> bool:
    """Whether a straight line goes through a box: tried at points along it."""
    along = np.linspace(0, 1, 40)[:, None]
    steps = line[0] + along * (line[1] - line[0])
    return bool(((steps > box[:2]) & (steps < box[2:])).all(1).any())
