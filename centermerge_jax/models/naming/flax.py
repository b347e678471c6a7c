"""Our own names, as checkpoints in them are read and checked.

One table for each kind of model, with all that any public family of it has.
"""

from collections.abc import Iterable

from centermerge_jax.models.naming.clip import HF_CLIP, OPENCLIP
from centermerge_jax.models.naming.pairs import Pair
from centermerge_jax.models.naming.table import Table
from centermerge_jax.models.naming.text import HF_BERT, HF_GPT2, HF_ROBERTA
from centermerge_jax.models.naming.vit import TIMM


def _table(*publics: Table, anchors: tuple[str, ...]) -> Table:
    """The table of our names; of a leaf that several tables have, the first decides."""
    lines: dict[str, Pair] = {}
    for table in publics:
        for line in _ours(table.pairs):
            lines.setdefault(line.theirs, line)
    return Table(
        "flax",
        tuple(lines.values()),
        anchors,
        choices=publics[0].choices,
        separator="/",
        keeps_extra=True,
    )


def _ours(pairs: Iterable[Pair]) -> Iterable[Pair]:
    for pair in pairs:
        for name in () if pair.shape is None else pair.ours:
            apart = "own" if pair.apart == "own" else ""
            yield Pair(name, (name,), pair.shape, group=pair.group, apart=apart)


FLAX_CLIP = _table(HF_CLIP, OPENCLIP, anchors=("visual/embed/patch/kernel",))
FLAX_VIT = _table(TIMM, anchors=("embed/patch/kernel", "blocks/0/attn/q/kernel"))
FLAX_BERT = _table(
    HF_BERT, HF_ROBERTA, anchors=("embed/tokens/embedding", "embed/norm/scale")
)
FLAX_GPT2 = _table(HF_GPT2, anchors=("embed/tokens/embedding", "norm/scale"))
