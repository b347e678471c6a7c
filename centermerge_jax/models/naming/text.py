"""Names of language models at Hugging Face: BERT, RoBERTa and GPT-2."""

from centermerge_jax.models.naming.layouts import DENSE, FUSED_COLUMNS, SAME
from centermerge_jax.models.naming.pairs import Pair, carried, dense, fused, norm, one
from centermerge_jax.models.naming.table import Table

_BLOCK = "blocks/{i}"
_WORDS = "embeddings.word_embeddings.weight"
_BERT_BLOCK = "encoder.layer.{i}"

# The encoder, which is the same in both. Each norm comes after its residual branch.
_BERT = (
    one(_WORDS, "embed/tokens/embedding", "vocabulary width"),
    one("embeddings.position_embeddings.weight", "embed/positions", "context width"),
    one(
        "embeddings.token_type_embeddings.weight",
        "embed/types/embedding",
        "types width",
    ),
    *norm("embeddings.LayerNorm", "embed/norm", "width"),
    *(
        pair
        for part in ("query", "key", "value")
        for pair in dense(
            f"{_BERT_BLOCK}.attention.self.{part}",
            f"{_BLOCK}/attn/{part[0]}",
            "width",
            "width",
        )
    ),
    *dense(
        f"{_BERT_BLOCK}.attention.output.dense", f"{_BLOCK}/attn/out", "width", "width"
    ),
    *norm(f"{_BERT_BLOCK}.attention.output.LayerNorm", f"{_BLOCK}/norm1", "width"),
    *dense(f"{_BERT_BLOCK}.intermediate.dense", f"{_BLOCK}/mlp/fc1", "width", "hidden"),
    *dense(f"{_BERT_BLOCK}.output.dense", f"{_BLOCK}/mlp/fc2", "hidden", "width"),
    *norm(f"{_BERT_BLOCK}.output.LayerNorm", f"{_BLOCK}/norm2", "width"),
    *dense("pooler.dense", "pooler", "width", "width", group="pooler"),
    # Buffers that older releases saved.
    carried("embeddings.position_ids"),
    carried("embeddings.token_type_ids"),
)


def _carried(*names: str) -> tuple[Pair, ...]:
    """Heads of pretraining, which stand at the top."""
    return tuple(carried(name, rooted=True) for name in names)


def _dense_names(*layers: str) -> tuple[str, ...]:
    return tuple(f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias"))


HF_BERT = Table(
    "hf-bert",
    (
        *_BERT,
        *dense("classifier", "head", "width", "classes", group="head", rooted=True),
        *_carried(
            "cls.predictions.bias",
            *_dense_names(
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder",
                "cls.seq_relationship",
                "qa_outputs",
            ),
        ),
    ),
    anchors=(_WORDS, "encoder.layer.0.attention.self.query.weight"),
    headed="bert.",
)

HF_ROBERTA = Table(
    "hf-roberta",
    (
        *_BERT,
        *dense(
            "classifier.dense",
            "head/dense",
            "width",
            "width",
            group="head of two layers",
            rooted=True,
        ),
        *dense(
            "classifier.out_proj",
            "head/out",
            "width",
            "classes",
            group="head of two layers",
            rooted=True,
        ),
        *_carried(
            "lm_head.bias",
            *_dense_names(
                "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "qa_outputs"
            ),
        ),
    ),
    anchors=HF_BERT.anchors,
    headed="roberta.",
)

HF_GPT2 = Table(
    "hf-gpt2",
    (
        one("wte.weight", "embed/tokens/embedding", "vocabulary width"),
        one("wpe.weight", "embed/positions", "context width"),
        *norm("h.{i}.ln_1", f"{_BLOCK}/norm1", "width"),
        *fused(
            "h.{i}.attn.c_attn.weight",
            "h.{i}.attn.c_attn.bias",
            f"{_BLOCK}/attn",
            "width",
            layout=FUSED_COLUMNS,
        ),
        # Its `Conv1D` stores `[in, out]`, as we do.
        *dense(
            "h.{i}.attn.c_proj", f"{_BLOCK}/attn/out", "width", "width", layout=SAME
        ),
        *norm("h.{i}.ln_2", f"{_BLOCK}/norm2", "width"),
        *dense("h.{i}.mlp.c_fc", f"{_BLOCK}/mlp/fc1", "width", "hidden", layout=SAME),
        *dense("h.{i}.mlp.c_proj", f"{_BLOCK}/mlp/fc2", "hidden", "width", layout=SAME),
        *norm("ln_f", "norm", "width"),
        Pair(
            "score.weight",
            ("head/kernel",),
            "width classes",
            DENSE,
            group="head",
            rooted=True,
        ),
        # The causal mask and its number, which older releases saved.
        carried("h.{i}.attn.bias"),
        carried("h.{i}.attn.masked_bias"),
        # The same numbers as the embedding's, in files that save them twice.
        carried("lm_head.weight", rooted=True),
    ),
    anchors=("wte.weight", "h.0.attn.c_attn.weight"),
    headed="transformer.",
)
