"""View rules: which leaves are matrices, and what is said when nobody knows."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import expert

import centermerge_jax as cm
from centermerge_jax.views import MatrixView, Rule, fused, resolve, split


def shapes(**leaves):
    return {name: np.zeros(shape, np.float32) for name, shape in leaves.items()}


@pytest.mark.parametrize(("batch", "rows"), [(0, 2), (1, 1), (1, 2), (2, 1)])
def test_to_matrix_and_back_over_all_permutations(batch, rows):
    shape = (2, 3, 4, 5)
    x = jnp.arange(7 * 120, dtype=jnp.float32).reshape(7, *shape)
    for axes in itertools.permutations(range(4)):
        view = MatrixView(
            shape, axes[batch : batch + rows], axes[batch + rows :], axes[:batch]
        )
        matrices = view.to_matrix(x)
        assert matrices.shape == (7, *view.batch_shape, view.m, view.n)
        np.testing.assert_array_equal(view.from_matrix(matrices), x)


@pytest.mark.parametrize("side", ["rows", "cols"])
def test_parts_of_a_leaf_and_back(side):
    x = jnp.arange(7 * 2 * 54, dtype=jnp.float32).reshape(7, 2, 6, 9)
    view = MatrixView((2, 6, 9), (1,), (2,), (0,), parts=3, side=side)
    matrices = view.to_matrix(x)
    assert view.batch_shape == (2, 3)
    for i in range(3):
        part = (
            x[:, :, 2 * i : 2 * i + 2] if side == "rows" else x[..., 3 * i : 3 * i + 3]
        )
        np.testing.assert_array_equal(matrices[:, :, i], part)
    np.testing.assert_array_equal(view.from_matrix(matrices), x)


def test_split_refuses_what_is_not_three_equal_matrices():
    tree = shapes(**{"attn.qkv.weight": (20, 12), "attn.in_proj_weight": (36, 12)})
    with pytest.raises(cm.ViewError, match=r"attn.qkv.weight \[20, 12\]"):
        split(tree)


def test_to_matrix_puts_entries_where_they_belong():
    view = MatrixView((2, 3, 4), rows=(2,), cols=(0, 1))
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    matrix = view.to_matrix(jnp.asarray(x))
    for i, j, k in itertools.product(range(2), range(3), range(4)):
        assert matrix[k, i * 3 + j] == x[i, j, k]


FLAX_AND_TORCH = {
    # Flax Linen and NNX
    "Dense_0/kernel": ((8, 4), (1, 8, 4)),
    "Dense_0/bias": ((4,), None),
    "encoder/layer_1/attn/query/kernel": ((8, 2, 4), (1, 8, 8)),
    "encoder/layer_1/attn/out/kernel": ((2, 4, 8), (1, 8, 8)),
    "MultiHeadDotProductAttention_0/qkv/kernel": ((8, 3, 2, 4), (1, 8, 24)),
    "LayerNorm_0/scale": ((8,), None),
    "Embed_0/embedding": ((100, 8), None),
    "pos_embedding": ((1, 5, 8), None),
    "cls": ((1, 1, 8), None),
    "Conv_0/kernel": ((3, 3, 8, 8), None),
    "patch_embed/kernel": ((14, 14, 3, 8), None),
    "head/kernel": ((8, 10), None),
    # PyTorch
    "layer.0.attention.self.query.weight": ((8, 8), (1, 8, 8)),
    "layer.0.attention.output.LayerNorm.weight": ((8,), None),
    "layer.0.intermediate.dense.weight": ((32, 8), (1, 32, 8)),
    "visual.transformer.resblocks.0.attn.in_proj_weight": ((24, 8), (1, 24, 8)),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": ((32, 8), (1, 32, 8)),
    "visual.conv1.weight": ((8, 3, 14, 14), None),
    "layer1.0.downsample.0.weight": ((8, 8, 1, 1), None),
    "visual.proj": ((8, 4), None),
    "visual.positional_embedding": ((5, 8), None),
    "embeddings.word_embeddings.weight": ((100, 8), None),
    "h.0.attn.c_attn.weight": ((8, 24), (1, 8, 24)),
    "wte.weight": ((100, 8), None),
    "classifier.weight": ((3, 8), None),
    "lm_head.weight": ((100, 8), None),
    # nnx.State from a file
    "encoder/0/attn/query/kernel/value": ((8, 2, 4), (1, 8, 8)),
    "encoder/0/norm/bias/value": ((8,), None),
    # Modules with names that only sound like something else
    "enc/attn/heads/0/kernel": ((8, 8), (1, 8, 8)),
    "embedder/blocks/0/attn/q/kernel": ((8, 8), (1, 8, 8)),
    "time_embedding/linear_1/kernel": ((8, 8), (1, 8, 8)),
    "composition/kernel": ((8, 8), (1, 8, 8)),
    "normal/kernel": ((8, 8), (1, 8, 8)),
    "conv_mlp/kernel": ((8, 8), (1, 8, 8)),
    # Equinox
    "layers/0/weight": ((4, 8), (1, 4, 8)),
}


@pytest.mark.parametrize("name", FLAX_AND_TORCH)
def test_auto(name):
    shape, matrices = FLAX_AND_TORCH[name]
    (row,) = cm.views.rows({name: np.zeros(shape, np.float32)}, rank=1)
    assert row.matrices == matrices


@pytest.mark.parametrize(
    "name", ["mlp/up_proj/kernel", "mlp/fc1/kernel", "h/mlp/c_proj/kernel"]
)
def test_auto_does_not_take_a_layer_axis_for_heads(name):
    with pytest.raises(cm.ViewError, match="without a view rule"):
        cm.views.auto({name: np.zeros((3, 8, 16), np.float32)})


def test_a_bias_gives_a_forgotten_layer_axis_away():
    tree = shapes(**{"attn/q/kernel": (3, 8, 8), "attn/q/bias": (3, 8)})
    with pytest.raises(
        cm.ViewError, match=r"attn/q/kernel \[3, 8, 8\] has a bias \[3, 8\]"
    ):
        cm.views.auto(tree)
    table = functools.partial(cm.views.auto, scanned=".*")(tree)
    assert table["attn/q/kernel"].batch == (0,)


def test_a_preset_of_ones_own_is_checked():
    tree = shapes(kernel=(4, 4), more=(4, 4))
    with pytest.raises(cm.ViewError, match="more: not in the table"):
        resolve(tree, lambda t: {"kernel": None})
    with pytest.raises(cm.ViewError, match="zz: not in the tree"):
        resolve(tree, lambda t: {"kernel": None, "more": None, "zz": None})


def test_shapes_are_enough():
    tree = {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    assert resolve(tree)["kernel"].size == 4


def test_a_joint_matrix_may_be_called_as_a_leaf_is():
    rng = np.random.default_rng(0)
    trees = [
        {n: np.float32(rng.normal(size=(4, 8))) for n in ("q", "k", "qk")}
        for _ in range(3)
    ]
    rules = [
        Rule("([qk])", rows=(0,), cols=(1,), join="qk"),
        Rule("qk", rows=(0,), cols=(1,)),
    ]
    joined = cm.cart(trees, rank=2, scale=1.0, views=rules)
    alone = cm.cart(
        [{"qk": t["qk"]} for t in trees], rank=2, scale=1.0, views=rules[1:]
    )
    np.testing.assert_allclose(joined["qk"], alone["qk"], atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 3, 4, 5)])
def test_auto_does_not_guess(shape):
    with pytest.raises(cm.ViewError) as caught:
        cm.views.auto({"experts": {"gate": np.zeros(shape, np.float32)}})
    message = str(caught.value)
    assert message.startswith(
        "1 matrix-like leaf name without a view rule: experts/gate"
    )
    assert f"experts/gate {list(shape)}" in message
    # and the rule that it suggests works
    rule = message.split("such as ")[1].split(", or ", maxsplit=1)[0]
    view = resolve({"experts/gate": np.zeros(shape)}, [eval(rule)])["experts/gate"]
    assert view.joint_shape == shape[-2:]


def test_first_full_match_wins():
    tree = shapes(**{"a/kernel": (4, 4), "b/kernel": (4, 4), "b/kernels": (4,)})
    rules = [Rule("a/.*"), Rule(".*/kernel", rows=(0,), cols=(1,))]
    table = resolve(tree, rules)
    assert table["a/kernel"] is None
    assert table["b/kernel"].size == 4
    with pytest.raises(cm.ViewError, match=r"without a view rule: b/kernel \[4, 4\]"):
        resolve(tree, [Rule("a/.*"), Rule("b/kern")])


def test_a_rule_that_matches_nothing_is_an_error():
    tree = shapes(kernel=(4, 4), bias=(4,))
    rules = [Rule("kernel", rows=(0,), cols=(1,)), Rule("kernal"), Rule("kernel")]
    with pytest.raises(cm.ViewError) as caught:
        resolve(tree, rules)
    assert str(caught.value) == (
        "2 view rules without a matching leaf that no earlier rule took:\n"
        "  'kernal'\n  'kernel'\n"
        "Leaves of two or more axes: kernel"
    )
    with pytest.raises(cm.ViewError, match="earlier rule took: 'bias'"):
        resolve(tree, [Rule("kernel"), Rule("bias", rows=(0,), cols=(1,))])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pattern": "(", "rows": (0,), "cols": (1,)}, "missing \\), unterminated"),
        ({"pattern": "k", "rows": (0,)}, "a matrix has rows and columns"),
        ({"pattern": "k", "parts": 2}, "parts is at least 1, of a matrix"),
        ({"pattern": "k", "rows": (0,), "cols": (1,), "parts": 3}, "no 3 equal parts"),
        ({"pattern": "k", "rows": (0,), "cols": (1,), "join": r"\3"}, "join .*group"),
        ({"pattern": "k", "rows": (0,), "cols": (0,)}, "name each of its 2 axes once"),
        (
            {"pattern": "k", "rows": (0,), "cols": (1,), "batch": (2,)},
            "name each of its 2",
        ),
    ],
)
def test_wrong_rules(rule, message):
    with pytest.raises(cm.ViewError, match=message):
        resolve(shapes(k=(4, 4)), [Rule(**rule)])


def test_joined_leaves_that_do_not_fit():
    tree = shapes(**{"q/kernel": (4, 4), "k/kernel": (6, 4), "v/kernel": (4, 4)})
    with pytest.raises(
        cm.ViewError, match="3 leaves of the joined matrix 'qkv' do not fit"
    ):
        fused(tree)
    wide = shapes(**{"q/kernel": (4, 8), "k/kernel": (4, 2), "v/kernel": (4, 2)})
    joins = {name: view.join for name, view in fused(wide).items()}
    assert [(j.start, j.total) for j in joins.values()] == [(0, 12), (2, 12), (10, 12)]


def test_scanned():
    tree = shapes(
        **{"layers/attn/q/kernel": (3, 8, 2, 4), "layers/attn/q/bias": (3, 8)}
    )
    views = functools.partial(cm.views.auto, scanned="layers/.*")
    table = views(tree)
    assert table["layers/attn/q/kernel"] == MatrixView(
        (3, 8, 2, 4), rows=(1,), cols=(2, 3), batch=(0,)
    )
    assert table["layers/attn/q/bias"] is None
    with pytest.raises(cm.ViewError, match="matches none of 2 leaf names"):
        functools.partial(cm.views.auto, scanned="blocks/.*")(tree)


def test_a_resolved_table_is_checked_against_the_tree():
    table = resolve(shapes(kernel=(4, 4), bias=(4,)))
    assert resolve(shapes(kernel=(4, 4), bias=(4,)), table) == table
    with pytest.raises(cm.ViewError, match=r"kernel: has shape \[4, 5\], its view"):
        resolve(shapes(kernel=(4, 5), bias=(4,)), table)
    with pytest.raises(cm.ViewError, match="bias: not in the tree"):
        resolve(shapes(kernel=(4, 4)), table)


def test_digest_tells_views_apart():
    tree = expert(0)
    assert cm.views.digest(resolve(tree)) == cm.views.digest(resolve(tree))
    assert cm.views.digest(resolve(tree)) != cm.views.digest(resolve(tree, fused))


def test_table_as_text():
    tree = shapes(**{"attn/q/kernel": (8, 4), "attn/k/kernel": (8, 4), "bias": (4,)})
    assert cm.views.format_rows(cm.views.rows(tree, fused, rank=0.5)).splitlines() == [
        "leaf           shape   batch x m x n         rank",
        "attn/k/kernel  [8, 4]  1 x 8 x 8 (attn/qkv)     4",
        "attn/q/kernel  [8, 4]  1 x 8 x 8 (attn/qkv)     4",
        "bias           [4]     -                        -",
    ]


def test_rules_from_a_file(tmp_path):
    file = tmp_path / "views.toml"
    file.write_text(
        '[[rule]]\npattern = "(.*)/[qk]"\nrows = [0]\ncols = [1]\njoin = "\\\\1/qk"\n'
        '[[rule]]\npattern = ".*"\n'
    )
    rules = cm.views.load(str(file))
    assert rules == [Rule("(.*)/[qk]", rows=(0,), cols=(1,), join=r"\1/qk"), Rule(".*")]
    assert cm.views.load("fused") is fused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "neither a file nor a preset \\(auto, fused, split\\)"),
        ("[[rule", "not a TOML file"),
        ("x = 1", r"expected \[\[rule\]\] tables only, got \['x'\]"),
        ("", "got none"),
        ("[[rule]]\nrows = [0]", "rule 1: needs 'pattern'"),
        ('[[rule]]\npattern = "a"\nrow = [0]', "rule 1: needs 'pattern' and may have"),
        ('[[rule]]\npattern = "a"\nrows = 0', "rows is a list of axes, got 0"),
        ('[[rule]]\npattern = "a"\nndim = "2"', "ndim is a int, got '2'"),
        ('[[rule]]\npattern = "a"\nndim = true', "ndim is a int, got True"),
        ('[[rule]]\npattern = "("', "rule 1: view rule '\\('"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    file = tmp_path / "views.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(cm.ViewError, match=message):
        cm.views.load(str(file))
