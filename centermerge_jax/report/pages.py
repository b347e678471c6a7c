"""A page from results: the summary, a section for each, and how to repeat it all."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from centermerge_jax.report import analyses, comparisons, sweeps
from centermerge_jax.report.document import (
    Block,
    Claims,
    Code,
    Heading,
    Listing,
    Page,
    Section,
    Text,
)
from centermerge_jax.report.results import Result
from centermerge_jax.report.wording import command_text

_WRITERS = {"comparison": comparisons, "analysis": analyses, "sweep": sweeps}

WORDS = (
    (
        "Expert",
        (
            "a model that was fine-tuned on one task. All experts began from the same "
            "pretrained model."
        ),
    ),
    (
        "Merging",
        (
            "making one model for all tasks out of the experts' weights, without "
            "training. A merge has the size of a single expert."
        ),
    ),
    (
        "Task vector",
        (
            "what fine-tuning changed: the expert's weights minus an origin. Centred "
            "task vectors have the mean of all experts as origin, others the "
            "pretrained model."
        ),
    ),
    (
        "CART",
        (
            "the method of Choi et al., “Revisiting Weight Averaging for Model "
            "Merging” (arXiv:2412.12153): of each matrix of the centred task vectors "
            "it keeps the top singular directions, as many as the rank says, and adds "
            "their sum, times the scale, to the mean of the experts. Marked with ▸ in "
            "tables."
        ),
    ),
    (
        "Rank and scale",
        (
            "the two settings of CART. The rank is given in percent of the most that a "
            "matrix can have."
        ),
    ),
    (
        "Singular directions",
        (
            "what a matrix is a sum of: its singular value decomposition. The top ones "
            "have the largest singular values; their energy is the share of the sum of "
            "all squared singular values."
        ),
    ),
    (
        "I(k) and R(k)",
        (
            "two measures of that paper, at rank k. I(k), the row-space interference, "
            "is how much the inputs that tasks read overlap; R(k), the reconstruction "
            "error, how much of the task vectors is left out. Both are to be low."
        ),
    ),
    (
        "Joint training",
        (
            "one model trained on the data of all tasks at once, which merging tries "
            "to equal without having the data."
        ),
    ),
    (
        "Seed",
        (
            "one repetition of everything that depends on chance: fine-tuning, task "
            "heads, and which examples are for validation."
        ),
    ),
    (
        "Validation and test",
        (
            "examples that nothing was trained on. Settings were chosen on validation "
            "examples; test examples were used for nothing but the reported numbers."
        ),
    ),
    (
        "± and thin lines",
        (
            "95 % intervals: made so that about 19 of 20 of them hold what the number "
            "would be on average over test examples like these and, where there are "
            "several seeds, over seeds."
        ),
    ),
    (
        "Point",
        "one hundredth of accuracy: 88 % is 3 points below 91 %.",
    ),
)
"""What a reader has to know."""


def page(results: Sequence[Result]) -> Page:
    """Everything that is to be said of results.

    Args:
      results: At least one, as from `read_results`.
    """
    slugs = _slugs(results)
    sections = [
        _WRITERS[result.kind].section(result.content, slug)
        for result, slug in zip(results, slugs, strict=True)
    ]
    sections = _linked(results, sections)
    titles = [_WRITERS[one.kind].title(one.content) for one in results]
    summary = [
        (heading, _WRITERS[result.kind].summary(result.content))
        for result, heading in zip(results, titles, strict=True)
    ]
    comparisons_only = [
        x for x, one in zip(titles, results, strict=True) if one.kind == "comparison"
    ]
    if len(results) == 1:
        heading = titles[0]
    elif len(comparisons_only) == 1:
        heading = comparisons_only[0]
    else:
        heading = "Merging fine-tuned models: results"
    parts = [Section("Words", "words", [Listing(WORDS)])]
    if verdicts := comparisons.verdicts(
        [one.content for one in results if one.kind == "comparison"]
    ):
        parts.append(Section("Claims", "claims", [verdicts]))
    return Page(heading, summary, [*parts, *sections, _repeating(results)])


def _slugs(results: Sequence[Result]) -> list[str]:
    """A short name for each result: its kind, and its number if there are more."""
    kinds = [result.kind for result in results]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}-{kinds[: i + 1].count(kind)}"
        for i, kind in enumerate(kinds)
    ]


def _linked(results: Sequence[Result], sections: Sequence[Section]) -> list[Section]:
    """The sections, with claims pointing at pictures that are there.

    A claim names a figure without saying of which result: it is that of its own
    section, else of the result whose file is nearest.
    """
    pictures = [
        {picture.name for picture in Page("", (), [section]).pictures()}
        for section in sections
    ]
    slugs = [section.name for section in sections]

    def address(i: int, figure: str | None) -> str | None:
        found = [
            (j == i, _closeness(results[i], results[j]), -j)
            for j, names in enumerate(pictures)
            if f"{slugs[j]}-{figure}" in names
        ]
        return f"{slugs[-max(found)[2]]}-{figure}" if found else None

    linked = []
    for i, section in enumerate(sections):
        blocks: list[Block] = []
        for block in section.blocks:
            if isinstance(block, Claims):
                claims = [
                    dataclasses.replace(claim, figure=address(i, claim.figure))
                    for claim in block.claims
                ]
                block = Claims(claims)  # noqa: PLW2901
            blocks.append(block)
        linked.append(dataclasses.replace(section, blocks=blocks))
    return linked


def _closeness(one: Result, other: Result) -> int:
    paths = [one.path.resolve().parent, other.path.resolve().parent]
    return len(os.path.commonpath(paths))


def _repeating(results: Sequence[Result]) -> Section:
    blocks: list[Block] = [
        Text(
            "Every number and figure on this page is made from the files below, by "
            "`centermerge report`. The commands make these files anew."
        )
    ]
    for result in results:
        content = result.content
        facts: list[tuple[str, str]] = [("File", str(result.path))]
        if content.get("date"):
            facts.append(("Date", content["date"]))
        if seeds := content.get("seeds"):
            facts.append(("Seeds", ", ".join(map(str, seeds))))
        if versions := content.get("versions"):
            told = ", ".join(f"{name} {version}" for name, version in versions.items())
            facts.append(("Versions", told))
        for name, value in (content.get("settings") or {}).items():
            facts.append((name.replace("_", " "), _plain(value)))
        facts.append(("SHA-256", result.digest))
        blocks.append(Heading(_WRITERS[result.kind].title(content)))
        if command := command_text(content.get("command")):
            blocks.append(Code(command))
        blocks.append(Listing(facts))
    return Section("How to repeat this", "repeat", blocks)


def _plain(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(x, list | dict) for x in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
