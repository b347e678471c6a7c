"""Adapters merged as factors, against the same experts merged as dense matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import centermerge_jax as cm
from centermerge_jax.host_memory import empty
from centermerge_jax.linalg import LowRank
from centermerge_jax.low_rank_experts import center_factors, subtract_factors
from centermerge_jax.trees import named_leaves
from centermerge_jax.views import Rule, auto, fused, resolve

WIDTH, HIDDEN = 12, 20
TASKS = ("cars", "dtd", "mnist")
VIEWS = functools.partial(auto, scanned="layers/.*")
KERNELS = {
    "q": "blocks/0/attn/q/kernel",
    "k": "blocks/0/attn/k/kernel",
    "out": "blocks/0/attn/out/kernel",
    "fc1": "blocks/0/mlp/fc1/kernel",
    "scanned": "layers/mlp/kernel",
}


def base(dtype=np.float32):
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "blocks": {
            "0": {
                "attn": {
                    **{n: {"kernel": leaf(WIDTH, 3, 4)} for n in "qkv"},
                    "out": {"kernel": leaf(3, 4, WIDTH)},
                },
                "mlp": {"fc1": {"kernel": leaf(WIDTH, HIDDEN), "bias": leaf(HIDDEN)}},
            }
        },
        "layers": {"mlp": {"kernel": leaf(2, WIDTH, HIDDEN)}},
        "steps": np.int32(7),
    }


def adapters(tree, ranks, *, views=VIEWS, seed=1):
    """Factors of `ranks[task][kernel]` directions whose singular values fall."""
    rng = np.random.default_rng(seed)
    table = resolve(tree, views)

    def pair(view, rank):
        b = rng.normal(size=(*view.batch_shape, view.m, rank)) * 0.5 ** np.arange(rank)
        a = rng.normal(size=(*view.batch_shape, rank, view.n))
        return b.astype(np.float32), a.astype(np.float32)

    return {
        task: {KERNELS[k]: pair(table[KERNELS[k]], r) for k, r in kernels.items()}
        for task, kernels in ranks.items()
    }


def dense(tree, changes, *, views=VIEWS):
    """The experts as whole models."""
    table = resolve(tree, views)
    experts = {}
    for task, adapter in changes.items():
        leaves = named_leaves(tree)
        for name, (b, a) in adapter.items():
            product = np.matmul(b.astype(np.float64), a)
            change = table[name].from_matrix(product).astype(np.float32)
            leaves[name] = leaves[name] + jnp.asarray(change)
        experts[task] = jax.tree.structure(tree).unflatten(leaves.values())
    return experts


EQUAL = {task: {"q": 2, "out": 2, "fc1": 2, "scanned": 2} for task in TASKS}
UNEQUAL = {
    "cars": {"q": 3, "fc1": 1},
    "dtd": {"q": 1, "k": 4, "scanned": 2},
    "mnist": {"out": 2, "fc1": 5},
}
# More directions than the matrices have: 12 of 12.
MANY = {task: {"q": 7, "fc1": 5} for task in TASKS}
RANKS = {"equal": EQUAL, "unequal": UNEQUAL, "many": MANY}


def norms(tv):
    """Of each leaf's deltas, over all tasks."""
    return {
        name: np.linalg.norm(np.asarray(delta, np.float64))
        for name, (_, delta) in tv.flat().items()
        if delta is not None
    }


def check_equal(found, expected, around):
    """The same task vectors, to 1e-5 of their norm; what is untouched is untouched."""
    sizes = norms(around)
    assert found.tasks == expected.tasks
    assert found.dtypes == expected.dtypes
    pairs = zip(found.flat().items(), expected.flat().values(), strict=True)
    for (name, (origin, delta)), (whole, wanted) in pairs:
        if wanted is None:
            assert delta is None
            assert origin == whole
            continue
        assert origin.dtype == whole.dtype
        np.testing.assert_allclose(
            origin, whole, atol=1e-6 * np.abs(np.asarray(whole)).max(), rtol=0
        )
        if sizes[name] < 1e-5:  # of whole experts there is rounding
            assert not isinstance(delta, LowRank), name
            assert not np.any(delta), name
            assert np.shares_memory(delta[0], delta[1]), "zeros that take memory"
            continue
        product = delta.dense() if isinstance(delta, LowRank) else delta
        wanted = wanted.dense() if isinstance(wanted, LowRank) else wanted
        assert product.shape == wanted.shape
        error = np.linalg.norm(np.asarray(product, np.float64) - wanted)
        assert error <= 1e-5 * sizes[name], name


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("centered", [False, True], ids=["subtract", "center"])
def test_equal_to_dense_experts(ranks, centered):
    tree = base()
    changes = adapters(tree, ranks)
    experts = dense(tree, changes)
    make = center_factors if centered else subtract_factors
    found = make(tree, changes, views=VIEWS)
    expected = cm.center(experts) if centered else cm.subtract(experts, tree)
    check_equal(found, expected, expected)
    scales = {"cars": 0.5, "dtd": 1.5, "mnist": -1.0}
    for scale in (1.5, scales):
        merged = named_leaves(cm.combine(found, scale=scale))
        wanted = named_leaves(cm.combine(expected, scale=scale))
        for name, leaf in merged.items():
            np.testing.assert_allclose(leaf, wanted[name], rtol=0, atol=2e-4)
    one, wanted = (
        named_leaves(cm.select(tv, "dtd", scale=1.0)) for tv in (found, expected)
    )
    for name, leaf in one.items():
        np.testing.assert_allclose(leaf, wanted[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("centered", [False, True], ids=["subtract", "center"])
def test_truncated_as_dense_experts_are(rank, centered):
    tree = base()
    ranks = UNEQUAL if centered else MANY
    changes = adapters(tree, ranks)
    experts = dense(tree, changes)
    make = center_factors if centered else subtract_factors
    found = cm.truncate(make(tree, changes, views=VIEWS), rank=rank)
    around = cm.center(experts) if centered else cm.subtract(experts, tree)
    expected = cm.truncate(around, rank=rank, views=VIEWS, solver="exact")
    assert any(isinstance(delta, LowRank) for _, delta in found.flat().values())
    check_equal(found, expected, around)


def test_cart_of_adapters_in_float64():
    tree = base()
    changes = adapters(tree, UNEQUAL)
    merged = cm.combine(
        cm.truncate(center_factors(tree, changes, views=VIEWS), rank=3), scale=1.5
    )
    name = KERNELS["fc1"]
    leaf = np.asarray(named_leaves(tree)[name], np.float64)
    experts = [
        leaf + (np.float64(x[name][0]) @ x[name][1] if name in x else 0)
        for x in changes.values()
    ]
    mean = reference.mean(experts)
    expected = mean + 1.5 * sum(reference.svd_k(x - mean, 3) for x in experts)
    error = np.abs(np.asarray(named_leaves(merged)[name]) - expected).max()
    assert error <= 1e-5 * reference.deviation_norm(experts)
    plain = mean + 1.5 * sum(reference.svd_k(x - mean, 4) for x in experts)
    assert np.abs(plain - expected).max() > 1e-2  # the rank matters


def test_factors_are_singular_triplets_in_descending_order():
    tree = base()
    tv = center_factors(tree, adapters(tree, UNEQUAL), views=VIEWS)
    held = set()
    for name, (_, delta) in tv.flat().items():
        if not isinstance(delta, LowRank):
            continue
        held.add(delta.rank)
        assert np.all(np.diff(delta.s, axis=-1) <= 0), name
        assert delta.u.shape[0] == delta.s.shape[0] == 3
        for factor in (np.asarray(delta.u), np.asarray(delta.vh).swapaxes(-1, -2)):
            gram = factor.swapaxes(-1, -2) @ factor
            unit = np.broadcast_to(np.eye(delta.rank), gram.shape)
            np.testing.assert_allclose(gram, unit, atol=1e-5)
    assert held == {6}  # as fc1 needs: 1 + 0 + 5


def test_directions_that_are_not_there_are_zero():
    tree = base()
    changes = adapters(tree, {"cars": {"fc1": 5, "q": 1}, "dtd": {"q": 2}})
    for make in (subtract_factors, center_factors):
        tv = make(tree, changes, views=VIEWS)
        s = tv.flat()[KERNELS["q"]][1].s
        exist = 2 if make is subtract_factors else 3
        assert s.shape == (2, 5)
        assert np.all(np.asarray(s)[:, exist:] == 0)
        assert np.asarray(s)[1, 1] > 0.1


@pytest.mark.parametrize("centered", [False, True], ids=["subtract", "center"])
@pytest.mark.parametrize("layout", ["flax", "torch"])
def test_joined_leaves_share_one_matrix(layout, centered):
    flax = layout == "flax"
    leaf, cols = ("kernel", WIDTH) if flax else ("weight", HIDDEN)
    rng = np.random.default_rng(3)
    tree = {
        n: {leaf: jnp.asarray(rng.normal(size=(WIDTH, cols)), np.float32)}
        for n in "qkv"
    }
    changes = {
        task: {
            f"{n}/{leaf}": (
                rng.normal(size=(WIDTH, 2)).astype(np.float32),
                rng.normal(size=(2, cols)).astype(np.float32),
            )
            for n in names
        }
        for task, names in (("cars", "qv"), ("dtd", "v"), ("mnist", "q"))
    }
    experts = dense(tree, changes, views=fused)
    make = center_factors if centered else subtract_factors
    found = make(tree, changes, views=fused)
    around = cm.center(experts) if centered else cm.subtract(experts, tree)
    assert not np.any(found.flat()[f"k/{leaf}"][1].dense())
    for rank in (2, 4):
        cut = cm.truncate(found, rank=rank)
        expected = cm.truncate(around, rank=rank, views=fused, solver="exact")
        whole = np.sqrt(sum(x**2 for x in norms(around).values()))
        for (_, delta), (_, wanted) in zip(
            cut.flat().values(), expected.flat().values(), strict=True
        ):
            error = np.linalg.norm(np.asarray(delta.dense()) - wanted.dense())
            assert error <= 1e-5 * whole


def test_a_base_in_bfloat16_gives_results_in_bfloat16():
    tree = base(jnp.bfloat16)
    changes = adapters(tree, EQUAL)
    tv = center_factors(tree, changes, views=VIEWS)
    assert tv.origin["layers"]["mlp"]["kernel"].dtype == jnp.float32
    merged = cm.combine(tv, scale=1.0)
    assert merged["layers"]["mlp"]["kernel"].dtype == jnp.bfloat16
    assert merged["steps"] == 7
    bias = merged["blocks"]["0"]["mlp"]["fc1"]["bias"]
    assert bias.tobytes() == tree["blocks"]["0"]["mlp"]["fc1"]["bias"].tobytes()


def test_the_base_is_not_changed_with_what_was_given():
    tree = jax.tree.map(np.array, base())
    shared = empty((2, WIDTH, HIDDEN), np.float32)  # JAX need not copy it
    shared[...] = tree["layers"]["mlp"]["kernel"]
    tree["layers"]["mlp"]["kernel"] = shared
    tv = subtract_factors(tree, adapters(tree, EQUAL), views=VIEWS)
    before = np.array(tv.origin["layers"]["mlp"]["kernel"])
    shared[...] = 0
    np.testing.assert_array_equal(tv.origin["layers"]["mlp"]["kernel"], before)


def test_what_does_not_fit_is_listed():
    tree = base()
    good = adapters(tree, {"cars": {"fc1": 2}})["cars"]
    b, a = good[KERNELS["fc1"]]
    wrong = {
        "blocks/0/mlp/fc2/kernel": (b, a),
        "blocks/0/mlp/fc1/bias": (b, a),
        KERNELS["fc1"]: (a.T, b.T),
        KERNELS["q"]: (b, a[:1, :WIDTH]),
        KERNELS["scanned"]: (b, a),
        KERNELS["k"]: (b * np.nan, a[:, :WIDTH]),
    }
    with pytest.raises(cm.StructureError) as caught:
        subtract_factors(tree, {"cars": good, "dtd": wrong}, views=VIEWS)
    message = str(caught.value)
    assert "6 changes" in message
    for part in (
        "dtd: blocks/0/mlp/fc2/kernel is not in the base",
        "dtd: blocks/0/mlp/fc1/bias is no matrix",
        f"dtd: {KERNELS['fc1']} is [12, 20]",
        f"dtd: {KERNELS['q']} is [12, 12]",
        f"dtd: {KERNELS['scanned']} is [2, 12, 20]",
        f"dtd: {KERNELS['k']} has factors that are not finite",
    ):
        assert part in message, message


def test_nothing_to_merge_is_an_error():
    tree = base()
    with pytest.raises(cm.ParameterError, match="no expert"):
        center_factors(tree, {}, views=VIEWS)
    with pytest.raises(cm.ParameterError, match="change no leaf"):
        center_factors(tree, {"cars": {}, "dtd": {}}, views=VIEWS)
    # More than is held cannot be had.
    tv = center_factors(tree, adapters(tree, EQUAL), views=VIEWS)
    with pytest.raises(cm.ParameterError, match="holds 6 of 12 directions, not 7"):
        cm.truncate(tv, rank=7)


def test_rules_as_views():
    tree = {"w": jnp.ones((4, 3))}
    change = {"w": (np.ones((3, 1), np.float32), np.arange(4, dtype=np.float32)[None])}
    turned = [Rule("w", rows=(1,), cols=(0,))]
    tv = subtract_factors(tree, {"a": change}, views=turned)
    merged = cm.combine(tv, scale=1.0)["w"]
    np.testing.assert_allclose(
        merged, 1 + np.arange(4.0)[:, None] * np.ones(3), rtol=1e-6
    )
