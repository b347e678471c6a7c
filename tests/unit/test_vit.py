"""The vision transformer: its tree, its forward pass, its two halves."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformers
import pytest
from flax import nnx
from numpy_transformers import gelu, quick_gelu, random_tree

import centermerge_jax.views
from centermerge_jax.errors import ParameterError
from centermerge_jax.models import bicubic, vit
from centermerge_jax.models.vit import ViTConfig

CONFIG = ViTConfig(patch=2, grid=3, width=8, depth=3, heads=2, layer_scale=True)


@pytest.fixture(scope="module")
def params() -> vit.Params:
    return random_tree(vit.init(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 4, 6, 3))


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        (CONFIG, gelu),
        (  # the shape of CLIP
            ViTConfig(
                patch=2,
                grid=2,
                width=8,
                depth=1,
                heads=2,
                epsilon=1e-5,
                patch_bias=False,
                pre_norm=True,
                activation="quick_gelu",
            ),
            quick_gelu,
        ),
        (
            ViTConfig(
                patch=2, grid=2, width=8, depth=1, heads=4, mlp_ratio=1.5,
                class_token=False,
            ),
            gelu,
        ),
        (  # the shape of DINOv2 with registers in timm
            ViTConfig(
                patch=2, grid=3, width=8, depth=2, heads=2, layer_scale=True,
                class_position=False, registers=4,
            ),
            gelu,
        ),
        (
            ViTConfig(
                patch=2, grid=2, width=8, depth=1, heads=2, class_token=False,
                registers=1,
            ),
            gelu,
        ),
    ],
    ids=["dinov2", "clip", "mean", "registers", "registers, mean"],
)  # fmt: skip
def test_forward_is_the_formula(config, activation):
    params = random_tree(vit.init(config, jax.random.key(0)))
    side = config.patch * config.grid
    images = jax.random.normal(jax.random.key(1), (2, side, side, 3))
    found = jax.jit(vit.apply, static_argnames="config")(params, images, config=config)
    expected = numpy_transformers.vit(params, images, config, activation)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if config.class_token:
        found = vit.class_and_mean(params, images, config=config)
        expected = numpy_transformers.vit(params, images, config, activation, both=True)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_params_are_a_pure_nested_dict(params):
    def check(node):
        if isinstance(node, dict):
            assert all(type(key) is str for key in node)
            for child in node.values():
                check(child)
        else:
            assert type(node).__mro__[1] is jax.Array or isinstance(node, jax.Array)
            assert not isinstance(node, nnx.Variable)

    check(params)
    check(vit.init(CONFIG, jax.random.key(0)))


def test_auto_views_the_dense_layers_and_nothing_else(params):
    views = centermerge_jax.views.auto(params)
    matrices = {name for name, view in views.items() if view is not None}
    dense = ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/fc1", "mlp/fc2")
    expected = {f"blocks/{i}/{layer}/kernel" for i in range(3) for layer in dense}
    assert matrices == expected
    assert len(views) == len(jax.tree.leaves(params))


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_suffix_of_prefix_is_apply(params, images, blocks):
    tokens = vit.prefix(params, images, blocks=blocks, config=CONFIG)
    assert tokens.shape == (2, 7, 8)
    found = vit.suffix(params, tokens, blocks=blocks, config=CONFIG)
    np.testing.assert_allclose(
        found, vit.apply(params, images, config=CONFIG), atol=1e-6
    )


def test_halves_read_only_their_own_parameters(params, images):
    def poisoned(tree):
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)

    frozen, trained = vit.split(params, blocks=1)
    tokens = vit.prefix(
        vit.join(frozen, poisoned(trained)), images, blocks=1, config=CONFIG
    )
    features = vit.suffix(
        vit.join(poisoned(frozen), trained), tokens, blocks=1, config=CONFIG
    )
    np.testing.assert_allclose(
        features, vit.apply(params, images, config=CONFIG), atol=1e-6
    )
    assert jax.tree.structure(vit.join(frozen, trained)) == jax.tree.structure(params)


def test_jit_grad_and_vmap(params, images):
    def loss(params):
        return jnp.square(vit.apply(params, images, config=CONFIG)).mean()

    fast = jax.jit(loss)
    np.testing.assert_allclose(fast(params), loss(params), rtol=1e-5)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, random_tree(params, 7))
    losses = jax.jit(jax.vmap(loss))(both)
    np.testing.assert_allclose(losses[0], loss(params), rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3

    # The gradient along one direction is the difference quotient.
    gradient = jax.jit(jax.grad(loss))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    step = random_tree(params, 3)
    slope = sum(
        jax.tree.leaves(jax.tree.map(lambda g, s: (g * s).sum(), gradient, step))
    )
    ahead = jax.tree.map(lambda p, s: p + 1e-3 * s, params, step)
    behind = jax.tree.map(lambda p, s: p - 1e-3 * s, params, step)
    quotient = (fast(ahead) - fast(behind)) / 2e-3
    np.testing.assert_allclose(quotient, slope, rtol=2e-2)


def test_module_and_functions_agree(images):
    key = jax.random.key(0)
    module = vit.VisionTransformer(CONFIG, rngs=nnx.Rngs(key))
    found = vit.apply(vit.init(CONFIG, key), images, config=CONFIG)
    np.testing.assert_allclose(found, module(images), atol=1e-6)


def test_bicubic_is_a_line_of_keys_kernel():
    """By hand: halving 4 samples puts each new one midway between two old ones."""
    a = -0.75
    near = (a + 2) / 8 - (a + 3) / 4 + 1
    far = a * (27 / 8 - 5 * 9 / 4 + 8 * 3 / 2 - 4)
    # The far tap left of the first sample falls on the first: it is clamped.
    row = [far + near, near, far, 0]
    np.testing.assert_allclose(bicubic.weights(4, 2), [row, row[::-1]], atol=1e-6)
    np.testing.assert_allclose(bicubic.weights(37, 5).sum(1), np.ones(5), atol=1e-6)
    smooth = bicubic.weights(4, 2, a=-0.5)
    assert abs(smooth - bicubic.weights(4, 2)).max() > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, x: vit.apply(p, x[:, :, :5], config=CONFIG),
            "image sides must be multiples of the patch, 2 px: got 4 x 5",
        ),
        (
            lambda p, x: vit.prefix(p, x, blocks=4, config=CONFIG),
            "blocks must be between 0 and 3, the depth: got 4",
        ),
        (
            lambda p, x: vit.suffix(p, jnp.ones((1, 7, 8)), blocks=-1, config=CONFIG),
            "blocks must be between 0 and 3, the depth: got -1",
        ),
        (
            lambda p, x: vit.init(ViTConfig(width=10, heads=4), jax.random.key(0)),
            "heads must divide width: 4 heads, width 10",
        ),
    ],
)
def test_what_does_not_fit_is_said(params, images, call, message):
    with pytest.raises(ParameterError, match=message):
        call(params, images)
