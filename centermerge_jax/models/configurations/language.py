"""The shapes of language models."""

from typing import Any

from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.configurations.reader import (
    Reader,
    Settings,
    our_names,
    usual_heads,
)
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.naming.matching import Match

_BERT_WIDTHS = (128, 256, 512, 768, 1024)  # of those, heads are 64 wide


def bert(
    match: Match, settings: Settings, *, roberta: bool
) -> tuple[BertConfig, list[str]]:
    """The shape of a BERT or RoBERTa, and what is wrong."""
    lengths, depth = match.lengths, match.depths["blocks"]
    names = our_names(match)
    width = lengths["width"]
    usual: dict[str, Any] = {"pad_token_id": 1, "layer_norm_eps": 1e-12}
    stated = str(settings.get("model_type", ""))
    # Others (CamemBERT, data2vec) are one of the two by another name.
    roberta = "roberta" in stated or (
        stated != "bert" and (roberta or lengths["types"] == 1)
    )
    if stated:
        usual["num_attention_heads"] = 12
    else:
        # What is published, as against what is default in the class.
        usual["layer_norm_eps"] = 1e-5 if roberta else 1e-12
        known = width in _BERT_WIDTHS
        usual["num_attention_heads"] = width // 64 if known else None
    reader = Reader(settings, usual)
    reader.agree(
        hidden_size=width,
        num_hidden_layers=depth,
        intermediate_size=lengths["hidden"],
        vocab_size=lengths["vocabulary"],
        max_position_embeddings=lengths["context"],
        type_vocab_size=lengths["types"],
        position_embedding_type="absolute",
        is_decoder=False,
        hidden_act="gelu",
    )
    # RoBERTa counts positions from the one after that of padding.
    offset = reader.get("pad_token_id") + 1 if roberta else 0
    config = BertConfig(
        vocabulary=lengths["vocabulary"],
        context=lengths["context"] - offset,
        width=width,
        depth=depth,
        heads=reader.heads(width),
        hidden=lengths["hidden"],
        types=lengths["types"],
        epsilon=reader.get("layer_norm_eps"),
        position_offset=offset,
        pooler="pooler/kernel" in names,
    )
    return config, reader.problems


def gpt2(match: Match, settings: Settings) -> tuple[GPT2Config, list[str]]:
    """The shape of a GPT-2, and what is wrong."""
    lengths, depth = match.lengths, match.depths["blocks"]
    width = lengths["width"]
    usual = {
        "n_head": 12 if "model_type" in settings else usual_heads(width),
        "layer_norm_epsilon": 1e-5,
    }
    reader = Reader(settings, usual)
    reader.agree(
        n_embd=width,
        n_layer=depth,
        n_inner=lengths["hidden"],
        vocab_size=lengths["vocabulary"],
        n_positions=lengths["context"],
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
    )
    if lengths["hidden"] != 4 * width:
        reader.problems.append(
            f"the MLP is {lengths['hidden']} wide, not 4 times {width}"
        )
    config = GPT2Config(
        vocabulary=lengths["vocabulary"],
        context=lengths["context"],
        width=width,
        depth=depth,
        heads=reader.heads(width, "n_head"),
        epsilon=reader.get("layer_norm_epsilon"),
    )
    return config, reader.problems
