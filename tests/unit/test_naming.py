"""Tables of names: what came in comes out, and what does not fit is named.

Public names and shapes are stated apart in `tests/public_names.py`; what becomes of
them is compared with explicit slices and transposes.
"""

import ml_dtypes
import numpy as np
import public_names as public
import pytest

from centermerge_jax import views
from centermerge_jax.errors import CheckpointError
from centermerge_jax.models.naming.clip import HF_CLIP, HF_CLIP_VISION, OPENCLIP
from centermerge_jax.models.naming.flax import (
    FLAX_BERT,
    FLAX_CLIP,
    FLAX_GPT2,
    FLAX_VIT,
)
from centermerge_jax.models.naming.text import HF_BERT, HF_GPT2, HF_ROBERTA
from centermerge_jax.models.naming.vit import HF_DINOV2, TIMM

BERT_HEAD = public.layer("classifier", public.CLASSES, public.WIDTH)
BERT_EXTRA = {
    "cls.predictions.bias": (public.WORDS,),
    "cls.predictions.transform.dense.weight": (public.WIDTH, public.WIDTH),
    "cls.seq_relationship.weight": (2, public.WIDTH),
    "bert.embeddings.position_ids": (1, public.CONTEXT),
}
GPT2_EXTRA = {
    "transformer.h.0.attn.bias": (1, 1, public.CONTEXT, public.CONTEXT),
    "transformer.h.1.attn.bias": (1, 1, public.CONTEXT, public.CONTEXT),
    "transformer.h.0.attn.masked_bias": (),
    "lm_head.weight": (public.WORDS, public.WIDTH),
    "score.weight": (public.CLASSES, public.WIDTH),
}

# Every form in which a family's checkpoints come: table, our table, names and shapes.
FORMS = {
    "openclip": (OPENCLIP, FLAX_CLIP, public.openclip()),
    "openclip, OpenAI's notes": (
        OPENCLIP,
        FLAX_CLIP,
        public.openclip() | {"input_resolution": (), "attn_mask": (14, 14)},
    ),
    "openclip, image encoder": (OPENCLIP, FLAX_CLIP, public.image_encoder()),
    "openclip, classifier": (
        OPENCLIP,
        FLAX_CLIP,
        public.image_encoder("image_encoder.model.")
        | public.layer("classification_head", public.CLASSES, public.EMBED),
    ),
    "hf-clip": (HF_CLIP, FLAX_CLIP, public.hf_clip()),
    "hf-clip, buffers": (
        HF_CLIP,
        FLAX_CLIP,
        public.hf_clip() | {"vision_model.embeddings.position_ids": (1, 10)},
    ),
    "hf-clip, vision": (HF_CLIP, FLAX_CLIP, public.hf_clip_vision()),
    "hf-clip, vision with projection": (
        HF_CLIP,
        FLAX_CLIP,
        public.hf_clip_vision()
        | {"visual_projection.weight": (public.EMBED, public.WIDTH)},
    ),
    "hf-clip-vision": (HF_CLIP_VISION, FLAX_CLIP, public.hf_clip_vision(prefix="")),
    "timm": (TIMM, FLAX_VIT, public.timm()),
    "timm, layer scale": (TIMM, FLAX_VIT, public.timm(layer_scale=True)),
    "timm, registers": (TIMM, FLAX_VIT, public.timm(registers=4)),
    "hf-dinov2": (HF_DINOV2, FLAX_VIT, public.hf_dinov2()),
    "hf-dinov2, registers": (HF_DINOV2, FLAX_VIT, public.hf_dinov2(registers=4)),
    "hf-dinov2, head": (
        HF_DINOV2,
        FLAX_VIT,
        public.hf_dinov2(prefix="dinov2.")
        | public.layer("classifier", public.CLASSES, 2 * public.WIDTH),
    ),
    "hf-bert": (HF_BERT, FLAX_BERT, public.hf_bert()),
    "hf-bert, head": (
        HF_BERT,
        FLAX_BERT,
        public.hf_bert(prefix="bert.") | BERT_HEAD | BERT_EXTRA,
    ),
    "hf-roberta": (HF_ROBERTA, FLAX_BERT, public.hf_roberta(prefix="")),
    "hf-roberta, head": (HF_ROBERTA, FLAX_BERT, public.hf_roberta()),
    "hf-gpt2": (HF_GPT2, FLAX_GPT2, public.hf_gpt2()),
    "hf-gpt2, heads": (
        HF_GPT2,
        FLAX_GPT2,
        public.hf_gpt2(prefix="transformer.") | GPT2_EXTRA,
    ),
}
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def same_bytes(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        got = found[name]
        assert (got.shape, got.dtype) == (x.shape, x.dtype), name
        assert got.tobytes() == x.tobytes(), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_what_came_in_comes_out(form, dtype):
    table, flax, shapes = FORMS[form]
    theirs = public.arrays(shapes, dtype)
    (prefix,) = table.prefixes(theirs)
    ours = table.read(theirs)
    same_bytes(table.write(ours, prefix=prefix), theirs)
    same_bytes(table.read(table.write(ours)), ours)
    assert all(leaf.flags.c_contiguous for leaf in ours.values())
    # Our names are a family like the others, in one piece or below a key.
    same_bytes(flax.read(ours), ours)
    below = {f"params/{name}": leaf for name, leaf in ours.items()}
    assert flax.prefixes(below) == ["params/"]
    same_bytes(flax.read(below), ours)
    same_bytes(flax.write(ours, prefix="params/"), below)


def halves(x, part):
    """Queries, keys or values of leaves that hold them one after the other."""
    i, length = "qkv".index(part), len(x) // 3
    return x[i * length : (i + 1) * length]


def test_openclip_leaves():
    x = public.arrays(public.openclip())
    ours = OPENCLIP.read(x)
    for tower, theirs in (("visual", "visual."), ("text", "")):
        block = f"{theirs}transformer.resblocks.1"
        for part in "qkv":
            mine = f"{tower}/blocks/1/attn/{part}"
            kernel = halves(x[f"{block}.attn.in_proj_weight"], part).T
            np.testing.assert_array_equal(ours[f"{mine}/kernel"], kernel, strict=True)
            bias = halves(x[f"{block}.attn.in_proj_bias"], part)
            np.testing.assert_array_equal(ours[f"{mine}/bias"], bias, strict=True)
        expect(
            ours,
            f"{tower}/blocks/1/attn/out/kernel",
            x[f"{block}.attn.out_proj.weight"].T,
        )
        expect(
            ours, f"{tower}/blocks/1/mlp/fc1/kernel", x[f"{block}.mlp.c_fc.weight"].T
        )
        expect(
            ours, f"{tower}/blocks/1/mlp/fc2/kernel", x[f"{block}.mlp.c_proj.weight"].T
        )
        expect(ours, f"{tower}/blocks/1/norm1/scale", x[f"{block}.ln_1.weight"])
        expect(ours, f"{tower}/blocks/1/norm2/bias", x[f"{block}.ln_2.bias"])
    conv = x["visual.conv1.weight"]
    kernel = np.empty((2, 2, 3, 8), np.float32)
    for row, column, channel, out in np.ndindex(kernel.shape):
        kernel[row, column, channel, out] = conv[out, channel, row, column]
    expect(ours, "visual/embed/patch/kernel", kernel)
    expect(ours, "visual/embed/class_token", x["visual.class_embedding"])
    expect(ours, "visual/embed/positions", x["visual.positional_embedding"])
    expect(ours, "visual/pre_norm/scale", x["visual.ln_pre.weight"])
    expect(ours, "visual/norm/bias", x["visual.ln_post.bias"])
    expect(ours, "visual/proj/kernel", x["visual.proj"])
    expect(ours, "text/embed/tokens/embedding", x["token_embedding.weight"])
    expect(ours, "text/embed/positions", x["positional_embedding"])
    expect(ours, "text/norm/scale", x["ln_final.weight"])
    expect(ours, "text/proj/kernel", x["text_projection"])
    expect(ours, "logit_scale", x["logit_scale"])


def expect(ours, name, array):
    np.testing.assert_array_equal(ours[name], array, strict=True)


def test_hugging_face_clip_leaves():
    x = public.arrays(public.hf_clip())
    ours = HF_CLIP.read(x)
    for tower, theirs in (("visual", "vision_model"), ("text", "text_model")):
        block, mine = f"{theirs}.encoder.layers.0", f"{tower}/blocks/0"
        for part in ("q", "k", "v", "out"):
            layer = f"{block}.self_attn.{part}_proj"
            expect(ours, f"{mine}/attn/{part}/kernel", x[f"{layer}.weight"].T)
            expect(ours, f"{mine}/attn/{part}/bias", x[f"{layer}.bias"])
        expect(ours, f"{mine}/mlp/fc2/kernel", x[f"{block}.mlp.fc2.weight"].T)
        expect(ours, f"{mine}/norm2/scale", x[f"{block}.layer_norm2.weight"])
    expect(ours, "visual/pre_norm/bias", x["vision_model.pre_layrnorm.bias"])
    expect(ours, "visual/proj/kernel", x["visual_projection.weight"].T)
    expect(ours, "text/proj/kernel", x["text_projection.weight"].T)
    expect(ours, "text/norm/bias", x["text_model.final_layer_norm.bias"])


def test_vision_transformer_leaves():
    x = public.arrays(public.timm(layer_scale=True))
    ours = TIMM.read(x)
    for part in "qkv":
        kernel = halves(x["blocks.1.attn.qkv.weight"], part).T
        expect(ours, f"blocks/1/attn/{part}/kernel", kernel)
        expect(
            ours,
            f"blocks/1/attn/{part}/bias",
            halves(x["blocks.1.attn.qkv.bias"], part),
        )
    expect(ours, "embed/class_token", x["cls_token"][0, 0])
    expect(ours, "embed/positions", x["pos_embed"][0])
    expect(ours, "embed/patch/bias", x["patch_embed.proj.bias"])
    expect(ours, "blocks/0/layer_scale2/scale", x["blocks.0.ls2.gamma"])
    expect(ours, "head/kernel", x["head.weight"].T)
    x = public.arrays(public.hf_dinov2())
    ours = HF_DINOV2.read(x)
    block = "encoder.layer.1"
    for part, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        kernel = x[f"{block}.attention.attention.{theirs}.weight"].T
        expect(ours, f"blocks/1/attn/{part}/kernel", kernel)
    expect(ours, "blocks/1/layer_scale1/scale", x[f"{block}.layer_scale1.lambda1"])
    expect(ours, "embed/class_token", x["embeddings.cls_token"][0, 0])
    expect(ours, "embed/positions", x["embeddings.position_embeddings"][0])
    expect(ours, "extra/embeddings.mask_token", x["embeddings.mask_token"])


def test_language_model_leaves():
    x = public.arrays(public.hf_bert(prefix="bert.") | BERT_HEAD)
    ours = HF_BERT.read(x)
    block = "bert.encoder.layer.1"
    for part, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        kernel = x[f"{block}.attention.self.{theirs}.weight"].T
        expect(ours, f"blocks/1/attn/{part}/kernel", kernel)
    norm1 = x[f"{block}.attention.output.LayerNorm.weight"]
    expect(ours, "blocks/1/norm1/scale", norm1)
    expect(ours, "blocks/1/norm2/scale", x[f"{block}.output.LayerNorm.weight"])
    expect(ours, "blocks/1/mlp/fc1/kernel", x[f"{block}.intermediate.dense.weight"].T)
    expect(ours, "pooler/kernel", x["bert.pooler.dense.weight"].T)
    expect(ours, "head/kernel", x["classifier.weight"].T)
    x = public.arrays(public.hf_gpt2())
    ours = HF_GPT2.read(x)
    for i, part in enumerate("qkv"):
        fused = x["h.1.attn.c_attn.weight"].reshape(8, 3, 8)
        expect(ours, f"blocks/1/attn/{part}/kernel", fused[:, i])
        bias = x["h.1.attn.c_attn.bias"].reshape(3, 8)
        expect(ours, f"blocks/1/attn/{part}/bias", bias[i])
    expect(ours, "blocks/0/mlp/fc1/kernel", x["h.0.mlp.c_fc.weight"])
    expect(ours, "blocks/0/attn/out/kernel", x["h.0.attn.c_proj.weight"])


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "model.model.", "image_encoder.", "0.clip."]
)
def test_prefixes_are_found_and_come_back(prefix):
    plain = public.arrays(public.openclip(depths=(1, 1)))
    theirs = {prefix + name: leaf for name, leaf in plain.items()}
    assert OPENCLIP.prefixes(theirs) == [prefix]
    ours = OPENCLIP.read(theirs)
    same_bytes(ours, OPENCLIP.read(plain))
    same_bytes(OPENCLIP.write(ours, prefix=prefix), theirs)


def test_the_prefix_that_a_family_puts_beside_a_head():
    shapes = public.hf_bert(prefix="bert.") | BERT_HEAD
    ours = HF_BERT.read(public.arrays(shapes))
    assert HF_BERT.write(ours, prefix=None).keys() == shapes.keys()
    bare = HF_BERT.read(public.arrays(public.hf_bert()))
    assert HF_BERT.write(bare, prefix=None).keys() == public.hf_bert().keys()


def test_an_image_encoder_keeps_what_is_left_of_its_text_tower():
    theirs = public.arrays(public.image_encoder())
    ours = OPENCLIP.read(theirs)
    assert {name for name in ours if not name.startswith("visual/")} == {
        "logit_scale",
        "extra/token_embedding.weight",
        "extra/positional_embedding",
        "extra/text_projection",
        "extra/ln_final.weight",
        "extra/ln_final.bias",
    }
    expect(ours, "extra/text_projection", theirs["model.text_projection"])
    whole = OPENCLIP.read(public.arrays(public.openclip()))
    with pytest.raises(CheckpointError, match="beside the leaf"):
        OPENCLIP.write(whole | {"extra/text_projection": ours["extra/text_projection"]})


def test_everything_wrong_is_listed():
    shapes = public.openclip()
    del shapes["visual.transformer.resblocks.0.ln_1.bias"]
    del shapes["transformer.resblocks.2.mlp.c_fc.weight"]
    del shapes["ln_final.weight"]
    shapes |= {
        "visual.trunk.weight": (3, 3),
        "visual.transformer.resblocks.00.ln_1.bias": (8,),
        "visual.transformer.resblocks.99999.ln_1.bias": (8,),
        "visual.ln_post.bias": (9,),
        "visual.conv1.weight": (8, 3, 2),
        "transformer.resblocks.1.attn.in_proj_weight": (35, 12),
        "transformer.resblocks.0.attn.out_proj.weight": (12, 13),
        "a\nb": (1,),
    }
    with pytest.raises(CheckpointError) as caught:
        OPENCLIP.read(public.arrays(shapes), where="model.bin")
    lines = str(caught.value).splitlines()
    assert lines[0] == "model.bin: 11 differences from openclip:"
    assert {line.strip() for line in lines[1:]} == {
        "visual.trunk.weight: has no counterpart",
        "visual.transformer.resblocks.00.ln_1.bias: has no counterpart",
        "visual.transformer.resblocks.99999.ln_1.bias: there are not that many blocks",
        r"'a\nb': has no counterpart",
        "visual.transformer.resblocks.0.ln_1.bias: is missing",
        "transformer.resblocks.2.mlp.c_fc.weight: is missing",
        "ln_final.weight: is missing",
        "visual.ln_post.bias: is [9], expected [8]",
        "visual.conv1.weight: is [8, 3, 2], expected (patch patch 3 width)",
        "transformer.resblocks.1.attn.in_proj_weight: is [35, 12], expected [36, 12]",
        "transformer.resblocks.0.attn.out_proj.weight: is [12, 13], expected [12, 12]",
    }


def test_a_block_in_the_middle_is_missed():
    shapes = public.hf_gpt2(depth=3)
    gap = {name: x for name, x in shapes.items() if not name.startswith("h.1.")}
    with pytest.raises(CheckpointError, match="12 differences") as caught:
        HF_GPT2.read(public.arrays(gap))
    assert "h.1.ln_1.weight: is missing" in str(caught.value)


def test_what_cannot_be_written_is_listed():
    ours = HF_GPT2.read(public.arrays(public.hf_gpt2()))
    ours["blocks/0/attn/k/kernel"] = ours["blocks/0/attn/k/kernel"].astype(np.float16)
    with pytest.raises(CheckpointError, match="made of several types") as caught:
        HF_GPT2.write(ours)
    assert "blocks/0/attn/k/kernel" in str(caught.value)
    del ours["blocks/0/attn/k/kernel"]
    ours["blocks/1/attn/v/kernel"] = ours["blocks/1/attn/v/kernel"].T[:4]
    ours["pooler/kernel"] = ours["blocks/1/mlp/fc1/kernel"]
    with pytest.raises(CheckpointError, match="3 differences from hf-gpt2") as caught:
        HF_GPT2.write(ours)
    assert "blocks/0/attn/k/kernel: is missing" in str(caught.value)
    assert "pooler/kernel: has no counterpart" in str(caught.value)
    assert "blocks/1/attn/v/kernel: is [4, 8], expected [8, 8]" in str(caught.value)


def test_one_of_two_norms_is_needed():
    shapes = public.timm()
    renamed = {name.replace("norm.", "fc_norm."): x for name, x in shapes.items()}
    renamed = {k: v for k, v in renamed.items() if not k.startswith("norm.")}
    ours = TIMM.read(public.arrays(renamed))
    assert "head/norm/scale" in ours
    for wrong in (
        shapes | renamed,
        renamed.keys() - {"fc_norm.weight", "fc_norm.bias"},
    ):
        chosen = {name: (shapes | renamed)[name] for name in wrong}
        with pytest.raises(CheckpointError, match="norm or fc_norm: exactly one"):
            TIMM.read(public.arrays(chosen))


def test_another_family_is_named_for_what_it_lacks():
    with pytest.raises(CheckpointError, match=r"not of the family openclip.*conv1"):
        OPENCLIP.read(public.arrays(public.hf_clip()))
    twice = public.hf_gpt2(prefix="a.") | public.hf_gpt2(prefix="b.")
    with pytest.raises(CheckpointError, match=r"several models.*'a\.', 'b\.'"):
        HF_GPT2.read(public.arrays(twice))


def test_which_extra_leaves_a_family_takes():
    assert HF_BERT.takes("extra/embeddings.position_ids")
    assert OPENCLIP.takes("extra/text_projection")
    assert HF_GPT2.takes("extra/h.11.attn.bias")
    assert FLAX_GPT2.takes("extra/whatever")
    assert not HF_CLIP.takes("extra/text_projection")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", [views.auto, views.fused])
def test_view_presets_know_our_names(form, preset):
    table, _, shapes = FORMS[form]
    ours = table.read(public.arrays(shapes))
    seen = views.resolve(ours, preset)
    matrices = {name for name, view in seen.items() if view is not None}
    assert matrices == {
        name
        for name, leaf in ours.items()
        if "/blocks/" in f"/{name}" and leaf.ndim == 2 and not name.startswith("extra/")
    }
    for name in matrices:
        view = seen[name]
        joined = "/attn/" in name and "/out/" not in name and preset is views.fused
        rows, columns = ours[name].shape
        assert view.joint_shape == (rows, columns * (3 if joined else 1)), name
