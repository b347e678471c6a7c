r"""Name maps: a checkpoint seen under other names and in other layouts.

PyTorch calls a dense layer's matrix `blocks.0.mlp.fc1.weight` and stores `[out, in]`;
Flax calls it `blocks/0/mlp/fc1/kernel` and stores `[in, out]`. To merge the one with
the other, a file says what is what; the first rule that matches a whole name wins:

    rest = "keep"                # what no rule matches keeps its name; else an error

    [[leaf]]
    from = 'blocks\.(\d+)\.mlp\.fc1\.weight'
    to = 'blocks/\1/mlp/fc1/kernel'
    transpose = [1, 0]           # order of the axes
    shape = [384, 6, 64]         # after that; one length may be -1

    [[leaf]]
    from = 'mask_token'
    drop = true
"""

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from centermerge_jax.checkpoints.checkpoint import (
    Allocate,
    Checkpoint,
    Leaf,
    LeafInfo,
    Piece,
    fresh,
    shown,
)
from centermerge_jax.errors import CheckpointError, listing

_KEYS = ("from", "to", "drop", "transpose", "shape")


@dataclass(frozen=True)
class NameRule:
    r"""What becomes of the leaves with a certain name.

    Attributes:
      pattern: Regular expression that has to match the *whole* name.
      to: The new name, with `\1`, `\2`, ... from the pattern; None to leave the leaf
        out.
      transpose: The old axes in their new order.
      shape: The new shape, after the transposition; one length may be -1.
      is_rest: Whether it stands for whatever other rules leave, if anything.
    """

    pattern: str
    to: str | None
    transpose: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    is_rest: bool = False


_REST = NameRule(r"(?s:.*)", r"\g<0>", is_rest=True)


def load_name_map(path: str | Path) -> tuple[NameRule, ...]:
    """Reads a name map.

    Raises:
      CheckpointError: The file cannot be read or is not of that form; every faulty rule
        is listed.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a TOML file: {error}") from error
    tables, rest = content.pop("leaf", []), content.pop("rest", None)
    problems = [f"{key}: is not known" for key in content]
    if rest not in (None, "keep"):
        problems.append(f"rest: is 'keep' or left out, not {rest!r}")
    if not isinstance(tables, list) or not tables:
        problems.append("leaf: there is no [[leaf]] table")
        tables = []
    rules = []
    for number, table in enumerate(tables, 1):
        faults = _faults(table)
        problems += [f"leaf {number}: {fault}" for fault in faults]
        if not faults:
            rules.append(_rule(table))
    if problems:
        raise CheckpointError(listing(f"{path}: {{n}} fault{{s}}", problems))
    return (*rules, _REST) if rest == "keep" else tuple(rules)


def _faults(table: Any) -> list[str]:
    """What is wrong with one table of the file."""
    if not isinstance(table, dict):
        return [f"is {table!r}, not a table"]
    faults = [
        f"{key}: is not one of {', '.join(_KEYS)}" for key in table.keys() - {*_KEYS}
    ]
    pattern = table.get("from")
    if not isinstance(pattern, str):
        faults.append("from: a regular expression is needed")
    else:
        try:
            re.compile(pattern)
        except re.error as error:
            faults.append(f"from: {pattern!r}: {error}")
    dropped = "drop" in table
    if dropped and table["drop"] is not True:
        faults.append(f"drop: is true or left out, not {table['drop']!r}")
    if dropped and table.keys() & {"to", "transpose", "shape"}:
        faults.append("drop: what is dropped has no name or shape")
    if not dropped and not (isinstance(table.get("to"), str) and table["to"]):
        faults.append("to: the new name is needed, or drop = true")
    axes, shape = table.get("transpose", []), table.get("shape", [])
    if not _are_integers(axes) or sorted(axes) != list(range(len(axes))):
        faults.append(f"transpose: names each axis from 0 on once, got {axes!r}")
    if not _are_integers(shape) or min(shape, default=0) < -1 or shape.count(-1) > 1:
        faults.append(
            f"shape: is a list of lengths, one of them perhaps -1, got {shape!r}"
        )
    return faults


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int for x in value)


def _rule(table: Mapping[str, Any]) -> NameRule:
    axes, shape = table.get("transpose"), table.get("shape")
    return NameRule(
        table["from"],
        table.get("to"),
        None if axes is None else tuple(axes),
        None if shape is None else tuple(shape),
    )


@dataclass(frozen=True)
class _Source:
    """Where a renamed leaf comes from, and how it gets its shape."""

    name: str
    transpose: tuple[int, ...] | None
    info: LeafInfo


def rename(checkpoint: Checkpoint, rules: Sequence[NameRule]) -> Checkpoint:
    """A checkpoint as it is under a name map.

    Args:
      checkpoint: The one on disk.
      rules: From `load_name_map`, tried in order.

    Returns:
      A checkpoint with flat names, whose leaves are transposed and reshaped when they
      are read. Parts of leaves can be read as before, unless some leaf is transposed.

    Raises:
      CheckpointError: A leaf is matched by no rule, a rule matches nothing, leaves get
        one name, or a shape does not fit; everything wrong is listed.
    """
    sources: dict[str, list[_Source]] = defaultdict(list)
    idle = {rule for rule in rules if not rule.is_rest}
    problems = []
    for name, info in checkpoint.leaves.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            problems.append(f"{shown(name)}: is matched by no rule")
            continue
        idle.discard(rule)
        if rule.to is None:
            continue
        try:
            target = _target(rule, name)
            laid_out = _laid_out(info, rule)
        except ValueError as error:
            problems.append(f"{shown(name)}: {error}")
        else:
            sources[target].append(_Source(name, rule.transpose, laid_out))
    problems += [
        f"{rule.pattern!r}: matches no leaf that no earlier rule took"
        for rule in rules
        if rule in idle
    ]
    problems += [
        f"{target}: is the name of {' and '.join(source.name for source in several)}"
        for target, several in sources.items()
        if len(several) > 1
    ]
    if problems:
        unmatched = any("is matched by no rule" in problem for problem in problems)
        cure = "Say rest = 'keep' to keep the names that no rule matches."
        header = f"{checkpoint.path}: {{n}} problem{{s}} with the name map"
        raise CheckpointError(listing(header, problems, cure if unmatched else ""))
    if not sources:
        raise CheckpointError(f"{checkpoint.path}: the name map drops every leaf")
    renamed = _Renamed(checkpoint, {name: sources[name][0] for name in sorted(sources)})
    divisible = checkpoint.fetch_range is not None and not any(
        source.transpose for source in renamed.sources.values()
    )
    return replace(
        checkpoint,
        leaves={name: source.info for name, source in renamed.sources.items()},
        fetch=renamed.fetch,
        fetch_range=renamed.fetch_range if divisible else None,
        structure=None,
        tied={},
    )


def _target(rule: NameRule, name: str) -> str:
    """The new name of a leaf that a rule matches."""
    match = re.fullmatch(rule.pattern, name)
    assert match is not None
    assert rule.to is not None
    try:
        target = match.expand(rule.to)
    except (re.error, IndexError) as error:
        raise ValueError(f"to = {rule.to!r}: {error}") from error
    if not target and name:
        raise ValueError(f"to = {rule.to!r} leaves no name")
    return target


def _laid_out(info: LeafInfo, rule: NameRule) -> LeafInfo:
    """Shape and type of a leaf after its rule."""
    shape = info.shape
    if (rule.transpose or rule.shape) and info.kind != "array":
        raise ValueError(f"is a {info.kind}, which has no axes")
    if rule.transpose is not None:
        if len(rule.transpose) != len(shape):
            raise ValueError(
                f"is {info}, which transpose = {list(rule.transpose)} does not fit"
            )
        shape = tuple(shape[axis] for axis in rule.transpose)
    if rule.shape is not None:
        known = math.prod(length for length in rule.shape if length != -1)
        size = math.prod(shape)
        free = size // known if known else 0
        new = tuple(free if length == -1 else length for length in rule.shape)
        if math.prod(new) != size:
            raise ValueError(
                f"is {info}, which shape = {list(rule.shape)} does not fit"
            )
        shape = new
    return replace(info, shape=shape)


@dataclass(frozen=True)
class _Renamed:
    """Reads a checkpoint under other names."""

    checkpoint: Checkpoint
    sources: Mapping[str, _Source]

    def fetch(
        self, names: Sequence[str], allocate: Allocate
    ) -> Iterator[tuple[str, Leaf]]:
        """Yields leaves by their new names."""
        plain = [name for name in names if self.sources[name].transpose is None]
        turned = [name for name in names if self.sources[name].transpose is not None]
        for name, leaf in self._read(plain, allocate):
            info = self.sources[name].info
            yield (
                name,
                leaf.reshape(info.shape) if isinstance(leaf, np.ndarray) else leaf,
            )
        # Those are copied once more, so that what is read need not be kept.
        for name, leaf in self._read(turned, fresh):
            source = self.sources[name]
            array = np.asarray(leaf).transpose(source.transpose)
            yield name, np.ascontiguousarray(array).reshape(source.info.shape)

    def _read(
        self, names: Sequence[str], allocate: Allocate
    ) -> Iterator[tuple[str, Leaf]]:
        known_as = {self.sources[name].name: name for name in names}
        infos = self.checkpoint.leaves
        pieces = [
            Piece(name, 0, math.prod(infos[name].shape), infos[name].shape)
            for name in known_as
        ]
        for name, leaf in self.checkpoint.read_pieces(pieces, allocate=allocate):
            yield known_as[name], leaf

    def fetch_range(
        self, name: str, start: int, stop: int, allocate: Allocate
    ) -> np.ndarray:
        """Reads some of a leaf's flat elements, which lie as they did."""
        assert self.checkpoint.fetch_range is not None
        return self.checkpoint.fetch_range(
            self.sources[name].name, start, stop, allocate
        )
