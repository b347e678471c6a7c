"""Families are recognised, and networks' shapes read, from names, shapes and files."""

import dataclasses

import numpy as np
import public_names as public
import pytest

from centermerge_jax.checkpoints import LeafInfo
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.models import families
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.clip import VIT_B_16, VIT_B_32, VIT_L_14
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.vit import ViTConfig

TEXTS = (512, 2048, 49408, 77)
OPENAI = {
    "ViT-B-32": (VIT_B_32, ((12, 12), (768, 3072, 50, 32), TEXTS, 512)),
    "ViT-B-16": (VIT_B_16, ((12, 12), (768, 3072, 197, 16), TEXTS, 512)),
    "ViT-L-14": (
        VIT_L_14,
        ((24, 12), (1024, 4096, 257, 14), (768, 3072, 49408, 77), 768),
    ),
}
B_32 = OPENAI["ViT-B-32"][1]
BERT_BASE = (12, (768, 3072, 30522, 512))
SMALL = (12, (384, 1536, 1370, 14))
MINILM = {"model_type": "bert", "num_attention_heads": 12, "layer_norm_eps": 1e-12}


def headers(shapes):
    """As a checkpoint knows its leaves before they are read."""
    return {
        name: LeafInfo(shape, np.dtype(np.float32)) for name, shape in shapes.items()
    }


WHOLE = {
    "openclip": ("", public.openclip(*B_32)),
    "openclip, image encoder": (
        "model.",
        {
            f"model.{name}": x
            for name, x in public.openclip(*B_32).items()
            if not name.startswith("transformer.")
        },
    ),
    "hf-clip": ("", public.hf_clip(*B_32)),
    "hf-clip, vision": ("", public.hf_clip_vision(12, (768, 3072, 50, 32))),
    "hf-clip-vision": ("", public.hf_clip_vision(12, (768, 3072, 50, 32), "")),
    "timm": ("", public.timm(12, (768, 3072, 197, 16))),
    "hf-dinov2": ("", public.hf_dinov2(*SMALL)),
    "hf-dinov2, registers": ("", public.hf_dinov2(*SMALL, registers=4)),
    "hf-dinov2, head": ("dinov2.", public.hf_dinov2(*SMALL, prefix="dinov2.")),
    "hf-bert": ("", public.hf_bert(*BERT_BASE)),
    "hf-bert, head": (
        "bert.",
        public.hf_bert(*BERT_BASE, prefix="bert.") | public.layer("classifier", 3, 768),
    ),
    "hf-roberta": ("", public.hf_roberta(12, (768, 3072, 50265, 514), prefix="")),
    "hf-roberta, head": ("roberta.", public.hf_roberta(12, (768, 3072, 50265, 514))),
    "hf-gpt2": ("", public.hf_gpt2(12, (768, 3072, 50257, 1024))),
    "hf-gpt2, heads": (
        "transformer.",
        public.hf_gpt2(12, (768, 3072, 50257, 1024), prefix="transformer.")
        | {"lm_head.weight": (50257, 768)},
    ),
}


@pytest.mark.parametrize("form", WHOLE)
def test_families_are_recognised(form):
    prefix, shapes = WHOLE[form]
    leaves = headers(shapes)
    family, found = families.detect(leaves)
    assert (family.name, found) == (form.split(",")[0], prefix)
    match = family.table.match(leaves)
    ours = {
        name: LeafInfo((), np.dtype(np.float32))
        for line in match.found
        for name in line.ours
    }
    flax, found = families.detect([f"params/{name}" for name in ours])
    assert (flax.name, flax.kind, found) == ("flax", family.kind, "params/")


def test_names_alone_are_enough_but_where_two_families_share_them():
    for form, (prefix, shapes) in WHOLE.items():
        if form != "hf-roberta":
            family, found = families.detect(list(shapes))
            assert (family.name, found) == (form.split(",")[0], prefix)
    bare = headers(public.hf_bert(types=1))
    assert families.detect(bare)[0].name == "hf-roberta"
    assert families.detect(bare, {"model_type": "bert"})[0].name == "hf-bert"
    assert families.detect(list(bare))[0].name == "hf-bert"


def test_unknown_and_doubled_models_are_refused():
    with pytest.raises(CheckpointError, match=r"x\.bin: .*no family known.*conv1"):
        families.detect(["conv1.weight", "fc.bias"], where="x.bin")
    twice = [*public.openclip(), *(f"ema.{name}" for name in public.openclip())]
    with pytest.raises(CheckpointError, match=r"several models.*'', 'ema\.'"):
        families.detect(twice)
    with pytest.raises(ParameterError, match="no family 'clip'; there are openclip"):
        families.find("clip", "clip")
    with pytest.raises(ParameterError, match="timm cannot hold a model of the kind cl"):
        families.find("timm", "clip")


@pytest.mark.parametrize("name", OPENAI)
def test_openai_shapes(name):
    config, sizes = OPENAI[name]
    assert families.model_config(headers(public.openclip(*sizes))) == config
    encoder = headers(
        public.image_encoder(
            **dict(zip(("depths", "vision", "text", "embed"), sizes, strict=True))
        )
    )
    assert families.model_config(encoder) == config


def test_settings_of_clip_at_hugging_face():
    leaves = headers(public.hf_clip(*B_32))
    # New files leave out what is the default, such as the number of the end token.
    said = {"model_type": "clip", "text_config": {}, "vision_config": {}}
    ends = {None: 49407, 2: None, 7: 7}
    for stated, end in ends.items():
        text = {} if stated is None else {"eos_token_id": stated}
        found = families.model_config(leaves, said | {"text_config": text})
        expected = dataclasses.replace(VIT_B_32.text, end_token=end)
        assert found == dataclasses.replace(VIT_B_32, text=expected)
    large = headers(public.hf_clip(*OPENAI["ViT-L-14"][1]))
    towers = {
        "vision_config": {"num_attention_heads": 16, "hidden_act": "gelu"},
        "text_config_dict": {"num_attention_heads": 12, "eos_token_id": 2},
        "text_config": {"num_attention_heads": 8},
    }
    found = families.model_config(large, said | towers)
    vision = dataclasses.replace(VIT_L_14.vision, activation="gelu")
    assert found == dataclasses.replace(VIT_L_14, vision=vision)
    with pytest.raises(
        CheckpointError, match="num_attention_heads: is 12, which does not div"
    ):
        families.model_config(large, said)


def test_settings_of_open_clip():
    leaves = headers(public.openclip())
    model = {
        "embed_dim": 6,
        "vision_cfg": {"width": 8, "head_width": 4, "layers": 2, "patch_size": 2},
        "text_cfg": {"width": 12, "heads": 3, "layers": 3, "context_length": 14},
    }
    found = families.model_config(leaves, {"model_cfg": model})
    assert (found.vision.heads, found.text.heads) == (2, 3)
    assert {found.vision.activation, found.text.activation} == {"gelu"}
    found = families.model_config(leaves, {"model_cfg": model | {"quick_gelu": True}})
    assert {found.vision.activation, found.text.activation} == {"quick_gelu"}


def test_vision_transformers():
    leaves = headers(public.timm(12, (768, 3072, 197, 16)))
    assert families.model_config(leaves) == ViTConfig()
    # timm's own file is of no use; it says nothing of what shapes do not tell.
    assert families.model_config(leaves, {"architecture": "x"}) == ViTConfig()
    small = headers(public.hf_dinov2(*SMALL))
    expected = ViTConfig(patch=14, grid=37, width=384, heads=6, layer_scale=True)
    assert families.model_config(small) == expected
    said = {"model_type": "dinov2", "num_attention_heads": 3, "layer_norm_eps": 1e-5}
    assert families.model_config(small, said) == dataclasses.replace(
        expected, heads=3, epsilon=1e-5
    )
    headless = {k: v for k, v in leaves.items() if k != "cls_token"}
    headless["pos_embed"] = LeafInfo((1, 196, 768), np.dtype(np.float32))
    assert families.model_config(headless) == ViTConfig(class_token=False)
    headless["pos_embed"] = LeafInfo((1, 197, 768), np.dtype(np.float32))
    with pytest.raises(CheckpointError, match="197 positions are no square"):
        families.model_config(headless)
    registers = headers(public.timm(12, (384, 1536, 1370, 14), registers=4))
    assert families.model_config(registers) == ViTConfig(
        patch=14, grid=37, width=384, heads=6, class_position=False, registers=4
    )
    theirs = headers(public.hf_dinov2(*SMALL, registers=4))
    with_registers = dataclasses.replace(expected, registers=4)
    assert families.model_config(theirs) == with_registers
    said = families.hf_config(with_registers)
    assert said["architectures"] == ["Dinov2WithRegistersModel"]
    with pytest.raises(CheckpointError, match="num_register_tokens: is 4, but 0"):
        families.model_config(small, said)


def test_language_models():
    base = headers(public.hf_bert(*BERT_BASE))
    assert families.model_config(base) == BertConfig()
    minilm = headers(public.hf_bert(6, (384, 1536, 30522, 512), pooler=False))
    with pytest.raises(
        CheckpointError, match=r"num_attention_heads: is not known.*384"
    ):
        families.model_config(minilm)
    expected = BertConfig(width=384, depth=6, hidden=1536, pooler=False)
    assert families.model_config(minilm, MINILM) == expected
    roberta = headers(public.hf_roberta(12, (768, 3072, 50265, 514)))
    expected = BertConfig(
        vocabulary=50265, types=1, epsilon=1e-5, position_offset=2, pooler=False
    )
    assert families.model_config(roberta) == expected
    gpt2 = headers(public.hf_gpt2(12, (768, 3072, 50257, 1024)))
    assert families.model_config(gpt2) == GPT2Config()
    assert families.model_config(gpt2, {"model_type": "gpt2", "n_head": 6}).heads == 6


def test_settings_that_contradict_the_leaves_are_listed():
    leaves = headers(public.hf_bert(2, (16, 64, 33, 14)))
    said = {
        "model_type": "bert",
        "num_attention_heads": 3,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "hidden_act": "relu",
        "position_embedding_type": "relative_key",
        "vocab_size": 33,
    }
    with pytest.raises(CheckpointError) as caught:
        families.model_config(leaves, said, where="here")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "here: 5 problems with the configuration:"
    assert set(lines[1:]) == {
        "hidden_size: is 32, but 16 in the model",
        "num_hidden_layers: is 3, but 2 in the model",
        "hidden_act: is 'relu', but 'gelu' in the model",
        "position_embedding_type: is 'relative_key', but 'absolute' in the model",
        "num_attention_heads: is 3, which does not divide the width, 16",
    }


@pytest.mark.parametrize("form", [f for f in WHOLE if not f.startswith("openclip")])
def test_settings_are_written_as_they_are_read(form):
    leaves = headers(WHOLE[form][1])
    family, _ = families.detect(leaves)
    config = families.model_config(leaves)
    if family.kind == "clip":
        text = dataclasses.replace(config.text, end_token=49407)
        config = dataclasses.replace(
            config, text=text if form == "hf-clip" else config.text
        )
    match = family.table.match(leaves)
    shapes = {name: (2, 3) for line in match.found for name in line.ours}
    said = families.hf_config(config, shapes)
    assert families.model_config(leaves, said) == config
    if family.model_types:
        assert said["model_type"] in family.model_types
    assert ("id2label" in said) == (
        form in ("timm", "hf-bert, head", "hf-roberta, head")
    )


def test_what_hugging_face_is_told_of_parts():
    config = families.model_config(headers(WHOLE["hf-clip"][1]))
    assert families.hf_config(config)["architectures"] == ["CLIPModel"]
    visual = {"visual/embed/class_token": (768,)}
    said = families.hf_config(config, visual)
    assert said["architectures"] == ["CLIPVisionModel"]
    assert (said["image_size"], said["hidden_act"]) == (224, "quick_gelu")
    projected = visual | {"visual/proj/kernel": (768, 512)}
    said = families.hf_config(config, projected)
    assert said["architectures"] == ["CLIPVisionModelWithProjection"]
    dinov2 = families.model_config(headers(WHOLE["hf-dinov2"][1]))
    bare = families.hf_config(dinov2, {"embed/class_token": (384,)})
    assert (bare["use_mask_token"], bare["mlp_ratio"]) == (False, 4)
    labels = families.hf_config(BertConfig(), {"head/kernel": (768, 2)})
    assert labels["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert labels["architectures"] == ["BertForSequenceClassification"]
