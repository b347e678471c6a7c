"""Every function of the core against its float64 statement in tests/reference.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from models import as_matrix, cast, expert, experts

import centermerge_jax as cm
from centermerge_jax.trees import named_leaves


def leaves_of(trees):
    named = {name: named_leaves(tree) for name, tree in trees.items()}
    return {
        leaf: [named[name][leaf] for name in sorted(named)]
        for leaf in next(iter(named.values()))
        if leaf != "steps"
    }


def assert_close(merged, wanted, trees, tolerance=1e-5):
    """Every leaf within `tolerance` of the deviations' norm."""
    found = named_leaves(merged)
    for name, leaves in leaves_of(trees).items():
        error = np.linalg.norm(
            np.asarray(found[name], np.float64) - wanted(name, leaves)
        )
        assert error <= tolerance * reference.deviation_norm(leaves), name


@pytest.mark.parametrize("share", [0.08, 0.25, 1.0])
@pytest.mark.parametrize("solver", ["exact", "gram", "auto"])
def test_cart(share, solver):
    trees = experts(blocks=2)
    merged = cm.cart(trees, rank=share, scale=1.5, solver=solver)

    def wanted(name, leaves):
        return reference.cart(leaves, share, 1.5, to_matrix=as_matrix(name))

    # What the Gram matrix squares away is stated with the solver: 1e-4.
    assert_close(merged, wanted, trees, 1e-5 if solver == "exact" else 1e-4)
    assert merged["steps"] == 7


def test_cart_in_bfloat16_is_right_before_the_final_cast():
    trees = experts(dtype=jnp.bfloat16)
    cart = functools.partial(cm.cart, trees, rank=0.25, scale=2.0, solver="exact")
    merged = cart(dtype=jnp.float32)

    def wanted(name, leaves):
        return reference.cart(leaves, 0.25, 2.0, to_matrix=as_matrix(name))

    assert_close(merged, wanted, trees)
    stored = cart()
    chex.assert_trees_all_equal_dtypes(stored, trees["cars"])
    chex.assert_trees_all_equal(stored, cast(merged, jnp.bfloat16))


def test_weight_average_and_task_arithmetic():
    trees, base = experts(), expert(99)
    bases = named_leaves(base)
    assert_close(
        cm.weight_average(trees), lambda name, leaves: reference.mean(leaves), trees
    )
    assert_close(
        cm.task_arithmetic(trees, base, scale=0.4),
        lambda name, leaves: reference.task_arithmetic(leaves, bases[name], 0.4),
        trees,
    )


@pytest.mark.parametrize("rest", ["sum", "mean", "base"])
def test_truncated_task_arithmetic(rest):
    trees, base = experts(), expert(99)
    bases = named_leaves(base)
    merged = cm.truncated_task_arithmetic(trees, base, rank=0.25, scale=0.7, rest=rest)
    assert_close(
        merged,
        lambda name, leaves: reference.truncated_task_arithmetic(
            leaves, bases[name], 0.25, 0.7, rest, to_matrix=as_matrix(name)
        ),
        trees,
    )


def test_select_is_the_origin_and_one_truncated_vector():
    trees = experts()
    tv = cm.truncate(cm.center(trees), rank=0.25)
    found = named_leaves(cm.select(tv, "dtd", scale=0.8))
    assert tv.tasks == ("cars", "dtd", "mnist")
    for name, leaves in leaves_of(trees).items():
        mean = reference.mean(leaves)
        delta, to_matrix = np.asarray(leaves[1], np.float64) - mean, as_matrix(name)
        if to_matrix is not None:
            matrix = to_matrix(delta)
            k = reference.rank_of(0.25, matrix.shape)
            delta = reference.svd_k(matrix, k).reshape(delta.shape)
        wanted = mean + 0.8 * delta
        np.testing.assert_allclose(found[name], wanted, atol=2e-5, err_msg=name)


def test_fused_queries_keys_and_values_are_one_matrix():
    trees = experts()
    merged = cm.cart(trees, rank=0.25, scale=1.5, views=cm.views.fused)
    names = ["query", "key", "value"]

    def row(tree):
        parts = [tree["blocks"]["0"]["attn"][n]["kernel"] for n in names]
        matrices = [np.asarray(part, np.float64).reshape(16, 16) for part in parts]
        return np.concatenate(matrices, axis=1)

    rows = [row(trees[name]) for name in sorted(trees)]
    wanted = reference.cart(rows, 0.25, 1.5, to_matrix=lambda x: x)
    np.testing.assert_allclose(row(merged), wanted, atol=2e-5)
    # and it is the same merge as that of PyTorch's row-stacked layout
    torch = {
        name: {"attn.in_proj_weight": np.float32(row(tree).T)}
        for name, tree in trees.items()
    }
    transposed = cm.cart(torch, rank=0.25, scale=1.5)["attn.in_proj_weight"]
    np.testing.assert_allclose(row(merged).T, transposed, atol=2e-5)
    separate = cm.cart(trees, rank=0.25, scale=1.5)
    assert np.abs(row(merged) - row(separate)).max() > 0.01


@pytest.mark.parametrize("layout", ["torch", "conv1d", "axes", "scanned"])
def test_split_takes_what_is_stored_fused_as_three_matrices(layout):
    rng = np.random.default_rng(1)
    parts = np.float32(rng.normal(size=(3, 3, 2, 16, 16)))  # expert, q k v, layer, ...
    separate = [
        {f"{i}/attn/{n}/kernel": x[j, i] for i in range(2) for j, n in enumerate("qkv")}
        for x in parts
    ]
    wanted = cm.cart(separate, rank=0.25, scale=1.5, solver="exact")

    def stored(x):  # [q k v, layer, in, out]
        x = x[:, :1] if layout != "scanned" else x
        if layout == "torch":
            return {"0.attn.in_proj_weight": np.concatenate([*x[:, 0]], axis=1).T}
        whole = np.concatenate([*x], axis=-1)  # [layer, in, q k v]
        if layout == "scanned":
            return {"attn/qkv/kernel": whole}
        if layout == "axes":
            return {"0/attn/qkv/kernel": whole[0].reshape(16, 3, 4, 4)}
        return {"0.attn.c_attn.weight": whole[0]}

    views = cm.views.split
    if layout == "scanned":
        views = functools.partial(views, scanned=".*qkv/kernel")
    trees = [stored(x) for x in parts]
    (leaf,) = cm.cart(trees, rank=0.25, scale=1.5, views=views, solver="exact").values()
    for i in range(2 if layout == "scanned" else 1):
        found = leaf[i] if layout == "scanned" else leaf
        found = found.T if layout == "torch" else found.reshape(16, 48)
        for j, n in enumerate("qkv"):
            np.testing.assert_allclose(
                found[:, 16 * j : 16 * (j + 1)],
                wanted[f"{i}/attn/{n}/kernel"],
                atol=3e-4,  # of white noise, which has no gap
            )


def test_fused_joins_rows_of_torch_weights():
    rng = np.random.default_rng(0)
    trees = [
        {f"attn.{n}_proj.weight": np.float32(rng.normal(size=(16, 16))) for n in "qkv"}
        for _ in range(3)
    ]
    merged = cm.cart(trees, rank=0.25, scale=1.5, views=cm.views.fused)
    stacked = [
        np.concatenate([t[f"attn.{n}_proj.weight"] for n in "qkv"]) for t in trees
    ]
    wanted = reference.cart(stacked, 0.25, 1.5, to_matrix=lambda x: x)
    found = np.concatenate([merged[f"attn.{n}_proj.weight"] for n in "qkv"])
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_scanned_layers_are_matrices_of_their_own():
    trees = experts(blocks=3)
    # One leaf with the layers in second place, as nn.scan(variable_axes=1) makes it.
    scanned = {
        name: {
            "layers": jax.tree.map(
                lambda *x: np.stack(x, axis=1), *tree["blocks"].values()
            )
        }
        for name, tree in trees.items()
    }
    views = functools.partial(cm.views.auto, scanned="layers/.*", layer_axis=1)
    merged = cm.cart(scanned, rank=0.25, scale=1.5, views=views)["layers"]
    separate = cm.cart(trees, rank=0.25, scale=1.5)["blocks"]
    for i in range(3):
        layer = jax.tree.map(lambda x, i=i: np.asarray(x).take(i, axis=1), merged)
        chex.assert_trees_all_close(layer, separate[str(i)], atol=2e-5)


def test_scale_forms_agree():
    trees = experts()
    tv = cm.truncate(cm.center(trees), rank=0.25)
    array = cm.combine(tv, scale=jnp.array([1.0, 2.0, 0.5]))
    mapping = cm.combine(tv, scale={"mnist": 0.5, "cars": 1, "dtd": 2})
    prefix = cm.combine(
        tv,
        scale={
            "blocks": {"cars": 1.0, "dtd": 2.0, "mnist": 0.5},
            "embed": np.array([1.0, 2.0, 0.5]),
            "steps": 0.0,
        },
    )
    chex.assert_trees_all_equal(array, mapping, prefix)
    # Leaves without a view take part under different scales
    embed = [trees[n]["embed"]["embedding"] for n in sorted(trees)]
    mean = reference.mean(embed)
    wanted = mean + sum(
        a * (x - mean) for a, x in zip((1.0, 2.0, 0.5), embed, strict=True)
    )
    np.testing.assert_allclose(array["embed"]["embedding"], wanted, atol=1e-5)


def test_truncating_again_slices_the_factors():
    trees = experts()
    full = cm.truncate(cm.center(trees), rank=1.0)
    again = cm.truncate(full, rank=0.25)
    once = cm.truncate(cm.center(trees), rank=0.25)
    assert again.deltas["blocks"]["0"]["mlp"]["fc1"]["kernel"].rank == 4
    chex.assert_trees_all_close(
        cm.combine(again, scale=1.5), cm.combine(once, scale=1.5), atol=1e-4
    )
    with pytest.raises(cm.ParameterError, match=r"holds 4 of 16 directions, not 8"):
        cm.truncate(again, rank=0.5)
    with pytest.raises(cm.ViewError, match="truncated under other views"):
        cm.truncate(full, rank=0.25, views=cm.views.fused)


def test_float64_where_the_caller_enables_it():
    with jax.enable_x64(True):
        trees = experts(dtype=np.float64)
        merged = cm.cart(trees, rank=0.25, scale=1.5, solver="exact")
        assert merged["embed"]["embedding"].dtype == np.float64

        def wanted(name, leaves):
            return reference.cart(leaves, 0.25, 1.5, to_matrix=as_matrix(name))

        assert_close(merged, wanted, trees, tolerance=1e-13)
