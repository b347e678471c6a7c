"""The section of a report about an analysis of task vectors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from centermerge_jax import plots
from centermerge_jax.plots.analysis import ORIGINS, PANELS, mean_curve
from centermerge_jax.report.document import (
    Block,
    Cell,
    Heading,
    Picture,
    Section,
    Table,
    Text,
)
from centermerge_jax.report.wording import counted, listed, percent

_NAMED = {
    "interference_top": "normalised over the top k",
    "interference_whole": "normalised over the whole spectrum",
    "interference_none": "not normalised",
}


def title(analysis: Mapping[str, Any]) -> str:
    """What an analysis is called."""
    return analysis.get("title") or f"Task vectors of {listed(analysis['tasks'])}"


def summary(analysis: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    tasks = counted(len(analysis["tasks"]), "task")
    said = [f"{tasks}; matrices of each: {len(analysis['matrices'])}."]
    if (kept := _at(analysis, "reconstruction")) is not None:
        share, values = kept
        told = [
            f"{percent(1 - value)} % of the energy of {ORIGINS[origin]} task vectors"
            for origin, value in values.items()
        ]
        said.append(
            f"The top {100 * share:g} % of singular directions hold {listed(told)}."
        )
    for name, words in _NAMED.items():
        if (sentence := _less_or_more(analysis, name, words)) is not None:
            said.append(sentence)
    means = {
        origin: _off_diagonal(analysis, origin, "cosine")
        for origin in analysis["origins"]
    }
    told = [
        f"{value:.2f} {ORIGINS[origin]}"
        for origin, value in means.items()
        if value is not None
    ]
    if told:
        text = listed(told).replace("-", "−")  # noqa: RUF001
        said.append(f"The mean cosine between two tasks is {text}.")
    return said


def section(analysis: Mapping[str, Any], slug: str) -> Section:
    """Tables and figures.

    Args:
      analysis: The JSON object.
      slug: Begins the names of figures, and is the address of the section.
    """
    both = "base" in analysis["origins"]
    blocks: list[Block] = [
        Text(
            "A task vector is what fine-tuning on one task has changed: the expert "
            "minus the mean of all experts (centred)"
            + (", or minus the pretrained model (not centred)" if both else "")
            + ". Each of its matrices is a sum of singular directions, ordered by how "
            "much they change; keeping the first k of them is what rank k means. "
            "All of this section is computed from weights; it takes no data."
        )
    ]
    if plots.panels_shown(analysis):
        blocks += [
            Heading("Interference and what is lost"),
            Picture(
                f"{slug}-interference",
                plots.interference(analysis),
                "Across: rank k, in percent of full rank, each step twice the one "
                "before. Up: the interference I(k) between the top k directions of all "
                "pairs of tasks, higher where tasks use the same inputs, under "
                "different normalisations of the singular values (the paper does not "
                "say which); and R(k), the share of the task vectors' squared norm "
                "that is lost when only k directions are kept. Lower is better in all "
                "of them. Means over matrices.",
                "Curves of interference and reconstruction error over rank"
                + (", centred and not centred." if both else "."),
            ),
        ]
    if {"interference_whole", "reconstruction"} <= set(plots.panels_shown(analysis)):
        blocks.append(
            Picture(
                f"{slug}-trade-off",
                plots.trade_off(analysis),
                "What is lost (up) against what interferes (across), a point for each "
                "rank, some of which are named. Lower left is better: there little is "
                "lost and little interferes.",
                "Curve of reconstruction error against interference.",
            )
        )
    blocks.append(_numbers(analysis))
    blocks += _spectra(analysis, slug)
    blocks += _maps(analysis, slug)
    return Section(title(analysis), slug, blocks)


def _numbers(analysis: Mapping[str, Any]) -> Table:
    head, columns = ["rank k (%)"], []
    for name, called in PANELS.items():
        for origin in analysis["origins"]:
            values = mean_curve(analysis, origin, name)
            if values is not None:
                head.append(f"{called}, {ORIGINS[origin]}")
                columns.append(values)
    rows = [
        [
            Cell(f"{100 * share:g}", order=share),
            *(Cell("" if x is None else f"{x:.3g}", order=x) for x in numbers),
        ]
        for share, *numbers in zip(analysis["shares"], *columns, strict=True)
    ]
    return Table("The numbers of the figures above.", head, rows)


def _spectra(analysis: Mapping[str, Any], slug: str) -> list[Block]:
    origin = "mean" if "mean" in analysis["origins"] else "base"
    if not plots.spectrum_lines(analysis, origin):
        return []
    return [
        Heading("Spectra"),
        Picture(
            f"{slug}-spectra",
            plots.spectra(analysis, origin),
            f"Singular values of {ORIGINS[origin]} task vectors, the largest first, as "
            "means over tasks. A panel is a kind of matrix (* stands for the number of "
            "the layer), a line one layer, its colour how deep the layer is. Up: the "
            "singular value, each step ten times the one before. A steep fall at the "
            "left means that few directions hold most of what was learned. Layers that "
            "no task has changed are not there.",
            "Falling curves of singular values, by kind of matrix and layer.",
        ),
    ]


def _maps(analysis: Mapping[str, Any], slug: str) -> list[Block]:
    blocks: list[Block] = []
    share = analysis.get("alignment_share")
    at = f"{100 * share:g} % of the" if isinstance(share, int | float) else "the top"
    captions = {
        "alignment": "How much the inputs overlap that two tasks use: the mean squared "
        f"cosine of the angles between {at} right singular directions, from 0 (nothing "
        "in common) to 1 (the same). A row and a column are tasks; each is the same as "
        "itself. Means over matrices.",
        "cosine": "The cosine between whole task vectors, from −1 (opposite) over 0 "  # noqa: RUF001
        "(nothing in common) to 1 (the same). Centred vectors sum to zero, so that "
        "they have to point away from each other: by −1 / (T − 1) if T tasks have "  # noqa: RUF001
        "nothing to do with each other. Means over matrices.",
    }
    for quantity, caption in captions.items():
        means = analysis["mean_over_matrices"]
        if len(analysis["tasks"]) > 1 and any(quantity in x for x in means.values()):
            figure = plots.task_map(analysis, quantity)  # pyright: ignore[reportArgumentType]
            alternative = f"Map of the {quantity} between tasks, each with each."
            blocks.append(Picture(f"{slug}-{quantity}", figure, caption, alternative))
    return [Heading("How alike the tasks are"), *blocks] if blocks else []


def _at(
    analysis: Mapping[str, Any], name: str
) -> tuple[int | float, dict[str, int | float]] | None:
    """A measure at the share nearest to 8 %, by origin."""
    shares = analysis["shares"]
    i = min(range(len(shares)), key=lambda j: abs(shares[j] - 0.08))
    found = {}
    for origin in analysis["origins"]:
        values = mean_curve(analysis, origin, name)
        if values is not None and values[i] is not None:
            found[origin] = values[i]
    return (shares[i], found) if found else None


def _less_or_more(analysis: Mapping[str, Any], name: str, words: str) -> str | None:
    """Whether centred task vectors interfere less, and by how much."""
    curves = [mean_curve(analysis, origin, name) for origin in ("mean", "base")]
    if curves[0] is None or curves[1] is None:
        return None
    pairs = [
        (a, b)
        for a, b in zip(*curves, strict=True)  # pyright: ignore[reportArgumentType]
        if a is not None and b is not None
    ]
    found = _at(analysis, name)
    if not pairs or found is None or len(found[1]) < 2:
        return None
    less, more = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    many = f"less at {less} and more at {more} of {len(pairs)} ranks"
    if len(pairs) in (less, more):
        many = f"{'less' if less else 'more'} at all {len(pairs)} ranks"
    share, values = found
    return (
        f"Centred, tasks interfere {many} that were measured, with I(k) {words}: "
        f"{values['mean']:.3g} centred and {values['base']:.3g} not, at rank "
        f"{100 * share:g} %."
    )


def _off_diagonal(analysis: Mapping[str, Any], origin: str, name: str) -> float | None:
    found = analysis["mean_over_matrices"][origin].get(name)
    if found is None or len(found) < 2:
        return None
    values = np.array(found, float)
    return float(values[~np.eye(len(values), dtype=bool)].mean())
