"""What an evaluator makes of a model: preprocessing, features and heads."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_transformers import random_tree

import centermerge_jax as cm
from centermerge_jax.checkpoints import Checkpoint
from centermerge_jax.convert import LoadedModel
from centermerge_jax.data import preprocess
from centermerge_jax.data.examples import Example
from centermerge_jax.data.pipeline import batches
from centermerge_jax.data.registry import find
from centermerge_jax.models import bert, clip, families, heads, vit
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.text import TextConfig
from centermerge_jax.models.vit import ViTConfig
from centermerge_jax.task_evaluation import (
    encoder,
    evaluate_tasks,
    open_tasks,
    read_heads,
)

VIT = ViTConfig(patch=14, grid=37, width=8, depth=1, heads=2)
BERT = BertConfig(vocabulary=9, context=6, width=8, depth=1, heads=2, hidden=16)


def loaded(config, *, params=None, family="timm", head=None, settings=None, path="x"):
    checkpoint = Checkpoint(
        path=Path(path),
        name="x",
        format="hub",
        leaves={},
        files={},
        fetch=lambda *_: iter([]),
    )
    return LoadedModel(
        params or {}, config, family, "", checkpoint, head or {}, {}, settings or {}
    )


def test_dinov2_sees_what_it_is_evaluated_with():
    found = encoder(loaded(VIT, family="hf-dinov2")).preparation
    assert (found.size, found.resized, found.filter) == (224, 256, "bicubic")
    assert encoder(loaded(VIT, family="hf-dinov2"), size=518).preparation.size == 518


def test_timm_says_how_its_models_see():
    stated = {
        "input_size": [3, 384, 384],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    config = ViTConfig(patch=16, grid=24, width=8, depth=1, heads=2)
    model = loaded(config, settings={"pretrained_cfg": stated})
    found = encoder(model).preparation
    assert (found.size, found.resized, found.filter) == (384, 384, "bilinear")
    assert found.mean == (0.1, 0.2, 0.3)
    small = ViTConfig(patch=16, grid=14, width=8, depth=1, heads=2)
    half = encoder(loaded(small)).preparation
    assert (half.size, half.resized, half.std) == (224, 248, (0.5, 0.5, 0.5))


def test_unknown_preprocessing():
    with pytest.raises(cm.ParameterError, match="is not known for flax names"):
        encoder(loaded(VIT, family="flax"))
    with pytest.raises(cm.ParameterError, match="is one of clip"):
        encoder(loaded(VIT), preprocessing="klip")


def test_features_of_images_are_those_of_the_model_on_normalised_pixels():
    config = ViTConfig(patch=2, grid=2, width=8, depth=1, heads=2)
    params = random_tree(vit.init(config, jax.random.key(0)))
    made = encoder(loaded(config))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    pixels = preprocess.normalise(images, made.preparation)
    np.testing.assert_allclose(
        made.features[8](params, images),
        vit.apply(params, pixels, config=config),
        atol=1e-6,
    )
    both = vit.class_and_mean(params, pixels, config=config)
    np.testing.assert_allclose(made.features[16](params, images), both, atol=1e-6)
    assert encoder(loaded(config)).features is made.features  # compiled once


def test_classes_of_a_head_are_brought_into_the_order_of_the_task():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8, 3)).astype(np.float32)
    names = ["contradiction", "neutral", "Entailment"]
    settings = {"id2label": {str(i): name for i, name in enumerate(names)}}
    head = {"kernel": kernel, "bias": np.float32([1, 2, 3])}
    mnli = find("mnli")  # entailment, neutral, contradiction
    model = loaded(BERT, head=head, settings=settings)
    found, remarks = read_heads([], model, [mnli], [8])
    np.testing.assert_array_equal(found["mnli"]["kernel"], kernel[:, ::-1])
    assert found["mnli"]["bias"].tolist() == [3, 2, 1]
    assert remarks == []
    two = {"dense": {"kernel": np.eye(8, dtype=np.float32)}, "out": head}
    found, _ = read_heads([], loaded(BERT, head=two, settings=settings), [mnli], [8])
    assert found["mnli"]["out"]["bias"].tolist() == [3, 2, 1]
    unnamed, remarks = read_heads([], loaded(BERT, head=head), [mnli], [8])
    assert unnamed["mnli"]["bias"].tolist() == [1, 2, 3]
    assert "another order" in remarks[0]


def test_a_head_for_other_features():
    model = loaded(BERT, head={"kernel": np.zeros((16, 3), np.float32)})
    with pytest.raises(cm.ParameterError, match=r"features of length 16.* have 8"):
        read_heads([], model, [find("mnli")], [8])


def test_heads_choose_what_they_see_of_a_vision_transformer():
    config = ViTConfig(patch=2, grid=2, width=8, depth=1, heads=2, layer_scale=True)
    params = random_tree(vit.init(config, jax.random.key(0)))
    made = encoder(loaded(config, family="hf-dinov2"), size=4)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 4, 4, 3), np.uint8)
    examples = [Example(image, i % 10) for i, image in enumerate(images)]
    inputs = {"mnist": batches(examples, batch=8, preprocessing=made.preparation)}
    # Resizing and cropping are not the matter here.
    seen = np.stack([preprocess.prepare(image, made.preparation) for image in images])
    pixels = preprocess.normalise(seen, made.preparation)
    task = find("mnist")
    for length, run in ((8, vit.apply), (16, vit.class_and_mean)):
        head = {"kernel": rng.normal(size=(length, 10)).astype(np.float32)}
        model = loaded(config, family="hf-dinov2", head=head)
        found, _ = read_heads([], model, [task], made.features)
        results = evaluate_tasks(made.features, params, [task], found, inputs)
        logits = np.asarray(run(params, pixels, config=config)) @ head["kernel"]
        answers = results["mnist"].answers.predictions
        assert answers.tolist() == logits.argmax(1).tolist()
    wide = loaded(config, head={"kernel": np.zeros((24, 10), np.float32)})
    with pytest.raises(cm.ParameterError, match="the model's have 8 or 16"):
        read_heads([], wide, [task], made.features)


def test_linear_heads_of_clip_take_normalised_features():
    vision = ViTConfig(patch=2, grid=2, width=8, depth=1, heads=2)
    text = TextConfig(vocabulary=9, context=5, width=8, depth=1, heads=2)
    config = clip.CLIPConfig(vision=vision, text=text, embed=4)
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(4, 10)).astype(np.float32)}
    head["bias"] = rng.normal(size=10).astype(np.float32)
    found, _ = read_heads([], loaded(config, head=head), [find("mnist")], [4])
    x = rng.normal(size=(3, 4)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    logits = heads.apply(jax.tree.map(jnp.asarray, found["mnist"]), jnp.asarray(x))
    np.testing.assert_allclose(logits, unit @ head["kernel"] + head["bias"], atol=1e-5)
    with pytest.raises(cm.ParameterError, match="scale"):
        heads.apply({"kernel": 0, "scale": 0}, jnp.asarray(x))


def test_a_model_of_images_and_a_task_of_texts(tmp_path):
    with pytest.raises(
        cm.ParameterError, match="the model takes images: mnli has none"
    ):
        open_tasks([find("mnli")], preprocess.CLIP, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("stated", "types", "offset"),
    [
        ("bert", 1, 0),
        ("roberta", 2, 2),
        ("camembert", 1, 2),
        ("data2vec-text", 1, 2),
        ("electra", 2, 0),
    ],
)
def test_relatives_of_bert_and_roberta(stated, types, offset):
    config = BertConfig(
        vocabulary=9, context=6, width=8, depth=1, heads=2, hidden=16, types=types,
        position_offset=offset,
    )  # fmt: skip
    tree = jax.eval_shape(lambda: bert.init(config, jax.random.key(0)))
    leaves = {
        "/".join(str(k.key) for k in path): np.zeros(x.shape, np.float32)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    settings = {"model_type": stated, "num_attention_heads": 2}
    found = families.model_config(leaves, settings)
    assert (found.position_offset, found.context) == (offset, 6)
