"""Zero-shot heads against a plain statement, and files that know their origin."""

import functools
import json
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from centermerge_jax.data.tokenizers import Tokens
from centermerge_jax.errors import CheckpointError, DataError, ParameterError
from centermerge_jax.evaluator import evaluate_heads
from centermerge_jax.models import clip
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.heads import apply as logits
from centermerge_jax.models.text import TextConfig
from centermerge_jax.models.vit import ViTConfig
from centermerge_jax.zero_shot import (
    Heads,
    Prompts,
    build_heads,
    text_digest,
)
from centermerge_jax.zero_shot_files import check_heads, load_heads, save_heads

CONFIG = CLIPConfig(
    vision=ViTConfig(patch=4, grid=2, width=8, depth=1, heads=2, pre_norm=True),
    text=TextConfig(vocabulary=32, context=9, width=16, depth=1, heads=2),
    embed=6,
)
ENCODE = jax.jit(functools.partial(clip.text_features, config=CONFIG))
TASKS = {
    "pets": Prompts(("cat", "dog", "fox"), ("a photo of a {}.", "my {}"), "somewhere"),
    "digits": Prompts(("one", "two"), ("{}",)),
}


@dataclass
class Letters:
    """A tokeniser of letters: start, at most seven letters, end, zeros."""

    digest: str = "letters"

    def __call__(self, texts):
        ids = np.zeros((len(texts), 9), np.int32)
        for row, text in zip(ids, texts, strict=True):
            letters = [1 + (ord(c) - 96) % 28 for c in text.replace(" ", "")[-7:]]
            row[: len(letters) + 2] = [30, *letters, 31]
        mask = (ids > 0).astype(np.int32)
        return Tokens(ids, mask, np.zeros_like(ids))


@pytest.fixture(scope="module")
def model():
    params = jax.jit(functools.partial(clip.init, CONFIG))(jax.random.key(0))
    return SimpleNamespace(params=params, config=CONFIG)


@pytest.fixture(scope="module")
def heads(model) -> Heads:
    return build_heads(model, Letters(), TASKS, batch=4)


def features(model, texts):
    ids = jnp.asarray(Letters()(texts).ids)
    return ENCODE(model.params, ids)


def stated(model, prompts):
    """Normalise each embedding, average, normalise: one class at a time."""
    columns = []
    for name in prompts.classes:
        texts = [template.replace("{}", name) for template in prompts.templates]
        found = np.asarray(features(model, texts), np.float64)
        mean = (found / np.linalg.norm(found, axis=1, keepdims=True)).mean(axis=0)
        columns.append(mean / np.linalg.norm(mean))
    return np.stack(columns, axis=1)


def test_heads_are_the_plain_statement(model, heads):
    for task, prompts in TASKS.items():
        kernel = heads.kernels[task]
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, stated(model, prompts), atol=2e-6)
    assert heads.logit_scale == float(model.params["logit_scale"])
    assert heads.prompts == TASKS
    # Averaging before normalising would be something else.
    raw = features(model, list(TASKS["pets"].texts()))
    mean = np.asarray(raw).reshape(3, 2, -1).mean(axis=1)
    other = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
    assert abs(other - heads.kernels["pets"]).max() > 1e-5


def test_images_are_classified_by_scaled_cosines(model, heads):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 8, 8, 3)).astype(np.float32)
    batch = SimpleNamespace(
        inputs=images,
        labels=np.arange(6, dtype=np.int32) % 3,
        valid=np.ones(6, bool),
        index=np.arange(6),
    )

    def encode(params, images):
        return clip.image_features(params, images, config=CONFIG)

    found = evaluate_heads(
        encode,
        model.params,
        [batch],
        {"pets": heads.head("pets")},
        apply_head=logits,
        name="pets",
        classes=3,
    )["pets"]
    x = np.asarray(encode(model.params, jnp.asarray(images)), np.float64)
    cosines = x / np.linalg.norm(x, axis=1, keepdims=True) @ heads.kernels["pets"]
    odds = np.exp(cosines / 0.07)
    loss = -np.log((odds / odds.sum(axis=1, keepdims=True))[np.arange(6), batch.labels])
    np.testing.assert_array_equal(found.answers.predictions, cosines.argmax(axis=1))
    assert found.negative_log_likelihood == pytest.approx(loss.mean(), rel=1e-4)
    half = logits(
        jax.tree.map(jnp.asarray, heads.head("pets")), jnp.asarray(x, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32


def test_batches_have_one_shape(model, heads, monkeypatch):
    traces = []
    whole = clip.text_features

    def counting(params, ids, *, config):
        traces.append((ids.shape, set(params)))
        return whole(params, ids, config=config)

    monkeypatch.setattr(clip, "text_features", counting)
    found = build_heads(model, Letters(), TASKS, batch=5)
    assert traces == [((5, 9), {"text"})]
    for task in TASKS:
        np.testing.assert_allclose(found.kernels[task], heads.kernels[task], atol=2e-6)


def changed(model, path, value) -> Any:
    """The model with one leaf filled with a value."""
    params = jax.tree_util.tree_map_with_path(
        lambda p, x: (
            jnp.full_like(x, value)
            if jax.tree_util.keystr(p, simple=True, separator="/") == path
            else x
        ),
        model.params,
    )
    return SimpleNamespace(params=params, config=model.config)


def test_the_digest_is_of_the_text_encoder_s_values(model, heads):
    assert heads.text_digest == text_digest(model.params)
    other = changed(model, "text/norm/scale", 2.0)
    assert text_digest(other.params) != heads.text_digest
    images = changed(model, "visual/norm/scale", 2.0)
    assert text_digest(images.params) == heads.text_digest
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    assert text_digest(half) == text_digest(single) != heads.text_digest


def test_half_precision_is_computed_in_float32(model, heads):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    found, expected = (
        build_heads(SimpleNamespace(params=p, config=CONFIG), Letters(), TASKS)
        for p in (half, single)
    )
    np.testing.assert_array_equal(found.kernels["pets"], expected.kernels["pets"])
    assert abs(found.kernels["pets"] - heads.kernels["pets"]).max() > 0


def test_encoders_that_cannot_make_heads(model):
    params = {name: model.params[name] for name in ("visual", "logit_scale")}
    images = SimpleNamespace(params=params, config=CONFIG)
    with pytest.raises(ParameterError, match="lacks text: give the whole CLIP model"):
        build_heads(images, Letters(), TASKS)
    other = SimpleNamespace(params=model.params, config=CONFIG.vision)
    with pytest.raises(ParameterError, match="a CLIP model; this one is a ViT"):
        build_heads(other, Letters(), TASKS)
    broken = changed(model, "text/proj/kernel", np.nan)
    with pytest.raises(DataError, match=r"pets: the embeddings of 3 .*first: 'cat'"):
        build_heads(broken, Letters(), TASKS)
    empty = changed(model, "text/proj/kernel", 0.0)
    with pytest.raises(DataError, match=r"pets: .*zero or not finite"):
        build_heads(empty, Letters(), TASKS)


def test_prompts_that_cannot_make_heads(model):
    wrong = {
        "a": Prompts((), ("{}",)),
        "b": Prompts(("cat",), ("a photo", "{} and {}", "a {}")),
    }
    message = re.escape(
        "3 problems with prompts:\n"
        "  a: has no class, or no template\n"
        "  b: 'a photo' has not one {}\n"
        "  b: '{} and {}' has not one {}"
    )
    with pytest.raises(ParameterError, match=message):
        build_heads(model, Letters(), wrong)
    with pytest.raises(ParameterError, match="1 problem with prompts: no task"):
        build_heads(model, Letters(), {})


# --- files


def test_files_come_back_as_they_were(heads, tmp_path):
    path = tmp_path / "heads.safetensors"
    save_heads(path, heads)
    found = load_heads(path)
    assert found.prompts == heads.prompts
    assert found.logit_scale == heads.logit_scale
    assert found.text_digest == heads.text_digest
    assert found.tokenizer_digest == heads.tokenizer_digest
    for task, kernel in heads.kernels.items():
        np.testing.assert_array_equal(found.kernels[task], kernel)
    with safe_open(path, "np") as file:
        assert sorted(file.keys()) == ["digits/kernel", "pets/kernel"]
    save_heads(tmp_path / "again.safetensors", heads)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        save_heads(path, heads)
    with pytest.raises(CheckpointError, match=r"ends in .safetensors"):
        save_heads(tmp_path / "heads", heads)


def rewritten(heads, path, kernels, **changes):
    """A file of heads with other leaves or facts."""
    save_heads(path, heads)
    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["zero_shot_heads"])
    path.unlink()
    text = json.dumps({**facts, **changes})
    save_file(kernels, path, metadata={"zero_shot_heads": text})
    return path


def test_faults_of_a_file_are_listed(heads, tmp_path):
    path = tmp_path / "heads.safetensors"
    kernels = {
        "pets/kernel": heads.kernels["pets"][:, :2].copy(),
        "cars/kernel": np.zeros((6, 2), np.float32),
    }
    rewritten(heads, path, kernels, logit_scale=float("nan"))
    message = re.escape(
        f"{path}: 4 faults:\n"
        "  the logit scale is nan\n"
        "  digits: has no kernel\n"
        "  cars/kernel: is not a head\n"
        "  pets: is float32[6, 2], expected float32 with 3 columns"
    )
    with pytest.raises(CheckpointError, match=message):
        load_heads(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * np.nan, "pets: has values that are not finite"),
        (lambda x: x.astype(np.float16), r"pets: is float16\[6, 3\]"),
        (lambda x: x[0], r"pets: is float32\[3\]"),
    ],
)
def test_kernels_that_cannot_be_used(heads, tmp_path, change, message):
    kernels = {f"{task}/kernel": x for task, x in heads.kernels.items()}
    kernels["pets/kernel"] = change(kernels["pets/kernel"]).copy()
    path = rewritten(heads, tmp_path / "heads.safetensors", kernels)
    with pytest.raises(CheckpointError, match=f"1 fault: {message}"):
        load_heads(path)


def test_other_files_are_no_heads(heads, tmp_path):
    save_file({"x": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no file of zero-shot heads"):
        load_heads(tmp_path / "model.safetensors")
    path = rewritten(heads, tmp_path / "heads.safetensors", {}, prompts=[])
    with pytest.raises(CheckpointError, match="is no file of zero-shot heads"):
        load_heads(path)


# --- do they fit?


def test_heads_are_checked_against_tasks_and_model(heads):
    classes = {task: prompts.classes for task, prompts in TASKS.items()}
    digest = heads.text_digest
    assert check_heads(heads, classes, embed=6, digest=digest) == []
    assert check_heads(heads, {"digits": ["one", "two"]}, embed=6) == []
    (remark,) = check_heads(heads, classes, embed=6, digest="0" * 64)
    assert remark.endswith(f"than the model's own: {digest[:12]}, not 000000000000")


@pytest.mark.parametrize(
    ("classes", "embed", "message"),
    [
        ({"cars": ("a",)}, 6, "cars: no head; there are pets, digits"),
        (
            {"digits": ("one", "two")},
            8,
            "for features of 6 numbers, the model's have 8",
        ),
        ({"digits": ("two", "one")}, 6, "digits: the classes are in another order"),
        ({"digits": ("one",)}, 6, "digits: 2 classes, expected 1"),
        ({"pets": ("cat", "cow", "fox")}, 6, "pets: class 1 is 'dog', expected 'cow'"),
    ],
)
def test_heads_that_do_not_fit(heads, classes, embed, message):
    with pytest.raises(CheckpointError, match=f"1 problem with the heads.*{message}"):
        check_heads(heads, classes, embed=embed)


def test_texts_are_class_by_class():
    assert list(Prompts(("a{b}", "c"), ("x {}", "{}!")).texts()) == [
        *("x a{b}", "a{b}!", "x c", "c!"),
    ]
