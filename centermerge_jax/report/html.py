"""A page as one file of HTML that needs nothing else, not even scripts."""

from collections.abc import Sequence
from html import escape
from importlib import resources

from centermerge_jax.plots.style import PALETTE, svg
from centermerge_jax.report.document import (
    Block,
    Cell,
    Claims,
    Code,
    Heading,
    Listing,
    Page,
    Picture,
    Section,
    Table,
    Text,
)

SIGNS = {"shown": "✓", "contradicted": "✗", "open": "?", "mixed": "≈"}
"""Signs of verdicts, so that colour is not all that tells them apart."""


def html(page: Page) -> str:
    """The page. It reads well in the light and in the dark, on paper, and at any width.

    Example:
      >>> text = html(Page("a < b", [("c", ["Enough said."])], []))
      >>> "<title>a &lt; b</title>" in text
      True
    """
    folder = resources.files("centermerge_jax.report")
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#{escape(one.name)}">{escape(one.title)}</a></li>\n'
        for one in page.sections
    )
    summary = "".join(_summary(*part) for part in page.summary)
    sections = "".join(map(_section, page.sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>
{_colours()}{style}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
</header>
<main>
<section id="summary" aria-labelledby="summary-title">
<h2 id="summary-title">Summary</h2>
{summary}</section>
<nav aria-label="Contents">
<ul>
{links}</ul>
</nav>
{sections}</main>
<script>
{script}</script>
</body>
</html>
"""


_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:"
)


def _colours() -> str:
    """The palette as CSS variables, for either ground."""
    light = "".join(f"--{name}: {one};" for name, (one, _) in PALETTE.items())
    dark = "".join(f"--{name}: {one};" for name, (_, one) in PALETTE.items())
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def _summary(title: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
    return f"<h3>{escape(title)}</h3>\n<ul>\n{items}</ul>\n"


def _section(section: Section) -> str:
    name = escape(section.name)
    body = "".join(map(_block, section.blocks))
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{escape(section.title)}</h2>\n{body}</section>\n'
    )


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_code(text)}</p>\n"
        case Heading(text):
            return f"<h3>{escape(text)}</h3>\n"
        case Code(text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>\n'
        case Listing(items):
            said = "".join(
                f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>\n"
                for term, text in items
            )
            return f"<dl>\n{said}</dl>\n"
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)
        case Claims(claims):
            return _claims(Claims(claims))


def _picture(picture: Picture) -> str:
    name = escape(picture.name)
    drawing = svg(picture.figure, picture.name)
    label = f'<svg role="img" aria-label="{escape(picture.alternative)}"'
    drawing = drawing.replace("<svg", label, 1)
    width = picture.figure.get_figwidth()
    return (
        f'<figure id="{name}">\n'
        f'<div class="plot" style="--width: {width:.2f}in">\n{drawing}\n</div>\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>\n"
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_kind(i, table)}>{escape(name)}</th>'
        for i, name in enumerate(table.head)
    )
    rows = []
    for number, (first, *rest) in enumerate(table.rows):
        marked = number in table.marked
        mark = '<span aria-hidden="true">▸ </span>' if marked else ""
        cells = "".join(_cell(cell, _kind(i, table)) for i, cell in enumerate(rest, 1))
        row = ' class="marked"' if marked else ""
        name = f'<th scope="row"{_order(first)}>{mark}{escape(first.text)}</th>'
        rows.append(f"<tr{row}>{name}{cells}</tr>")
    body = "\n".join(rows)
    return (
        '<div class="table" tabindex="0" role="region" '
        f'aria-label="{escape(table.caption.split(".")[0])}">\n'
        f"<table>\n<caption>{escape(table.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _cell(cell: Cell, kind: str) -> str:
    text = escape(cell.text)
    if cell.best:
        text = f"<strong>{text}</strong>"
    if cell.note:
        text += f" <small>{escape(cell.note)}</small>"
    return f"<td{kind}{_order(cell)}>{text}</td>"


def _kind(column: int, table: Table) -> str:
    return ' class="text"' if column == 0 or column in table.left else ""


def _order(cell: Cell) -> str:
    return "" if cell.order is None else f' data-order="{cell.order:.10g}"'


def _claims(block: Claims) -> str:
    items = []
    for claim in block.claims:
        kind = claim.verdict.replace(" ", "-")
        sign = f'<span aria-hidden="true">{SIGNS[claim.verdict]}</span>'
        link = ""
        if claim.figure:
            link = f' <a href="#{escape(claim.figure)}">See the figure.</a>'
        numbers = escape(claim.numbers)
        items.append(
            f'<li class="{kind}"><strong class="verdict">{sign} '
            f"{escape(claim.verdict)}</strong> <span>{escape(claim.text)}</span>"
            f'<span class="numbers">{numbers}{link}</span></li>'
        )
    return '<ul class="claims">\n' + "\n".join(items) + "\n</ul>\n"


def _code(text: str) -> str:
    """Escaped text, with what is between backticks as code."""
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)
    )
