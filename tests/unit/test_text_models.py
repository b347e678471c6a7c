"""CLIP, BERT, RoBERTa and GPT-2 against NumPy in float64, and what masks mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformers as reference
import pytest

from centermerge_jax.errors import ParameterError
from centermerge_jax.models import bert, clip, gpt2, heads, text
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.text import TextConfig
from centermerge_jax.models.vit import ViTConfig

CLIP = CLIPConfig(
    vision=ViTConfig(
        patch=2,
        grid=2,
        width=8,
        depth=2,
        heads=2,
        epsilon=1e-5,
        patch_bias=False,
        pre_norm=True,
        activation="quick_gelu",
    ),
    text=TextConfig(vocabulary=20, context=7, width=12, depth=2, heads=3),
    embed=6,
)
BERT = BertConfig(
    vocabulary=20, context=7, width=12, depth=2, heads=3, hidden=20, types=2
)
ROBERTA = BertConfig(
    vocabulary=20,
    context=7,
    width=12,
    depth=2,
    heads=3,
    hidden=20,
    types=1,
    epsilon=1e-5,
    position_offset=2,
    pooler=False,
)
GPT2 = GPT2Config(vocabulary=20, context=7, width=12, depth=2, heads=3)

# 19 is the end token; what stands behind it is padding.
IDS = jnp.array([[18, 3, 4, 19, 0, 0], [18, 5, 19, 0, 0, 0], [18, 1, 2, 3, 4, 19]])
MASK = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
LENGTHS = np.array([4, 3, 6])


@functools.cache
def params_of(config):
    module = {CLIPConfig: clip, BertConfig: bert, GPT2Config: gpt2}[type(config)]
    return reference.random_tree(module.init(config, jax.random.key(0)))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def numpy_text(params, ids):
    p = reference.as_float64(params)
    x = p["embed"]["tokens"]["embedding"][ids]
    x = x + p["embed"]["positions"][: ids.shape[1]]
    seen = np.tril(np.ones((ids.shape[1],) * 2, bool))
    how = {"heads": 3, "epsilon": 1e-5, "activation": reference.quick_gelu}
    x = reference.blocks(x, p["blocks"], seen=seen, **how)
    return reference.norm(x, p["norm"], 1e-5)


def test_image_features_of_clip():
    params = params_of(CLIP)
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    wanted = reference.vit(params["visual"], images, CLIP.vision, reference.quick_gelu)
    kernel = np.asarray(params["visual"]["proj"]["kernel"], np.float64)
    close(clip.image_features(params, images, config=CLIP), wanted @ kernel)
    alone = {"visual": params["visual"]}
    close(clip.image_features(alone, images, config=CLIP), wanted @ kernel)


@pytest.mark.parametrize("end_token", [None, 19])
def test_text_features_of_clip(end_token):
    params = params_of(CLIP)
    config = CLIPConfig(
        vision=CLIP.vision,
        text=TextConfig(
            vocabulary=20, context=7, width=12, depth=2, heads=3, end_token=end_token
        ),
        embed=6,
    )
    ends = numpy_text(params["text"], np.asarray(IDS))[np.arange(3), LENGTHS - 1]
    wanted = ends @ np.asarray(params["text"]["proj"]["kernel"], np.float64)
    features = jax.jit(functools.partial(clip.text_features, config=config))
    close(features(params, IDS), wanted)


def test_the_end_of_a_text_is_the_first_of_its_tokens():
    config = TextConfig(
        vocabulary=20, context=7, width=12, depth=2, heads=3, end_token=3
    )
    params = {k: v for k, v in params_of(CLIP)["text"].items() if k != "proj"}
    ids = jnp.array([[18, 3, 4, 3], [18, 1, 2, 4]])
    found = text.apply(params, ids, config=config)
    close(found[0], numpy_text(params, np.asarray(ids))[0, 1])
    assert np.isnan(found[1]).all()  # it has no end


def numpy_bert(params, ids, mask, config):
    p = reference.as_float64(params)
    x = p["embed"]["tokens"]["embedding"][ids]
    for row, real in enumerate(mask):
        for column in range(len(real)):
            place = column
            if config.position_offset:
                place = 2 + int(real[:column].sum()) if real[column] else 1
            x[row, column] += p["embed"]["positions"][place]
    x = x + p["embed"]["types"]["embedding"][0]
    x = reference.norm(x, p["embed"]["norm"], config.epsilon)
    how = {"heads": 3, "epsilon": config.epsilon, "activation": reference.gelu}
    seen = np.broadcast_to(mask[:, None, :] != 0, (*ids.shape, ids.shape[1]))
    return reference.blocks(x, p["blocks"], seen=seen, norm_first=False, **how)


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=["bert", "roberta"])
def test_hidden_states_of_bert(config):
    params = params_of(config)
    found = bert.apply(params, IDS, MASK, config=config)
    real = np.asarray(MASK) != 0
    wanted = numpy_bert(params, np.asarray(IDS), np.asarray(MASK), config)
    close(np.asarray(found)[real], wanted[real])
    means = np.stack([x[:n].mean(0) for x, n in zip(wanted, LENGTHS, strict=True)])
    close(bert.mean_pool(found, MASK), means)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    close(bert.sentence_embeddings(params, IDS, MASK, config=config), unit)


def test_pooler_and_types_of_bert():
    params = params_of(BERT)
    hidden = bert.apply(params, IDS, MASK, config=BERT)
    p = reference.as_float64(params["pooler"])
    wanted = np.tanh(np.asarray(hidden, np.float64)[:, 0] @ p["kernel"] + p["bias"])
    close(bert.pool(params, hidden), wanted)
    other = bert.apply(params, IDS, MASK, types=jnp.ones_like(IDS), config=BERT)
    assert np.abs(other - hidden).max() > 0.01
    with pytest.raises(ParameterError, match="have no pooler"):
        bert.pool(params_of(ROBERTA), hidden)


def test_hidden_states_of_gpt2():
    params = params_of(GPT2)
    p = reference.as_float64(params)
    ids = np.asarray(IDS)
    x = p["embed"]["tokens"]["embedding"][ids]
    x = x + p["embed"]["positions"][: ids.shape[1]]
    seen = np.tril(np.ones((ids.shape[1],) * 2, bool))
    how = {"heads": 3, "epsilon": 1e-5, "activation": reference.gelu_tanh}
    x = reference.blocks(x, p["blocks"], seen=seen, **how)
    wanted = reference.norm(x, p["norm"], 1e-5)
    close(gpt2.apply(params, IDS, config=GPT2), wanted)
    masked = gpt2.apply(params, IDS, MASK, config=GPT2)
    # Padding stands behind: no text sees it anyway.
    last = wanted[np.arange(3), LENGTHS - 1]
    close(gpt2.last_token(masked, MASK), last)


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=["bert", "roberta"])
def test_padding_changes_nothing(config):
    params = params_of(config)
    long = bert.sentence_embeddings(params, IDS[:2], MASK[:2], config=config)
    other = jnp.where(MASK == 0, 7, IDS)
    close(bert.sentence_embeddings(params, other[:2], MASK[:2], config=config), long)
    short = bert.sentence_embeddings(params, IDS[:2, :4], MASK[:2, :4], config=config)
    close(short, long)


def test_no_token_sees_a_later_one():
    params = params_of(GPT2)
    before = gpt2.apply(params, IDS, config=GPT2)
    after = gpt2.apply(params, IDS.at[:, 3].set(9), config=GPT2)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before - after)[:, 3:].max() > 0.01


def test_too_long_a_text():
    ids = jnp.zeros((1, 8), jnp.int32)
    with pytest.raises(ParameterError, match="at most 7 tokens: got 8"):
        clip.text_features(params_of(CLIP), ids, config=CLIP)
    with pytest.raises(ParameterError, match="at most 7 tokens: got 8"):
        bert.apply(params_of(BERT), ids, ids == 0, config=BERT)
    with pytest.raises(ParameterError, match="at most 7 tokens: got 8"):
        gpt2.apply(params_of(GPT2), ids, config=GPT2)


def test_a_token_outside_of_the_vocabulary_is_no_number():
    found = gpt2.apply(params_of(GPT2), jnp.array([[1, 20]]), config=GPT2)
    assert np.isnan(found[0, 1]).all()


@pytest.mark.parametrize("config", [CLIP, BERT, GPT2], ids=["clip", "bert", "gpt2"])
def test_narrow_parameters_and_several_models(config):
    run = {
        CLIPConfig: lambda p: clip.text_features(p, IDS, config=CLIP),
        BertConfig: lambda p: bert.apply(p, IDS, MASK, config=BERT),
        GPT2Config: lambda p: gpt2.apply(p, IDS, config=GPT2),
    }[type(config)]
    run = jax.jit(run)
    params = params_of(config)
    one = run(params)
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    np.testing.assert_allclose(jax.vmap(run)(pair)[1], one, atol=1e-5)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's attention needs it
        narrow = run(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert narrow.dtype == jnp.bfloat16
    assert np.linalg.norm(np.float32(narrow) - one) < 0.05 * np.linalg.norm(one)
    slopes = jax.grad(lambda p: jnp.sum(run(p) ** 2))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_sizes_of_the_published_models():
    for config, count in ((clip.VIT_B_32, 151_277_313), (clip.VIT_L_14, 427_616_513)):
        shapes = jax.eval_shape(functools.partial(clip.init, config), jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_heads():
    rng = np.random.default_rng(0)
    kernel, features = rng.normal(size=(5, 3)), rng.normal(size=(4, 5))
    kernel /= np.linalg.norm(kernel, axis=0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = heads.cosine(
        jnp.float32(kernel), jnp.float32(features), logit_scale=np.log(100.0)
    )
    close(found, 100 * unit @ kernel)
