"""The shape of a network: from its leaves and a `config.json`, and back to one.

Shapes of leaves tell nearly all. A file says the rest: heads, activation, epsilon. It
is Hugging Face's `config.json`, or open_clip's, which is first put into those words;
where there is none, the words are those usual in the family. What a file says twice has
to agree with the leaves.
"""

from centermerge_jax.errors import CheckpointError, listing
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.configurations import language, vision
from centermerge_jax.models.configurations.reader import Settings
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.naming.matching import Match
from centermerge_jax.models.vit import ViTConfig

Config = ViTConfig | CLIPConfig | BertConfig | GPT2Config


def build(
    kind: str,
    match: Match,
    settings: Settings | None,
    *,
    roberta: bool = False,
    where: str = "leaves",
) -> Config:
    """The configuration of a model.

    Args:
      kind: `clip`, `vit`, `bert` or `gpt2`.
      match: Its leaves.
      settings: The content of its `config.json`, or of open_clip's, if any.
      roberta: Whether it is a RoBERTa.
      where: What to call the checkpoint in a message.

    Raises:
      CheckpointError: The file contradicts the leaves, or asks for what our model
        cannot do; or heads are not known. Everything wrong is listed.
    """
    settings = settings or {}
    if kind == "clip":
        config, problems = vision.clip(match, settings)
    elif kind == "vit":
        config, problems = vision.vit(match, settings)
    elif kind == "bert":
        config, problems = language.bert(match, settings, roberta=roberta)
    else:
        config, problems = language.gpt2(match, settings)
    if problems:
        raise CheckpointError(
            listing(f"{where}: {{n}} problem{{s}} with the configuration", problems)
        )
    return config
