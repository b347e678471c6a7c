"""Which leaves of a checkpoint are which lines of a table: all of them, or an error.

The names of one side (theirs or ours) are looked up as a whole. What is then wrong is
found all at once: leaves without a line, lines without their leaf, and shapes that
contradict the others.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from centermerge_jax.models.naming.layouts import Shape
from centermerge_jax.models.naming.pairs import BLOCK, Pair, carried

# A part of a name that is a number and nothing else.
_NUMBER = re.compile(r"(?<![^./])(?:0|[1-9]\d{0,8})(?![^./])")


def shown(name: str) -> str:
    """A name as it fits into a message of one line, whatever is in it."""
    return name if name and name.isprintable() else repr(name)


@dataclass(frozen=True)
class Found:
    """A line of the table that a checkpoint has, of one block where it is counted.

    Attributes:
      pair: The line.
      block: The block's number.
    """

    pair: Pair
    block: int | None = None

    def theirs(self, prefix: str) -> str:
        """The public name."""
        lead = "" if self.pair.rooted else prefix
        return lead + self._numbered(self.pair.theirs)

    @property
    def ours(self) -> tuple[str, ...]:
        """Our names."""
        return tuple(map(self._numbered, self.pair.ours))

    def _numbered(self, name: str) -> str:
        return name if self.block is None else name.replace(BLOCK, str(self.block), 1)


@dataclass(frozen=True)
class Match:
    """A checkpoint and a table that fit together.

    Attributes:
      found: The lines that the checkpoint has, in the order of the table.
      lengths: What the words in shapes stand for.
      depths: Number of blocks, by our name above their numbers.
    """

    found: tuple[Found, ...]
    lengths: Mapping[str, int]
    depths: Mapping[str, int]


@dataclass(frozen=True)
class Side:
    """The names of one side of a table.

    Attributes:
      ours: Whether it is our side.
      prefix: What stands before names on theirs.
    """

    ours: bool
    prefix: str = ""

    def names(self, line: Found) -> tuple[str, ...]:
        """Names of the leaves of a line."""
        return line.ours if self.ours else (line.theirs(self.prefix),)

    def our_shape(self, pair: Pair, shape: Shape) -> Shape | None:
        """The shape that ours has where the leaf has this one."""
        return shape if self.ours else pair.layout.our_shape(shape, len(pair.ours))

    def shape(self, pair: Pair, ours: Shape) -> Shape:
        """The shape that the leaf has where ours has this one."""
        return ours if self.ours else pair.layout.their_shape(ours, len(pair.ours))


def match(
    pairs: Sequence[Pair],
    choices: Iterable[Sequence[str]],
    shapes: Mapping[str, Shape],
    side: Side,
) -> tuple[Match, list[str]]:
    """Matches all leaves with lines.

    Args:
      pairs: The table.
      choices: Groups of which exactly one has to be there.
      shapes: Shape of each leaf.
      side: Which side the leaves are of.

    Returns:
      The match, and what is wrong, a line each; without any the match is right.
    """
    placed, problems = _place(shapes, index(pairs, side), side.prefix)
    if side.ours:
        present = {line.pair.group for line in placed if line.pair.apart != "own"}
        problems += _leftovers(pairs, placed, present)
    else:
        placed, present = _carry_remnants(placed)
    depths, absurd = _depths(pairs, placed, len(shapes))
    problems += absurd
    for choice in choices:
        if len(present & {*choice}) != 1:
            problems.append(f"{' or '.join(choice)}: exactly one of them is needed")
    problems += _missing(pairs, placed, present, depths, side)
    lengths, wrong = _lengths(placed, shapes, side)
    order = {pair: i for i, pair in enumerate(pairs)}
    found = sorted(
        placed, key=lambda line: (order.get(line.pair, len(order)), line.block or 0)
    )
    return Match(tuple(found), lengths, depths), problems + wrong


_Placed = dict[Found, list[str]]
_Index = Mapping[tuple[bool, str], Pair]


def index(pairs: Sequence[Pair], side: Side) -> _Index:
    """Lines by their names on one side, and whether these stand without a prefix."""
    if side.ours:
        pairs = [*pairs, *_remnants(pairs)]
        return {(False, name): pair for pair in pairs for name in pair.ours}
    return {(pair.rooted, pair.theirs): pair for pair in pairs}


def line_of(name: str, lines: _Index, prefix: str = "") -> Found | None:
    """The line that a full name is of, if any."""
    stripped = [(True, name)]
    if name.startswith(prefix):
        stripped.append((False, name[len(prefix) :]))
    for rooted, rest in stripped:
        pair = lines.get((rooted, rest))
        if pair is not None and not pair.counted:
            return Found(pair)
        number = _NUMBER.search(rest)
        if number is None:
            continue
        pair = lines.get((rooted, _NUMBER.sub(BLOCK, rest, count=1)))
        if pair is not None:
            return Found(pair, int(number[0]))
    return None


def _place(
    names: Iterable[str], lines: _Index, prefix: str
) -> tuple[_Placed, list[str]]:
    """The lines of the leaves, with the names found, and leaves that have none."""
    placed: _Placed = defaultdict(list)
    unknown = []
    for name in names:
        line = line_of(name, lines, prefix)
        if line is None:
            unknown.append(f"{shown(name)}: has no counterpart")
        else:
            placed[line].append(name)
    return dict(placed), unknown


def _remnants(pairs: Sequence[Pair]) -> dict[Pair, str]:
    """Lines for leaves that may outlive their group; and the group of each."""
    return {carried(p.theirs): p.group for p in pairs if p.apart == "carried"}


def _carry_remnants(placed: _Placed) -> tuple[_Placed, set[str]]:
    """Carries public leaves that have outlived their group.

    Returns:
      The lines as they now are, and the groups that are there.
    """
    present = {line.pair.group for line in placed if not line.pair.apart}
    changed = {
        Found(carried(line.pair.theirs))
        if line.pair.apart == "carried" and line.pair.group not in present
        else line: names
        for line, names in placed.items()
    }
    return changed, present


def _leftovers(pairs: Sequence[Pair], placed: _Placed, present: set[str]) -> list[str]:
    """Remnants of a group that is there: each would be a second leaf of one name."""
    groups = _remnants(pairs)
    return [
        f"{name}: is there beside the leaf that it stood for"
        for line, names in placed.items()
        if groups.get(line.pair) in present
        for name in names
    ]


def _depths(
    pairs: Sequence[Pair], placed: _Placed, count: int
) -> tuple[dict[str, int], list[str]]:
    """The number of blocks of each stack, and numbers that cannot be."""
    blocks: dict[str, set[int]] = {
        pair.stack: set() for pair in pairs if pair.counted and pair.shape is not None
    }
    absurd = []
    for line, names in placed.items():
        if line.block is None or line.pair.shape is None:
            continue
        if line.block >= count:
            absurd += [f"{name}: there are not that many blocks" for name in names]
        else:
            blocks[line.pair.stack].add(line.block)
    return {
        stack: max(found, default=-1) + 1 for stack, found in blocks.items()
    }, absurd


def _missing(
    pairs: Sequence[Pair],
    placed: _Placed,
    present: set[str],
    depths: Mapping[str, int],
    side: Side,
) -> list[str]:
    problems = []
    for pair in pairs:
        if pair.shape is None or (pair.group and pair.group not in present):
            continue
        # Of a network without any block, the first one is reported.
        numbers = range(max(1, depths[pair.stack])) if pair.counted else [None]
        for number in numbers:
            line = Found(pair, number)
            there = placed.get(line, [])
            problems += [
                f"{name}: is missing" for name in side.names(line) if name not in there
            ]
    return problems


def _lengths(
    placed: _Placed, shapes: Mapping[str, Shape], side: Side
) -> tuple[dict[str, int], list[str]]:
    """The length that each word stands for in most leaves, and leaves that differ."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    axes: list[tuple[str, Pair, Shape | None]] = []
    for line, names in placed.items():
        if line.pair.shape is None:
            continue
        words = line.pair.shape.split()
        for name in names:
            ours = side.our_shape(line.pair, shapes[name])
            if ours is not None and len(ours) != len(words):
                ours = None
            axes.append((name, line.pair, ours))
            for word, length in zip(words, ours or (), strict=False):
                votes[word][length] += 1
    lengths = {
        word: int(word) if word.isdecimal() else counts.most_common(1)[0][0]
        for word, counts in votes.items()
    }
    wrong = []
    for name, pair, ours in axes:
        words = (pair.shape or "").split()
        expected = [lengths.get(word) for word in words]
        if ours is not None and list(ours) == expected:
            continue
        known = [length for length in expected if length is not None]
        text = (
            str(list(side.shape(pair, tuple(known))))
            if len(known) == len(expected)
            else f"({pair.shape})"
        )
        wrong.append(f"{name}: is {list(shapes[name])}, expected {text}")
    return {w: n for w, n in lengths.items() if not w.isdecimal()}, wrong
