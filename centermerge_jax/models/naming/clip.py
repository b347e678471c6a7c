"""Names of CLIP in OpenAI's and open_clip's state dicts, and at Hugging Face.

Fine-tuned image encoders of the task-vector and TALL-masks repositories are the former
with a prefix (`model.`) and without the transformer of the text tower, whose other
leaves are still there.
"""

from centermerge_jax.models.naming.layouts import DENSE
from centermerge_jax.models.naming.pairs import (
    Pair,
    carried,
    dense,
    fused,
    norm,
    one,
    patches,
)
from centermerge_jax.models.naming.table import Table

_TEXT = "text"


def _openclip_blocks(
    theirs: str, ours: str, width: str, hidden: str, *, group: str = ""
) -> tuple[Pair, ...]:
    theirs, ours = f"{theirs}transformer.resblocks.{{i}}", f"{ours}/blocks/{{i}}"
    qkv = f"{theirs}.attn.in_proj_weight", f"{theirs}.attn.in_proj_bias"
    out = f"{theirs}.attn.out_proj", f"{ours}/attn/out"
    return (
        *norm(f"{theirs}.ln_1", f"{ours}/norm1", width, group=group),
        *fused(*qkv, f"{ours}/attn", width, group=group),
        *dense(*out, width, width, group=group),
        *norm(f"{theirs}.ln_2", f"{ours}/norm2", width, group=group),
        *dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp/fc1", width, hidden, group=group),
        *dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp/fc2", hidden, width, group=group),
    )


def _hf_blocks(
    theirs: str, ours: str, width: str, hidden: str, *, group: str = ""
) -> tuple[Pair, ...]:
    theirs, ours = f"{theirs}encoder.layers.{{i}}", f"{ours}/blocks/{{i}}"
    attention = (
        pair
        for part in ("q", "k", "v", "out")
        for pair in dense(
            f"{theirs}.self_attn.{part}_proj",
            f"{ours}/attn/{part}",
            width,
            width,
            group=group,
        )
    )
    return (
        *norm(f"{theirs}.layer_norm1", f"{ours}/norm1", width, group=group),
        *attention,
        *norm(f"{theirs}.layer_norm2", f"{ours}/norm2", width, group=group),
        *dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1", width, hidden, group=group),
        *dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2", hidden, width, group=group),
    )


# What is left of the text tower where its transformer was deleted.
_TEXT_ENDS = (
    one(
        "token_embedding.weight",
        "text/embed/tokens/embedding",
        "vocabulary text_width",
        group=_TEXT,
        apart="carried",
    ),
    one(
        "positional_embedding",
        "text/embed/positions",
        "context text_width",
        group=_TEXT,
        apart="carried",
    ),
    *norm("ln_final", "text/norm", "text_width", group=_TEXT, apart="carried"),
    one(
        "text_projection",
        "text/proj/kernel",
        "text_width embed",
        group=_TEXT,
        apart="carried",
    ),
)

OPENCLIP = Table(
    "openclip",
    (
        one("visual.class_embedding", "visual/embed/class_token", "width"),
        one("visual.positional_embedding", "visual/embed/positions", "tokens width"),
        patches("visual.conv1", "visual/embed/patch"),
        *norm("visual.ln_pre", "visual/pre_norm", "width"),
        *_openclip_blocks("visual.", "visual", "width", "hidden"),
        *norm("visual.ln_post", "visual/norm", "width"),
        # Multiplied from the right and so, unlike Hugging Face's, not transposed.
        one("visual.proj", "visual/proj/kernel", "width embed"),
        *_TEXT_ENDS,
        *_openclip_blocks("", "text", "text_width", "text_hidden", group=_TEXT),
        one("logit_scale", "logit_scale", "", group=_TEXT, apart="own"),
        *dense(
            "classification_head",
            "head",
            "embed",
            "classes",
            group="head",
            rooted=True,
        ),
        # A buffer of some versions, and what OpenAI's archives note of the shape.
        carried("attn_mask"),
        carried("input_resolution"),
        carried("context_length"),
        carried("vocab_size"),
    ),
    anchors=("visual.conv1.weight", "visual.class_embedding"),
    headed="image_encoder.model.",
)


def _hf_vision(above: str) -> tuple[Pair, ...]:
    embeddings = f"{above}embeddings"
    return (
        one(f"{embeddings}.class_embedding", "visual/embed/class_token", "width"),
        one(
            f"{embeddings}.position_embedding.weight",
            "visual/embed/positions",
            "tokens width",
        ),
        patches(f"{embeddings}.patch_embedding", "visual/embed/patch"),
        # Misspelt since the first release, and so in every checkpoint.
        *norm(f"{above}pre_layrnorm", "visual/pre_norm", "width"),
        *_hf_blocks(above, "visual", "width", "hidden"),
        *norm(f"{above}post_layernorm", "visual/norm", "width"),
        carried(f"{embeddings}.position_ids"),  # a buffer that older releases saved
    )


HF_CLIP = Table(
    "hf-clip",
    (
        *_hf_vision("vision_model."),
        # `CLIPVisionModel` has none of the shared space.
        one(
            "visual_projection.weight",
            "visual/proj/kernel",
            "width embed",
            DENSE,
            group=_TEXT,
            apart="own",
        ),
        one(
            "text_model.embeddings.token_embedding.weight",
            "text/embed/tokens/embedding",
            "vocabulary text_width",
            group=_TEXT,
        ),
        one(
            "text_model.embeddings.position_embedding.weight",
            "text/embed/positions",
            "context text_width",
            group=_TEXT,
        ),
        *_hf_blocks("text_model.", "text", "text_width", "text_hidden", group=_TEXT),
        *norm("text_model.final_layer_norm", "text/norm", "text_width", group=_TEXT),
        one(
            "text_projection.weight",
            "text/proj/kernel",
            "text_width embed",
            DENSE,
            group=_TEXT,
        ),
        one("logit_scale", "logit_scale", "", group=_TEXT, apart="own"),
        carried("text_model.embeddings.position_ids"),
    ),
    anchors=("vision_model.pre_layrnorm.weight",),
)

# `CLIPVisionModel` of transformers 5, which has left out the name above.
HF_CLIP_VISION = Table(
    "hf-clip-vision",
    _hf_vision(""),
    anchors=("pre_layrnorm.weight", "embeddings.class_embedding"),
)
