"""The families of checkpoints whose names are known, and which one a checkpoint is of.

Works on names, shapes and the content of a `config.json`; files are the business of
`centermerge_jax.convert`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.models.configurations import hugging_face
from centermerge_jax.models.configurations.build import Config, build
from centermerge_jax.models.configurations.reader import Settings
from centermerge_jax.models.naming.clip import HF_CLIP, HF_CLIP_VISION, OPENCLIP
from centermerge_jax.models.naming.flax import (
    FLAX_BERT,
    FLAX_CLIP,
    FLAX_GPT2,
    FLAX_VIT,
)
from centermerge_jax.models.naming.table import Table
from centermerge_jax.models.naming.text import HF_BERT, HF_GPT2, HF_ROBERTA
from centermerge_jax.models.naming.vit import HF_DINOV2, TIMM

Kind = Literal["clip", "vit", "bert", "gpt2"]
"""The module under `centermerge_jax.models` that runs the model."""


@dataclass(frozen=True)
class Family:
    """Checkpoints with the same names.

    Attributes:
      name: What users call it.
      kind: Which of our models they are.
      table: Their names and ours.
      model_types: The `model_type` that their `config.json` states.
    """

    name: str
    kind: Kind
    table: Table
    model_types: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("openclip", "clip", OPENCLIP),
        Family("hf-clip", "clip", HF_CLIP, ("clip", "clip_vision_model")),
        Family("hf-clip-vision", "clip", HF_CLIP_VISION, ("clip_vision_model",)),
        Family("timm", "vit", TIMM),
        Family("hf-dinov2", "vit", HF_DINOV2, ("dinov2", "dinov2_with_registers")),
        Family("hf-bert", "bert", HF_BERT, ("bert",)),
        Family("hf-roberta", "bert", HF_ROBERTA, ("roberta", "xlm-roberta")),
        Family("hf-gpt2", "gpt2", HF_GPT2, ("gpt2",)),
    )
}
"""The public families by name."""

FLAX: Mapping[Kind, Family] = {
    "clip": Family("flax", "clip", FLAX_CLIP),
    "vit": Family("flax", "vit", FLAX_VIT),
    "bert": Family("flax", "bert", FLAX_BERT),
    "gpt2": Family("flax", "gpt2", FLAX_GPT2),
}
"""Our own names: a family of each kind, in the order in which they are tried."""

NAMES = (*FAMILIES, "flax")


def find(name: str, kind: Kind) -> Family:
    """The family of a name, for models of one kind.

    Raises:
      ParameterError: There is none of that name, or it is for other models.

    Example:
      >>> find("flax", "clip").table.anchors
      ('visual/embed/patch/kernel',)
    """
    family = FLAX[kind] if name == "flax" else FAMILIES.get(name)
    fits = [known for known, f in FAMILIES.items() if f.kind == kind]
    if family is None:
        raise ParameterError(f"no family {name!r}; there are {', '.join(NAMES)}")
    if family.kind != kind:
        raise ParameterError(
            f"{name} cannot hold a model of the kind {kind}; "
            f"{', '.join([*fits, 'flax'])} can"
        )
    return family


def detect(
    leaves: Collection[str] | Mapping[str, Any],
    settings: Settings | None = None,
    *,
    where: str = "leaves",
) -> tuple[Family, str]:
    """The family that leaves are of, and what stands before their names.

    BERT and RoBERTa share the names of their encoders. What tells them apart is
    `config.json`, a prefix, a head, or that RoBERTa has one type of tokens.

    Args:
      leaves: Names; or arrays, or other things with a shape, by name.
      settings: The content of `config.json`, if there is one.
      where: What to call the checkpoint in a message.

    Raises:
      CheckpointError: The family is unknown, or there are several models.

    Example:
      >>> names = ["model.visual.conv1.weight", "model.visual.class_embedding"]
      >>> family, prefix = detect(names)
      >>> family.name, prefix
      ('openclip', 'model.')
    """
    fits = [
        (family, prefixes)
        for family in (*FAMILIES.values(), *FLAX.values())
        if (prefixes := family.table.prefixes(leaves))
    ]
    if not fits:
        some = ", ".join(list(leaves)[:5]) or "none at all"
        raise CheckpointError(
            f"{where}: the names are of no family known here ({', '.join(NAMES)}); "
            f"the first are {some}"
        )
    # Larger models come first: a tower of theirs has the names of a smaller one.
    family, prefixes = fits[0]
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{where}: holds several models of the family {family.name}, under the "
            f"prefixes {', '.join(map(repr, prefixes))}: one file should hold one"
        )
    (prefix,) = prefixes
    if family.name == "hf-bert" and _is_roberta(leaves, prefix, settings or {}):
        family = FAMILIES["hf-roberta"]
    return family, prefix


def _is_roberta(
    leaves: Collection[str] | Mapping[str, Any], prefix: str, settings: Settings
) -> bool:
    stated = settings.get("model_type")
    for name in ("hf-bert", "hf-roberta"):
        if stated in FAMILIES[name].model_types:
            return name == "hf-roberta"
    heads = ("lm_head.", "classifier.dense.", "classifier.out_proj.")
    if prefix.endswith("roberta.") or any(name.startswith(heads) for name in leaves):
        return True
    if not isinstance(leaves, Mapping):
        return False
    types = leaves[f"{prefix}embeddings.token_type_embeddings.weight"]
    return tuple(types.shape)[:1] == (1,)


def model_config(
    leaves: Mapping[str, Any],
    settings: Settings | None = None,
    *,
    family: Family | None = None,
    prefix: str | None = None,
    where: str = "leaves",
) -> Config:
    """The shape of the network that leaves are the parameters of.

    Args:
      leaves: Arrays, or other things with a shape, by name: public or ours.
      settings: The content of `config.json` (Hugging Face's or open_clip's), which
        says what shapes do not tell: heads, activations, epsilons. Without it they are
        what is usual in the family.
      family: As `detect` finds it, if it is known.
      prefix: Likewise.
      where: What to call the checkpoint in a message.

    Raises:
      CheckpointError: Leaves do not fit the family; the settings contradict the shapes
        or ask for what our model cannot do; or heads are not known.
    """
    if family is None:
        family, prefix = detect(leaves, settings, where=where)
    match = family.table.match(leaves, prefix=prefix, where=where)
    return build(
        family.kind,
        match,
        settings,
        roberta=family.name == "hf-roberta",
        where=where,
    )


def hf_config(
    config: Config, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Any]:
    """The `config.json` with which Hugging Face's classes load a model.

    Args:
      config: The network's shape.
      shapes: Shapes of its leaves by our names, where it is not the whole model: an
        image encoder alone, or a model with a head.
    """
    return hugging_face.settings(config, shapes or {})
