"""Names of vision transformers: timm's, which AugReg's weights have, and DINOv2's."""

from centermerge_jax.models.naming.layouts import ROW, TOKEN
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

_BLOCK = "blocks/{i}"


def _mlp(theirs: str) -> tuple[Pair, ...]:
    return (
        *dense(f"{theirs}.mlp.fc1", f"{_BLOCK}/mlp/fc1", "width", "hidden"),
        *dense(f"{theirs}.mlp.fc2", f"{_BLOCK}/mlp/fc2", "hidden", "width"),
    )


def _layer_scales(first: str, second: str, *, group: str = "") -> tuple[Pair, ...]:
    return (
        one(first, f"{_BLOCK}/layer_scale1/scale", "width", group=group),
        one(second, f"{_BLOCK}/layer_scale2/scale", "width", group=group),
    )


TIMM = Table(
    "timm",
    (
        one("cls_token", "embed/class_token", "width", TOKEN, group="class_token"),
        one(
            "reg_token",
            "embed/register_tokens",
            "registers width",
            ROW,
            group="registers",
        ),
        one("pos_embed", "embed/positions", "tokens width", ROW),
        patches("patch_embed.proj", "embed/patch"),
        one("patch_embed.proj.bias", "embed/patch/bias", "width", group="patch_bias"),
        *norm("norm_pre", "pre_norm", "width", group="pre_norm"),
        *norm("blocks.{i}.norm1", f"{_BLOCK}/norm1", "width"),
        *fused(
            "blocks.{i}.attn.qkv.weight",
            "blocks.{i}.attn.qkv.bias",
            f"{_BLOCK}/attn",
            "width",
        ),
        *dense("blocks.{i}.attn.proj", f"{_BLOCK}/attn/out", "width", "width"),
        *_layer_scales(
            "blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma", group="layer_scale"
        ),
        *norm("blocks.{i}.norm2", f"{_BLOCK}/norm2", "width"),
        *_mlp("blocks.{i}"),
        *norm("norm", "norm", "width", group="norm"),
        # Where the mean of the tokens is the feature, it is normalised, not they.
        *norm("fc_norm", "head/norm", "width", group="fc_norm"),
        *dense("head", "head", "features", "classes", group="head"),
        # The layer before the head of AugReg's weights for 21,843 classes.
        carried("pre_logits.fc.weight"),
        carried("pre_logits.fc.bias"),
    ),
    anchors=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    choices=(("norm", "fc_norm"),),
)

_DINOV2_BLOCK = "encoder.layer.{i}"

HF_DINOV2 = Table(
    "hf-dinov2",
    (
        one("embeddings.cls_token", "embed/class_token", "width", TOKEN),
        one(
            "embeddings.register_tokens",
            "embed/register_tokens",
            "registers width",
            ROW,
            group="registers",
        ),
        one("embeddings.position_embeddings", "embed/positions", "tokens width", ROW),
        patches("embeddings.patch_embeddings.projection", "embed/patch"),
        one("embeddings.patch_embeddings.projection.bias", "embed/patch/bias", "width"),
        *norm(f"{_DINOV2_BLOCK}.norm1", f"{_BLOCK}/norm1", "width"),
        *(
            pair
            for part in ("query", "key", "value")
            for pair in dense(
                f"{_DINOV2_BLOCK}.attention.attention.{part}",
                f"{_BLOCK}/attn/{part[0]}",
                "width",
                "width",
            )
        ),
        *dense(
            f"{_DINOV2_BLOCK}.attention.output.dense",
            f"{_BLOCK}/attn/out",
            "width",
            "width",
        ),
        *_layer_scales(
            f"{_DINOV2_BLOCK}.layer_scale1.lambda1",
            f"{_DINOV2_BLOCK}.layer_scale2.lambda1",
        ),
        *norm(f"{_DINOV2_BLOCK}.norm2", f"{_BLOCK}/norm2", "width"),
        *_mlp(_DINOV2_BLOCK),
        *norm("layernorm", "norm", "width"),
        # It sees the class token beside the mean of the patches: two widths.
        *dense("classifier", "head", "features", "classes", group="head", rooted=True),
        carried("embeddings.mask_token"),  # of pretraining
    ),
    anchors=(
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.layer_scale1.lambda1",
    ),
    headed="dinov2.",
)
