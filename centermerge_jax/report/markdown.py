"""A page as Markdown, with its figures in files of their own."""

import re
from collections.abc import Callable

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


def markdown(page: Page, link: Callable[[str], str]) -> str:
    r"""The page.

    Args:
      page: What it says.
      link: The address of a picture's file, from its name.

    Example:
      >>> print(markdown(Page("a < b", [("c", ["Enough said."])], []), str))
      # a \< b
      <BLANKLINE>
      **c**
      <BLANKLINE>
      - Enough said.
      <BLANKLINE>
    """
    parts = [f"# {_plain(page.title)}"]
    for title, sentences in page.summary:
        parts.append(f"**{_plain(title)}**")
        parts.append("\n".join(f"- {_plain(sentence)}" for sentence in sentences))
    for section in page.sections:
        parts += _section(section, link)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, link: Callable[[str], str]) -> list[str]:
    return [
        f"## {_plain(section.title)}",
        *(_block(block, link) for block in section.blocks),
    ]


def _block(block: Block, link: Callable[[str], str]) -> str:
    match block:
        case Text(text):
            return "`".join(
                part if i % 2 else _escaped(part)
                for i, part in enumerate(text.split("`"))
            )
        case Heading(text):
            return f"### {_plain(text)}"
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Listing(items):
            return "\n".join(f"- **{_plain(x)}**: {_plain(text)}" for x, text in items)
        case Picture(name, _, caption, alternative):
            return f"![{_plain(alternative)}]({link(name)})\n\n*{_plain(caption)}*"
        case Table():
            return f"{_plain(block.caption)}\n\n{_table(block)}"
        case Claims(claims):
            rows = [
                (
                    Cell(claim.text),
                    Cell(claim.numbers),
                    Cell(claim.verdict),
                    Cell(claim.figure or ""),
                )
                for claim in claims
            ]
            head = ("claim", "numbers", "verdict", "figure")
            return _table(Table("", head, rows, left=(1, 2, 3)))


def _table(table: Table) -> str:
    marks = ["---" if i in (0, *table.left) else "---:" for i in range(len(table.head))]
    lines = [[_plain(name) for name in table.head], marks]
    for number, row in enumerate(table.rows):
        first, *rest = map(_cell, row)
        lines.append([f"**▸ {first}**" if number in table.marked else first, *rest])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    if cell.best:
        text = f"**{text}**"
    return f"{text} {_plain(cell.note)}" if cell.note else text


def _plain(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    return _escaped(text.strip())


def _escaped(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", text)
