"""The section of a report about a comparison of methods."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from centermerge_jax import plots
from centermerge_jax.plots.comparison import bars_shown, gaps, label, merges
from centermerge_jax.plots.cost import merge_seconds
from centermerge_jax.plots.ranks import CENTRED
from centermerge_jax.report.comparison_tables import (
    accuracy_table,
    cost_table,
    settings_table,
)
from centermerge_jax.report.document import (
    Block,
    Cell,
    Claim,
    Claims,
    Heading,
    Picture,
    Section,
    Table,
    Text,
)
from centermerge_jax.report.results import VERDICTS
from centermerge_jax.report.wording import (
    counted,
    distance,
    listed,
    ordinal,
    percent,
    with_interval,
)

_REFERENCES = {
    "joint": "joint training on all tasks",
    "experts": "the individual experts",
}
_OF_VERDICTS = (
    "A claim about accuracies is shown, or contradicted, where the 95 % interval "
    "leaves no doubt, open where it leaves one, and mixed where its parts differ. "
    "Intervals are not corrected for the number of claims, and hold for these tasks."
)


def title(comparison: Mapping[str, Any]) -> str:
    """What a comparison is called."""
    return comparison.get("title") or "Comparison of methods"


def summary(comparison: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    rows, ranked = comparison["methods"], merges(comparison)
    seeds = comparison.get("seeds") or []
    of_seeds = f", with {counted(len(seeds), 'seed')} of fine-tuning" if seeds else ""
    tasks = counted(len(comparison["tasks"]), "task")
    said = [f"{counted(len(ranked), 'merging method')} on {tasks}{of_seeds}."]
    if ranked:
        said.append(_leader(ranked))
    if "cart" in ranked:
        said += _cart(comparison)
    if average := rows.get("weight_average"):
        gain = ""
        if "cart" in ranked:
            apart = 100 * (rows["cart"]["mean"] - average["mean"])
            gain = f"; CART is {distance(apart, None)} it"
        mean = with_interval(average["mean"], average.get("mean_half_width"))
        base = rows.get("pretrained")
        untouched = f", the pretrained model {percent(base['mean'])} %" if base else ""
        said.append(f"The plain average of the weights has {mean}{untouched}{gain}.")
    if claims := comparison.get("claims"):
        found = Counter(claim["verdict"] for claim in claims)
        shares = [f"{found[x]} {x}" for x in VERDICTS if found[x]]
        said.append(f"Of {counted(len(claims), 'claim')}: {listed(shares)}.")
    return said


def verdicts(comparisons: Sequence[Mapping[str, Any]]) -> Table | None:
    """What several comparisons say of the same claims; None if they have none."""
    found = [
        {claim["claim"]: claim["verdict"] for claim in one.get("claims") or ()}
        for one in comparisons
    ]
    claims = list(dict.fromkeys(claim for own in found for claim in own))
    if sum(map(bool, found)) < 2:
        return None
    rows = [
        [Cell(claim), *[Cell(own.get(claim, "")) for own in found]] for claim in claims
    ]
    return Table(
        f"All claims; the numbers are in the sections. {_OF_VERDICTS}",
        ("claim", *map(title, comparisons)),
        rows,
        left=range(1, len(found) + 1),
    )


def section(comparison: Mapping[str, Any], slug: str) -> Section:
    """Claims, tables and figures.

    Args:
      comparison: The JSON object.
      slug: Begins the names of figures, and is the address of the section.
    """
    blocks: list[Block] = []
    if setup := comparison.get("setup"):
        blocks += [Heading("What was done"), *map(Text, setup)]
    if claims := comparison.get("claims"):
        shown = [
            Claim(
                claim["claim"],
                claim.get("numbers") or "",
                claim["verdict"],
                (claim.get("figure") or "").replace("_", "-") or None,
            )
            for claim in claims
        ]
        blocks += [Heading("Claims"), Text(_OF_VERDICTS), Claims(shown)]
    blocks += [Heading("Accuracy on every task"), accuracy_table(comparison)]
    blocks.append(_bars(comparison, slug))
    blocks += _gaps(comparison, slug)
    blocks += _ranks(comparison, slug)
    blocks += [Heading("Cost and settings"), *_cost(comparison, slug)]
    blocks.append(cost_table(comparison))
    if (settings := settings_table(comparison)) is not None:
        blocks.append(settings)
    return Section(title(comparison), slug, blocks)


def _leader(ranked: Mapping[str, Any]) -> str:
    best, *others = ranked
    row = ranked[best]
    mean = with_interval(row["mean"], row.get("mean_half_width"))
    said = f"The most accurate merge is {label(best, row)} with {mean} on average"
    if best == "cart" and others:
        row = ranked[others[0]]
        mean = with_interval(row["mean"], row.get("mean_half_width"))
        said += f", before {label(others[0], row)} with {mean}"
    elif "cart" in ranked:
        row = ranked["cart"]
        mean = with_interval(row["mean"], row.get("mean_half_width"))
        place = ordinal(list(ranked).index("cart") + 1)
        said += f"; CART has {mean} and is {place} of {len(ranked)}"
    return said + "."


def _cart(comparison: Mapping[str, Any]) -> list[str]:
    parts = []
    for reference, words in _REFERENCES.items():
        if (found := gaps(comparison, "cart", reference)) is not None:
            mean = percent(comparison["methods"][reference]["mean"])
            parts.append(f"{distance(*found)} {words} ({mean} %)")
    return [f"CART is {listed(parts)}."] if parts else []


def _bars(comparison: Mapping[str, Any], slug: str) -> Picture:
    rows = comparison["methods"]
    names = [label(name, rows[name]) for name in bars_shown(comparison)]
    return Picture(
        f"{slug}-accuracy",
        plots.accuracy_bars(comparison),
        "Accuracy on the test examples of each task. One group of bars is one task, "
        "one colour is one method, in the order of the legend; longer is better. The "
        "thin line at the end of a bar is its 95 % interval. "
        f"Shown: {listed(names)}; the table has all methods.",
        f"Bars of the accuracy on {listed(comparison['tasks'])} by {listed(names)}.",
    )


def _gaps(comparison: Mapping[str, Any], slug: str) -> list[Block]:
    references = [x for x in _REFERENCES if x in comparison["methods"]]
    ranked = merges(comparison)
    if not references or not ranked:
        return []
    words = listed([_REFERENCES[x] for x in references])
    band = (
        " The green band is where the paper places CART, 1 to 3 % below joint training."
        if "joint" in references
        else ""
    )
    caption = (
        f"How far each merge is from {words}: the difference of the mean accuracies in "
        "points (hundredths), the best merge on top and CART in blue. A bar to the "
        "left of 0 is below the reference; the shorter, the better. Thin lines are 95 "
        f"% intervals.{band}"
    )
    best = next(iter(ranked))
    alternative = (
        f"Bars of the distance of {counted(len(ranked), 'merge')} to {words}; "
        f"{label(best, ranked[best])} is nearest."
    )
    picture = Picture(f"{slug}-gaps", plots.gap_bars(comparison), caption, alternative)
    return [Heading("Distance to joint training and to the experts"), picture]


def _ranks(comparison: Mapping[str, Any], slug: str) -> list[Block]:
    curves = comparison.get("curves") or {}
    blocks: list[Block] = []
    if any(name in CENTRED for name in curves):
        blocks.append(
            Picture(
                f"{slug}-rank-curve",
                plots.accuracy_over_rank(comparison),
                "Mean accuracy on validation examples (up), and if it says so on test "
                "examples with the scales chosen there, against how many singular "
                "directions are kept of each task vector's matrices (across, in "
                "percent of all), at the best scale for each. Without a direction and "
                "with all of them, CART is the average of the experts; between, the "
                "higher the curve over the grey line, the more is gained over that "
                "average.",
                "Curves of accuracy over rank for "
                f"{listed([CENTRED[name] for name in CENTRED if name in curves])}.",
            )
        )
    for name, curve in curves.items():
        known = label(name, comparison["methods"].get(name, {}))
        blocks.append(
            Picture(
                f"{slug}-scale-rank-{_slug(name)}",
                plots.scale_rank_map(curve),
                f"{known}: mean accuracy on validation examples in percent, for every "
                "rank (a column) and scale (a row) that was tried. Yellow is best, "
                "dark is ten points below it or more, and the best one has a frame.",
                f"Map of the accuracy of {known} over rank and scale.",
            )
        )
    return [Heading("Rank and scale"), *blocks] if blocks else []


def _cost(comparison: Mapping[str, Any], slug: str) -> list[Block]:
    ranked = merges(comparison)
    if not any(merge_seconds(row) is not None for row in ranked.values()):
        return []
    return [
        Picture(
            f"{slug}-cost",
            plots.cost_against_accuracy(comparison),
            "What a merge costs and what it gives: mean accuracy on test examples (up) "
            "against the seconds that one merge takes (across, each step ten times the "
            "one before). A point is a method, its colour and shape the group that it "
            "belongs to; up and to the left is better. Vertical lines are 95 % "
            "intervals, those across are what merges are held against.",
            f"Points of accuracy against time for {counted(len(ranked), 'method')}.",
        )
    ]


def _slug(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)
