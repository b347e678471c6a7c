"""What is on a page, whatever it is written in."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
      text: What is shown.
      note: A smaller addition, such as the half-width of an interval.
      order: By what a column is sorted; by the text if None.
      best: Whether it is the best of its column.
    """

    text: str
    note: str = ""
    order: int | float | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
      caption: What it shows and how to read it.
      head: Names of the columns.
      rows: As many cells as the head has, in each.
      marked: Numbers of the rows that are to be seen at once.
      left: Numbers of the columns that hold text, not numbers, besides the first.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: Sequence[int] = ()
    left: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
      name: Of its file, and the end of its address in the page.
      figure: The drawing.
      caption: What is seen, the axes, and how to read it.
      alternative: What is seen, in one sentence, for those who cannot see it.
    """

    name: str
    figure: Figure
    caption: str
    alternative: str


@dataclass(frozen=True)
class Claim:
    """One claim and whether it was shown.

    Attributes:
      text: The claim.
      numbers: What was found.
      verdict: "shown", "contradicted", "open" or "mixed".
      figure: Name of the picture in which it is seen, if that is in the page; or None.
    """

    text: str
    numbers: str
    verdict: str
    figure: str | None


@dataclass(frozen=True)
class Claims:
    """Claims, one by one."""

    claims: Sequence[Claim]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Points in a list: a term, which may be empty, and what is said of it."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Lines to be shown as they are."""

    text: str


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    text: str


Block = Text | Listing | Code | Heading | Table | Picture | Claims


@dataclass(frozen=True)
class Section:
    """A part of the page with a title, and a name for its address."""

    title: str
    name: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
      title: Of the page.
      summary: For each part of the results its title, and sentences that say
        everything that matters.
      sections: The rest.
    """

    title: str
    summary: Sequence[tuple[str, Sequence[str]]]
    sections: Sequence[Section]

    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [block for block in blocks if isinstance(block, Picture)]
