"""Mistakes that public code of these methods has made, and that ours must not make."""

import jax
import numpy as np
import pytest
import zoo

import centermerge_jax as cm
from centermerge_jax.methods import METHODS, greedy_soup
from centermerge_jax.random_numbers import uniforms


def flat(tree, names=None):
    return np.concatenate([np.float64(tree[n]).ravel() for n in names or sorted(tree)])


def call(name, experts, base=None, **told):
    bases = [] if base is None else [base]
    return METHODS[name].function(experts, *bases, **told)


def test_cart_truncates_each_task_and_not_their_mean():
    # The mean of centred vectors is zero: truncated, it would leave the average.
    experts, _ = zoo.models()
    average = cm.weight_average(experts)
    merged = cm.cart(experts, rank=0.25, scale=1.0)
    moved = flat(merged, zoo.MATRICES) - flat(average, zoo.MATRICES)
    size = flat(experts["c"], zoo.MATRICES) - flat(average, zoo.MATRICES)
    assert np.linalg.norm(moved) > 0.1 * np.linalg.norm(size)
    whole = cm.cart(experts, rank=1.0, scale=5.0)
    np.testing.assert_allclose(flat(whole), flat(average), atol=2e-6)


def test_the_mean_on_the_sphere_is_one():
    # The weighted tangent vectors at the mean of the tangents' own base cancel.
    rng = np.random.default_rng(0)
    experts = [{"w": np.float32(rng.normal(size=40))} for _ in range(4)]
    units = [np.float64(x["w"]) / np.linalg.norm(x["w"]) for x in experts]

    def tangent(merged):
        p = np.float64(merged["w"]) / np.linalg.norm(merged["w"])
        total = 0.0
        for u in units:
            side = u - (u @ p) * p
            total += np.arccos(u @ p) * side / np.linalg.norm(side)
        return np.linalg.norm(total)

    assert tangent(call("karcher_mean", experts)) < 1e-4
    assert tangent(call("normalised_mean", experts)) > 1e-2


def test_a_greedy_soup_is_the_mean_of_its_members():
    # And not the mean of the last one and all before.
    experts = {n: {"w": np.float32(x)} for n, x in {"a": 0, "b": 3, "c": 6}.items()}
    soup, members = greedy_soup(
        experts, evaluate=lambda _: 9.0, scores={"a": 3.0, "b": 2.0, "c": 1.0}
    )
    assert members == ("a", "b", "c")
    assert soup["w"] == 3


@pytest.mark.parametrize("outliers", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_breadcrumbs_keep_small_tensors(outliers, size):
    rng = np.random.default_rng(size)
    base = {"bias": np.zeros(size, np.float32)}
    expert = {"bias": np.float32(rng.normal(size=size))}
    told = {"density": 0.5, "outliers": outliers, "scale": 1.0}
    kept = np.count_nonzero(call("breadcrumbs", [expert], base, **told)["bias"])
    assert kept == max(1, size // 2)


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1.0])
def test_weights_by_energy_do_not_depend_on_the_unit(size):
    # A fixed threshold would make them equal for small task vectors.
    base = {"w": np.zeros(1000, np.float32)}
    rng = np.random.default_rng(0)
    direction = np.abs(rng.normal(size=1000)) * size
    experts = [{"w": np.float32(direction)}, {"w": np.float32(0.1 * direction)}]
    merged = call("sce", experts, base)["w"]
    weights = np.array([1, 0.01]) / 1.01
    wanted = (weights[0] + 0.1 * weights[1]) * direction
    np.testing.assert_allclose(merged, wanted, rtol=1e-5)


def test_sums_are_wider_than_the_models():
    # In bfloat16 arithmetic the merged task vector would be 5 % off.
    rng = np.random.default_rng(0)
    base = zoo.cast({"w": 0.02 * rng.normal(size=4096)}, "bfloat16")
    wide = np.float32(base["w"])
    tuned = [{"w": wide + np.float32(1e-3 * rng.normal(size=4096))} for _ in range(3)]
    experts = [zoo.cast(tree, "bfloat16") for tree in tuned]
    merged = cm.task_arithmetic(experts, base, scale=0.3, dtype="float32")["w"]
    wanted = 0.3 * sum(np.float32(x["w"]) - wide for x in experts)
    error = np.linalg.norm(merged - wide - wanted) / np.linalg.norm(wanted)
    assert error < 1e-4


def test_random_numbers_belong_to_their_place():
    one = uniforms(0, "dare", "cars", "w", (50,))
    np.testing.assert_array_equal(one, uniforms(0, "dare", "cars", "w", (50,)))
    others = [
        uniforms(1, "dare", "cars", "w", (50,)),
        uniforms(0, "della", "cars", "w", (50,)),
        uniforms(0, "dare", "dtd", "w", (50,)),
        uniforms(0, "dare", "cars", "b", (50,)),
    ]
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 0.5 for other in others)
    experts, base = zoo.models()
    told = {"density": 0.5, "scale": 1.0}
    whole = call("dare", experts, base, **told)
    some = ["norm/scale", "small/kernel"]
    part = call(
        "dare",
        {task: {n: tree[n] for n in some} for task, tree in experts.items()},
        {n: base[n] for n in some},
        **told,
    )
    for name in some:
        np.testing.assert_array_equal(part[name], whole[name])
    assert not np.array_equal(
        whole["norm/scale"], call("dare", experts, base, seed=1, **told)["norm/scale"]
    )


def test_tasks_that_share_directions_are_reported_and_make_nothing_up():
    # The frames of equal tasks lack directions; completed they would be arbitrary.
    experts, base = zoo.models(1)
    four = dict.fromkeys("abcd", experts["a"])
    with cm.recorded_solves() as solves:
        merged = call("tsv_m", four, base)
    frames = [solve for solve in solves if solve.solver == "polar"]
    assert frames
    assert all(solve.fell_back == solve.matrices for solve in frames)
    for name in zoo.MATRICES:
        tau = np.float64(experts["a"][name]) - base[name]
        moved = np.float64(merged[name]) - base[name]
        cosine = np.vdot(tau, moved) / np.linalg.norm(tau) / np.linalg.norm(moved)
        assert cosine > 0.7, name
        assert np.linalg.norm(moved) < 1.01 * np.linalg.norm(tau), name
    experts, base = zoo.models(3)
    with cm.recorded_solves() as solves:
        call("tsv_m", experts, base)
    frames = [solve for solve in solves if solve.solver == "polar"]
    assert sum(solve.fell_back for solve in frames) == 0


def test_numbers_that_no_expert_minds_are_averaged():
    # Not 0 / 0.
    experts = [{"w": np.float32([1, 3])}, {"w": np.float32([3, 5])}]
    fishers = {"0": {"w": np.float32([0, 1])}, "1": {"w": np.float32([0, 0])}}
    merged = call("fisher", experts, fishers=fishers)["w"]
    np.testing.assert_allclose(merged, [2, 3], atol=1e-5)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.data is None])
def test_what_is_not_finite_stays_visible(name):
    """In memory nothing is refused; but it is not lost either."""
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    bad = dict(experts["a"])
    bad["blocks/0/mlp/fc1/bias"] = np.full(zoo.HIDDEN, np.nan, np.float32)
    told = zoo.settings(METHODS[name])
    merged = zoo.run(name, experts | {"a": bad}, base, **told)
    if METHODS[name].hyperparameters.get("rest") is not None and np.array_equal(
        merged["norm/scale"], base["norm/scale"]
    ):
        pytest.skip("leaves what is no matrix at the base")
    assert np.isnan(np.float32(merged["blocks/0/mlp/fc1/bias"])).any()


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.data is None])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_number_of_a_matrix_that_is_not_finite_stays_visible(name, value):
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    leaf = "blocks/0/mlp/fc1/kernel"
    bad = dict(experts["a"], **{leaf: experts["a"][leaf].copy()})
    told = zoo.settings(METHODS[name])
    for place in ((0, 0), (3, 5), (15, 23)):
        bad[leaf][place] = value
        merged = zoo.run(name, experts | {"a": bad}, base, **told)
        assert not np.isfinite(np.float32(merged[leaf])).all(), place
        bad[leaf][place] = experts["a"][leaf][place]


def low_rank_models(rank):
    """Experts whose matrices differ from the base in a few directions only."""
    rng = np.random.default_rng(5)
    base = {"kernel": np.zeros((16, 16), np.float32)}

    def tuned():
        left, right = rng.normal(size=(16, rank)), rng.normal(size=(rank, 16))
        return {"kernel": np.float32(0.02 * left @ right)}

    return {name: tuned() for name in "abc"}, base


@pytest.mark.parametrize("name", ["tsv_m", "dc_merge", "cart_tsv"])
def test_directions_that_tasks_lack_do_not_turn_the_frames(name):
    # Of the vectors that belong to zero each solver returns others.
    experts, base = low_rank_models(2)
    told = zoo.settings(METHODS[name], rank=0.25)
    bases = [base] if METHODS[name].needs_base else []
    exact, gram = (
        np.asarray(
            METHODS[name].function(experts, *bases, **told, solver=solver)["kernel"]
        )
        for solver in ("exact", "gram")
    )
    np.testing.assert_allclose(exact, gram, rtol=0, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["knots", "iso_cts", "tsv_m", "dc_merge"])
def test_a_task_that_changed_nothing_does_not_count_by_its_rounding_errors(name):
    experts, base = zoo.models()
    still = {"a": experts["a"], "b": base}
    told = zoo.settings(METHODS[name])
    first = zoo.run(name, still, base, **told)
    # Multiplied by one third and three, numbers are rounded otherwise.
    third = np.float32(1 / 3)
    other = {t: {n: x * third for n, x in tree.items()} for t, tree in still.items()}
    second = zoo.run(name, other, {n: x * third for n, x in base.items()}, **told)
    for leaf in zoo.MATRICES:
        moved = np.asarray(first[leaf]) - base[leaf]
        again = np.asarray(second[leaf]) / third - base[leaf]
        np.testing.assert_allclose(
            again, moved, rtol=0, atol=2e-4 * np.abs(moved).max(), err_msg=leaf
        )


def test_one_expert_is_the_minimiser_of_its_own_interference():
    experts, base = zoo.models(1)
    merged = zoo.run("wudi_closed", experts, base)
    for leaf in zoo.MATRICES:
        tau = experts["a"][leaf] - base[leaf]
        moved = np.asarray(merged[leaf]) - base[leaf]
        np.testing.assert_allclose(
            moved, tau, rtol=0, atol=2e-4 * np.abs(tau).max(), err_msg=leaf
        )


@pytest.mark.parametrize("name", ["karcher_mean", "normalised_mean"])
def test_opposite_directions_give_the_mean(name):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(4, 3)))
    experts = [{"w": x, "one": np.float32([1])}, {"w": -3 * x, "one": np.float32([-3])}]
    merged = call(name, experts)
    np.testing.assert_allclose(merged["w"], -x, rtol=1e-5)
    np.testing.assert_allclose(merged["one"], [-1], rtol=1e-6)


def test_random_numbers_do_not_depend_on_how_jax_is_configured():
    experts, base = zoo.models()
    told = {"density": 0.5, "scale": 0.5}
    usual = call("dare", experts, base, **told)
    with jax.enable_x64(True):
        wide = call("dare", experts, base, **told)
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        other = call("dare", experts, base, **told)
    finally:
        jax.config.update("jax_default_prng_impl", before)
    for name, x in usual.items():
        np.testing.assert_array_equal(x, wide[name])
        np.testing.assert_array_equal(x, other[name])


def test_svc_of_a_sum_takes_other_leaves_as_the_sum_too():
    experts, base = zoo.models()
    summed = call("task_arithmetic", experts, base, scale=0.5)
    merged = call("svc", experts, base, scale=np.float32(0.5))
    np.testing.assert_allclose(merged["norm/scale"], summed["norm/scale"], rtol=1e-6)
    other = call("svc", experts, base, scale=0.5, merger="iso_c")
    mean = call("task_arithmetic", experts, base, scale=0.5 / 3)
    np.testing.assert_allclose(other["norm/scale"], mean["norm/scale"], rtol=1e-6)


def test_statistics_of_other_leaves_or_sizes_are_refused():
    experts, _ = zoo.models()
    grams = zoo.data(METHODS["regmean"], experts)["grams"]
    kernel = "blocks/0/mlp/fc1/kernel"
    small = {task: known | {kernel: np.eye(3)} for task, known in grams.items()}
    with pytest.raises(cm.ParameterError, match=rf"a: {kernel} has 16 inputs"):
        call("regmean", experts, grams=small)
    strange = {task: {"other": x[kernel]} for task, x in grams.items()}
    with pytest.raises(cm.ParameterError, match="other, which is no leaf"):
        call("regmean", experts, grams=strange)


def test_two_passes_are_as_wide_as_the_experts():
    with jax.enable_x64(True):
        experts, _ = zoo.models(1, dtype=np.float64)
        three = dict.fromkeys("abc", experts["a"])
        merged = call("two_pass_cart", three, rank=0.25, scale=0.5)
    for name, x in experts["a"].items():
        np.testing.assert_allclose(merged[name], x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("threshold", [float("nan"), 1.5])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    experts, base = zoo.models()
    with pytest.raises(cm.ParameterError, match="threshold is a cosine"):
        call("lata", experts, base, instruct="a", scale=1.0, threshold=threshold)


def test_a_constant_leaf_has_no_scope():
    with pytest.raises(cm.ParameterError, match="w is constant"):
        cm.methods.weight_scopes([{"w": np.zeros((2, 2), np.float32)}])


@pytest.mark.parametrize(
    "name",
    # The others see whole models: shares of all entries, lengths, the depth of a layer.
    sorted(set(METHODS) - {"ties", "pcb", "fisher", "lines", "lata"}),
)
def test_layers_that_were_frozen_do_not_change_what_becomes_of_others(name):
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    still = {leaf: x for leaf, x in base.items() if leaf.startswith("blocks/1/")}
    frozen = {task: tree | still for task, tree in experts.items()}
    told = zoo.settings(METHODS[name])
    given = zoo.data(METHODS[name], experts)
    whole = zoo.run(name, frozen, base, **told, **given)

    def without(tree):
        return {leaf: x for leaf, x in tree.items() if leaf not in still}

    fewer = {
        kind: {task: without(x) for task, x in found.items()}
        for kind, found in given.items()
    }
    short = {task: without(tree) for task, tree in frozen.items()}
    wanted = zoo.run(name, short, without(base), **told, **fewer)
    for leaf, x in wanted.items():
        close = 1e-5 * np.abs(x).max()
        np.testing.assert_allclose(whole[leaf], x, rtol=0, atol=close, err_msg=leaf)
