"""One line of a table of names: a public leaf, and the leaves of ours it stands for.

Names are full names. `{i}` stands for the number of a block, and for nothing else.
"""

from dataclasses import dataclass
from typing import Literal

from centermerge_jax.models.naming.layouts import (
    CONV,
    DENSE,
    FUSED,
    FUSED_BIAS,
    SAME,
    Layout,
)

EXTRA = "extra/"
"""Above leaves that our models do not use, kept so that a way back exists."""

BLOCK = "{i}"

Apart = Literal["", "own", "carried"]


@dataclass(frozen=True)
class Pair:
    """A public leaf, and ours.

    Attributes:
      theirs: Its name, without a prefix.
      ours: Our name; of fused queries, keys and values three, in this order.
      shape: Lengths of the axes of each of ours: numbers, or words that mean the same
        length wherever they stand in the table. None for any shape.
      layout: How theirs lies against ours.
      group: What the leaf belongs to. Leaves of no group have to be there; those of a
        group all or none.
      apart: What a leaf is without the rest of its group: a fault (nothing said), our
        `own` as ever, or `carried`, since our models have no use for it.
      rooted: Whether prefixes do not stand before it, as they do not before heads.
    """

    theirs: str
    ours: tuple[str, ...]
    shape: str | None
    layout: Layout = SAME
    group: str = ""
    apart: Apart = ""
    rooted: bool = False

    @property
    def counted(self) -> bool:
        """Whether there is one for each block."""
        return BLOCK in self.theirs

    @property
    def stack(self) -> str:
        """The name of ours above the number of the block."""
        return self.ours[0].partition(f"/{BLOCK}")[0]


def one(
    theirs: str,
    ours: str,
    shape: str,
    layout: Layout = SAME,
    *,
    group: str = "",
    apart: Apart = "",
) -> Pair:
    """A single leaf."""
    return Pair(theirs, (ours,), shape, layout, group=group, apart=apart)


def norm(
    theirs: str, ours: str, width: str, *, group: str = "", apart: Apart = ""
) -> tuple[Pair, ...]:
    """A LayerNorm."""
    return (
        one(f"{theirs}.weight", f"{ours}/scale", width, group=group, apart=apart),
        one(f"{theirs}.bias", f"{ours}/bias", width, group=group, apart=apart),
    )


def dense(
    theirs: str,
    ours: str,
    inputs: str,
    outputs: str,
    *,
    layout: Layout = DENSE,
    group: str = "",
    rooted: bool = False,
) -> tuple[Pair, ...]:
    """A dense layer with its bias."""
    matrix = f"{inputs} {outputs}"
    return (
        Pair(
            f"{theirs}.weight",
            (f"{ours}/kernel",),
            matrix,
            layout,
            group=group,
            rooted=rooted,
        ),
        Pair(f"{theirs}.bias", (f"{ours}/bias",), outputs, group=group, rooted=rooted),
    )


def fused(
    weight: str,
    bias: str,
    ours: str,
    width: str,
    *,
    layout: Layout = FUSED,
    group: str = "",
) -> tuple[Pair, ...]:
    """Queries, keys and values in one matrix, and their biases in one vector."""
    kernels, biases = (
        tuple(f"{ours}/{part}/{leaf}" for part in "qkv") for leaf in ("kernel", "bias")
    )
    return (
        Pair(weight, kernels, f"{width} {width}", layout, group=group),
        Pair(bias, biases, width, FUSED_BIAS, group=group),
    )


def patches(theirs: str, ours: str) -> Pair:
    """The convolution that cuts an image into patches."""
    return one(f"{theirs}.weight", f"{ours}/kernel", "patch patch 3 width", CONV)


def carried(theirs: str, *, rooted: bool = False) -> Pair:
    """A leaf that is no parameter of ours, kept as it is if it is there."""
    return Pair(theirs, (EXTRA + theirs,), None, group=theirs, rooted=rooted)
