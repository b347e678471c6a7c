"""A family's table of names: reads its checkpoints into our trees, and writes them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from centermerge_jax.errors import CheckpointError, listing
from centermerge_jax.models.naming.layouts import Shape
from centermerge_jax.models.naming.matching import Match, Side, index, line_of, match
from centermerge_jax.models.naming.pairs import EXTRA, Pair

_ANY = "leaves"


@dataclass(frozen=True)
class Table:
    """The names and layouts of one family of checkpoints, and ours.

    Every leaf has a line and every line a leaf, or it is an error. So reading and
    writing undo each other, and arrays come back with every bit.

    Attributes:
      name: The family's name.
      pairs: The lines.
      anchors: Names that all checkpoints of the family have under one prefix.
      headed: The prefix that the family puts before a model when a head, which has
        none, stands beside it.
      choices: Groups of leaves of which exactly one has to be there.
      separator: What parts the names of modules.
      keeps_extra: Whether any leaf under `extra/` belongs to it.
    """

    name: str
    pairs: tuple[Pair, ...]
    anchors: tuple[str, ...]
    headed: str = ""
    choices: tuple[tuple[str, ...], ...] = ()
    separator: str = "."
    keeps_extra: bool = False

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """The prefixes under which names are those of this family.

        Example:
          >>> table = Table("small", (), anchors=("conv.weight", "norm.weight"))
          >>> table.prefixes(["model.conv.weight", "model.norm.weight"])
          ['model.']
        """
        known = set(names)
        ends = {
            name.removesuffix(self.anchors[0])
            for name in known
            if name.endswith(self.anchors[0])
        }
        return sorted(
            prefix
            for prefix in ends
            if (not prefix or prefix.endswith(self.separator))
            and all(prefix + anchor in known for anchor in self.anchors)
        )

    def match(
        self,
        leaves: Mapping[str, Any],
        *,
        prefix: str | None = None,
        where: str = _ANY,
    ) -> Match:
        """Matches public names and shapes with the table.

        Args:
          leaves: Anything with a shape, by name.
          prefix: What stands before the names; found where it is None.
          where: What to call the checkpoint in a message.

        Raises:
          CheckpointError: They do not fit; every leaf without a line, every missing
            one and every wrong shape is listed.
        """
        prefix = self._prefix(leaves, prefix, where)
        return self._match(leaves, Side(ours=False, prefix=prefix), where)

    def match_ours(self, leaves: Mapping[str, Any], *, where: str = _ANY) -> Match:
        """Matches our names and shapes with the table.

        Raises:
          CheckpointError: As for `match`.
        """
        return self._match(leaves, Side(ours=True), where)

    def read(
        self,
        leaves: Mapping[str, np.ndarray],
        *,
        prefix: str | None = None,
        where: str = _ANY,
    ) -> dict[str, np.ndarray]:
        """Leaves under public names as ours.

        Args:
          leaves: Arrays by public name.
          prefix: As for `match`.
          where: As for `match`.

        Returns:
          Arrays by our names, in the types they came in. Those that need no other
          layout are the ones that came.

        Raises:
          CheckpointError: As for `match`.
        """
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        prefix = self._prefix(arrays, prefix, where)
        found = self._match(arrays, Side(ours=False, prefix=prefix), where).found
        ours: dict[str, np.ndarray] = {}
        for line in found:
            theirs = arrays[line.theirs(prefix)]
            parts = line.pair.layout.ours(theirs, len(line.pair.ours))
            ours |= zip(line.ours, parts, strict=True)
        return ours | self._kept(arrays, prefix)

    def write(
        self,
        leaves: Mapping[str, np.ndarray],
        *,
        prefix: str | None = "",
        where: str = _ANY,
    ) -> dict[str, np.ndarray]:
        """Our leaves under public names: undoes `read`.

        Args:
          leaves: Arrays by our names.
          prefix: What to put before the names; None for what the family itself puts.
          where: As for `match`.

        Raises:
          CheckpointError: As for `match`; or leaves that theirs holds as one differ in
            type.
        """
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        found = self._match(arrays, Side(ours=True), where).found
        if prefix is None:
            headed = any(line.pair.rooted for line in found)
            prefix = self.headed if headed else ""
        theirs: dict[str, np.ndarray] = {}
        mixed = []
        for line in found:
            parts = [arrays[name] for name in line.ours]
            types = {part.dtype.name for part in parts}
            if len(types) > 1:
                mixed.append(f"{', '.join(line.ours)}: {' and '.join(sorted(types))}")
                continue
            theirs[line.theirs(prefix)] = line.pair.layout.theirs(parts)
        if mixed:
            header = (
                f"{where}: {{n}} leaf name{{s}} of {self.name} made of several types"
            )
            raise CheckpointError(listing(header, mixed))
        kept = self._kept(arrays, "")
        return theirs | {prefix + name: leaf for name, leaf in kept.items()}

    def takes(self, name: str) -> bool:
        """Whether a leaf of ours of this name has a place in the table."""
        lines = index(self.pairs, Side(ours=True))
        return self._is_kept(name, "") or line_of(name, lines) is not None

    def _kept(
        self, arrays: Mapping[str, np.ndarray], prefix: str
    ) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if self._is_kept(name, prefix)
        }

    def _is_kept(self, name: str, prefix: str) -> bool:
        return self.keeps_extra and name.startswith(prefix + EXTRA)

    def _prefix(self, leaves: Mapping[str, Any], prefix: str | None, where: str) -> str:
        if prefix is not None:
            return prefix
        fits = self.prefixes(leaves)
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise CheckpointError(
                f"{where}: not of the family {self.name}: it has no "
                f"{' and '.join(self.anchors)}, under whatever prefix"
            )
        raise CheckpointError(
            f"{where}: holds several models of the family {self.name}, under the "
            f"prefixes {', '.join(map(repr, fits))}: one file should hold one"
        )

    def _match(self, leaves: Mapping[str, Any], side: Side, where: str) -> Match:
        shapes: dict[str, Shape] = {
            name: tuple(leaf.shape)
            for name, leaf in leaves.items()
            if not self._is_kept(name, side.prefix)
        }
        found, problems = match(self.pairs, self.choices, shapes, side)
        if problems:
            header = f"{where}: {{n}} difference{{s}} from {self.name}"
            raise CheckpointError(listing(header, problems))
        return found
