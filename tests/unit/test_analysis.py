"""`cm.analysis` against NumPy, its laws, and the models that make it difficult."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import numpy_analysis
import pytest
from models import WIDTH, as_matrix, cast, expert, experts, matrix

import centermerge_jax as cm
from centermerge_jax.trees import named_leaves

SHARES = (0.1, 0.25, 0.5, 1.0)
BLOCK = "blocks/0/"
QKV = [f"{BLOCK}attn/{part}/kernel" for part in ("key", "query", "value")]
TORCH = [cm.views.Rule("kernel", rows=(0,), cols=(1,), ndim=2, inputs="cols")]


def random_matrices(shape=(9, 6), tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    return [matrix(rng, shape, 1) for _ in range(tasks)]


def factors_of(matrices):
    """Of matrices as they are, `[out, in]`."""
    zero = {"kernel": np.zeros_like(matrices[0])}
    tv = cm.subtract([{"kernel": x} for x in matrices], zero)
    return cm.analysis.factorise(tv, views=TORCH)["kernel"]


def assert_same(found, wanted, *, rtol=2e-5, atol=2e-6, where=""):
    """Of documents: the same keys and nearly the same numbers."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_same(
                found[key], wanted[key], rtol=rtol, atol=atol, where=f"{where}/{key}"
            )
        return
    a, b = np.array(found, np.float64), np.array(wanted, np.float64)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=where)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (8, 8)])
def test_measures_of_matrices(shape):
    matrices = random_matrices(shape)
    factors = factors_of(matrices)
    wide = [np.asarray(x, np.float64) for x in matrices]
    ks = range(1, 1 + min(shape))
    for normalise in cm.analysis.NORMALISATIONS:
        found = cm.analysis.interference(factors, normalise=normalise)
        wanted = [numpy_analysis.interference(wide, k, normalise) for k in ks]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    found = cm.analysis.reconstruction_error(factors.s)
    wanted = [numpy_analysis.reconstruction(wide, k) for k in ks]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    found = cm.analysis.kept_energy(factors.s)
    wanted = [[numpy_analysis.kept_energy(x, k) for k in ks] for x in wide]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for measure in ("effective_rank", "stable_rank"):
        found = getattr(cm.analysis, measure)(factors.s)
        wanted = [getattr(numpy_analysis, measure)(x) for x in wide]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    found, wanted = cm.analysis.cosines(factors), numpy_analysis.cosines(wide)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for k in ks:
        found = cm.analysis.subspace_alignment(factors, rank=k)
        wanted = numpy_analysis.alignments(wide, k)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        found = cm.analysis.singular_task_interference(factors, rank=k)
        np.testing.assert_allclose(found, numpy_analysis.sti(wide, k), rtol=1e-4)


def test_a_rank_may_be_a_share():
    factors = factors_of(random_matrices())
    for measure in ("subspace_alignment", "singular_task_interference"):
        found = [getattr(cm.analysis, measure)(factors, rank=k) for k in (0.5, 3)]
        np.testing.assert_array_equal(*found)


# --- whole models


def as_rows(name):
    """How NumPy sees a leaf of the small models, `[out, in]`; None if it is none."""
    view = as_matrix(name)
    return view and (lambda x: view(x).T)


def test_everything_of_whole_models():
    trees, base = experts(), expert(9)
    found = cm.analysis.analyse(trees, base, shares=SHARES, alignment=0.25)
    tasks = sorted(trees)
    assert found["tasks"] == tasks
    assert found["origins"] == ["mean", "base"]
    assert found["shares"] == list(SHARES)
    leaves = {name: named_leaves(tree) for name, tree in trees.items()}
    start = named_leaves(base)
    matrices = [name for name in start if as_rows(name)]
    assert found["matrices"].keys() == set(matrices)
    assert found["leaves"].keys() == start.keys() - {"steps"}
    everything = {"mean": [], "base": []}
    for name in matrices:
        own = [as_rows(name)(leaves[task][name]).astype(np.float64) for task in tasks]
        origins = {"mean": sum(own) / 3, "base": as_rows(name)(start[name])}
        measured = found["matrices"][name]
        assert measured["shape"] == list(origins["mean"].shape)
        assert measured["layer"] == 0
        for origin, middle in origins.items():
            facts = numpy_analysis.matrix_facts(
                [x - middle for x in own], SHARES, 0.25
            ) | {"indices": range(WIDTH)}
            assert_same(measured[origin], facts, rtol=1e-4, atol=2e-5, where=name)
            everything[origin].append(facts)
    for origin, facts in everything.items():
        means = found["mean_over_matrices"][origin]
        assert means.pop("matrices") == len(matrices)
        for key, value in means.items():
            wanted = np.mean([np.array(one[key], float) for one in facts], axis=0)
            assert_same(value, wanted, rtol=1e-4, atol=2e-5, where=key)
    for name in found["leaves"]:
        versions = [leaves[task][name] for task in tasks]
        facts = numpy_analysis.leaf_facts(versions, start[name])
        assert_same(found["leaves"][name], facts, rtol=1e-6, atol=1e-6, where=name)


def test_parts_change_nothing():
    trees, base = experts(blocks=2), expert(9, blocks=2)
    whole = cm.analysis.analyse(trees, base, shares=SHARES)
    parts = cm.analysis.analyse(trees, base, shares=SHARES, memory=1)
    assert parts.pop("tasks") == whole.pop("tasks")
    assert parts.pop("origins") == whole.pop("origins")
    assert_same(parts, whole, rtol=1e-5)


def test_fused_matrices_are_measured_as_one():
    trees = experts()
    found = cm.analysis.analyse(trees, shares=SHARES, views=cm.views.fused)
    name = "+".join(QKV)
    measured = found["matrices"][name]
    assert measured["shape"] == [3 * WIDTH, WIDTH]
    assert not found["matrices"].keys() & set(QKV)
    joint = []
    for task in sorted(trees):
        leaves = named_leaves(trees[task])
        parts = [leaves[x].reshape(WIDTH, WIDTH).T for x in QKV]
        joint.append(np.concatenate(parts).astype(np.float64))
    middle = sum(joint) / 3
    facts = numpy_analysis.matrix_facts([x - middle for x in joint], SHARES, 0.08)
    measured = {k: x for k, x in measured["mean"].items() if k != "indices"}
    assert_same(measured, facts, rtol=1e-4, atol=2e-5)


def test_fused_leaves_that_are_split():
    rng = np.random.default_rng(0)
    trees = [{"attn": {"in_proj_weight": matrix(rng, (48, 16), 1)}} for _ in range(3)]
    found = cm.analysis.analyse(trees, shares=SHARES, views=cm.views.split)
    parts = [
        {f"{i}": {"weight": tree["attn"]["in_proj_weight"][16 * i : 16 * (i + 1)]}}
        for tree in trees
        for i in range(3)
    ]
    for i in range(3):
        alone = cm.analysis.analyse(parts[i::3], shares=SHARES)
        assert_same(
            found["matrices"][f"attn/in_proj_weight[{i}]"]["mean"],
            alone["matrices"][f"{i}/weight"]["mean"],
        )
        assert found["matrices"][f"attn/in_proj_weight[{i}]"]["layer"] is None


def stacked(tree):
    """Blocks on a leading axis, as `flax.linen.scan` and `nnx.scan` have them."""
    blocks = [tree["blocks"][name] for name in sorted(tree["blocks"])]
    return {"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)}


@pytest.mark.parametrize("memory", [1, 2**30])
def test_scanned_stacks_are_measured_layer_by_layer(memory):
    trees, base = experts(blocks=3), expert(9, blocks=3)
    apart = cm.analysis.analyse(trees, base, shares=SHARES)
    scanned = cm.analysis.analyse(
        {name: stacked(tree) for name, tree in trees.items()},
        stacked(base),
        shares=SHARES,
        views=lambda tree: cm.views.auto(tree, scanned="blocks/.*"),
        memory=memory,
    )
    assert len(scanned["matrices"]) == len(apart["matrices"])
    for name, measured in apart["matrices"].items():
        layer, leaf = name.removeprefix("blocks/").split("/", 1)
        own = scanned["matrices"][f"blocks/{leaf}[{layer}]"]
        assert own["layer"] == int(layer)
        assert_same(own, measured, rtol=1e-4, atol=1e-5, where=name)


def test_the_layout_does_not_matter():
    """Rows of PyTorch are columns of Flax: row spaces are of inputs in both."""
    matrices = random_matrices((6, 9))
    flax = cm.analysis.analyse([{"a": {"kernel": x}} for x in matrices])
    torch = cm.analysis.analyse([{"a": {"weight": x.T}} for x in matrices])
    assert_same(torch["matrices"]["a/weight"], flax["matrices"]["a/kernel"])
    assert torch["matrices"]["a/weight"]["shape"] == [9, 6]


def test_the_other_side_would_be_another_number():
    matrices = random_matrices((6, 6))
    one = cm.analysis.interference(factors_of(matrices))
    other = cm.analysis.interference(factors_of([x.T for x in matrices]))
    assert abs(float(one[1] - other[1])) > 0.01


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_widened_first(dtype):
    narrow = {name: cast(tree, dtype) for name, tree in experts().items()}
    wide = {name: cast(tree, np.float32) for name, tree in narrow.items()}
    base = cast(expert(9), dtype)
    found = cm.analysis.analyse(narrow, base)
    assert found == cm.analysis.analyse(wide, cast(base, np.float32))


def test_only_some_singular_values_are_listed():
    shape = (300, 280)
    trees = [{"kernel": x} for x in random_matrices(shape, 2)]
    measured = cm.analysis.analyse(trees)["matrices"]["kernel"]["mean"]
    assert len(measured["indices"]) == 256
    assert [measured["indices"][0], measured["indices"][-1]] == [0, 279]
    s = np.linalg.svd((trees[0]["kernel"] - trees[1]["kernel"]) / 2)[1]
    found = measured["singular_values"][0]
    np.testing.assert_allclose(found, s[measured["indices"]], rtol=1e-3, atol=1e-6)


# --- laws


def test_interference_over_the_whole_spectrum_grows_with_rank():
    factors = factors_of(random_matrices((12, 10), 4))
    found = np.asarray(cm.analysis.interference(factors, normalise="whole"))
    assert (np.diff(found) >= 0).all()
    top = cm.analysis.interference(factors)
    np.testing.assert_allclose(found[-1], top[-1], rtol=1e-6)
    assert (np.asarray(top) <= 4 * 3).all()
    assert (found <= np.asarray(top) * (1 + 1e-6)).all()


def test_reconstruction_is_the_tail_of_the_squares():
    s = factors_of(random_matrices((12, 10), 4)).s
    found = cm.analysis.reconstruction_error(s)
    assert float(found[-1]) == 0
    wanted = [
        float((np.asarray(s, np.float64)[:, k:] ** 2).sum()) for k in range(1, 11)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    kept = cm.analysis.kept_energy(s)
    assert (np.asarray(kept)[:, -1] == 1).all()


def test_equal_experts():
    """They differ by nothing from their mean, and in nothing from each other."""
    one, base = expert(0), expert(9)
    found = cm.analysis.analyse([one] * 6, base, shares=SHARES)
    for measured in found["matrices"].values():
        assert measured["mean"]["norm"] == [0.0] * 6
        assert measured["mean"]["interference_top"] == [0.0] * 4
        assert measured["mean"]["reconstruction_relative"] == [0.0] * 4
        assert measured["mean"]["kept_energy"] == [[1.0] * 4] * 6
        assert measured["mean"]["effective_rank"] == [0.0] * 6
        assert measured["mean"]["alignment"] == [[0.0] * 6] * 6
        assert measured["mean"]["sti"][0] == 0.0
        np.testing.assert_allclose(measured["base"]["cosine"], 1, atol=1e-5)
        np.testing.assert_allclose(measured["base"]["alignment"], 1, atol=1e-5)
        # Of one matrix with itself what is left is its own spectrum.
        s = np.array(measured["base"]["singular_values"][0])
        w = s**2 / (s**2).sum()
        wanted = 6 * 5 * np.sqrt((w**2).sum())
        np.testing.assert_allclose(
            measured["base"]["interference_top"][-1], wanted, rtol=1e-4
        )
    means = found["mean_over_matrices"]
    assert means["mean"]["matrices"] == 0
    assert means["mean"]["interference_top"] is None
    assert means["base"]["matrices"] == len(found["matrices"])
    for leaf in found["leaves"].values():
        assert leaf["mean"]["norm"] == [0.0] * 6
        assert leaf["mean"]["cosine"] == [[0.0] * 6] * 6
        assert leaf["base"]["norm_ratio"] == pytest.approx(1, rel=1e-6)


def test_experts_that_use_orthogonal_inputs_do_not_interfere():
    rng = np.random.default_rng(0)
    inputs, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    matrices = [
        (rng.normal(size=(6, 3)) @ inputs[3 * i : 3 * i + 3]).astype(np.float32)
        for i in range(3)
    ]
    factors = factors_of(matrices)
    for normalise in cm.analysis.NORMALISATIONS:
        found = cm.analysis.interference(factors, normalise=normalise)
        np.testing.assert_allclose(found, 0, atol=1e-5)
    eye = np.eye(3)
    np.testing.assert_allclose(cm.analysis.cosines(factors), eye, atol=1e-5)
    for k in (1, 3, 6):  # there are three directions, whatever is asked for
        found = cm.analysis.subspace_alignment(factors, rank=k)
        np.testing.assert_allclose(found, eye, atol=1e-5)
        found = cm.analysis.singular_task_interference(factors, rank=k)
        np.testing.assert_allclose(found, 0, atol=1e-4)


def test_norms_of_orthogonal_task_vectors_shrink_by_the_root_of_their_number():
    base = {"w": np.ones(16, np.float32)}
    trees = [{"w": base["w"] + np.eye(16, dtype=np.float32)[i]} for i in range(4)]
    merged = cm.weight_average(trees)
    (found,) = cm.analysis.norm_ratios(merged, trees, base).values()
    assert found == pytest.approx(0.5)
    leaf = cm.analysis.analyse(trees, base)["leaves"]["w"]
    assert leaf["base"]["norm_ratio"] == pytest.approx(0.5)
    assert leaf["mean"]["cosine"][0][1] == pytest.approx(-1 / 3)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_the_size_of_task_vectors_does_not_matter(factor):
    matrices = random_matrices()
    one = cm.analysis.analyse([{"kernel": x} for x in matrices], shares=SHARES)
    scaled = [{"kernel": x * np.float32(factor)} for x in matrices]
    found = cm.analysis.analyse(scaled, shares=SHARES)["matrices"]["kernel"]["mean"]
    wanted = one["matrices"]["kernel"]["mean"]
    for name in ("singular_values", "norm", "sti"):
        values = [x and np.array(x, float) * factor for x in wanted[name] if x]
        own = [np.array(x, float) for x in found[name] if x]
        np.testing.assert_allclose(own, values, rtol=1e-4, atol=1e-6 * factor)
    sizes = {"singular_values", "norm", "sti", "reconstruction", "interference_none"}
    same = found.keys() - sizes
    assert len(same) == 9
    for name in same:
        assert_same(found[name], wanted[name], rtol=1e-4, atol=1e-5, where=name)


def test_two_experts_are_opposite_around_their_mean():
    found = cm.analysis.analyse(experts(("a", "b")), shares=SHARES)
    for measured in found["matrices"].values():
        own = measured["mean"]
        np.testing.assert_allclose(own["cosine"], [[1, -1], [-1, 1]], atol=1e-5)
        np.testing.assert_allclose(own["alignment"], 1, atol=1e-5)
        assert own["interference_top"][0] == pytest.approx(2, rel=1e-4)


def test_one_expert_interferes_with_none():
    found = cm.analysis.analyse([expert(0)], expert(9), shares=SHARES)
    for measured in found["matrices"].values():
        assert measured["base"]["interference_whole"] == [0.0] * 4
        assert measured["base"]["sti"] == [0.0] * 4
        np.testing.assert_allclose(measured["base"]["cosine"], 1, atol=1e-5)
        assert measured["mean"]["norm"] == [0.0]


def test_a_task_that_changed_nothing():
    matrices = [*random_matrices(), np.zeros((9, 6), np.float32)]
    factors = factors_of(matrices)
    three = factors_of(matrices[:3])
    found, wanted = map(cm.analysis.interference, (factors, three))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for k in (1, 6):
        found, wanted = (
            cm.analysis.singular_task_interference(x, rank=k) for x in (factors, three)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        found = np.asarray(cm.analysis.subspace_alignment(factors, rank=k))
        assert (found[3] == 0).all()
        assert (found[:, 3] == 0).all()
    assert not np.isnan(np.asarray(cm.analysis.cosines(factors))).any()
    base = {"kernel": np.ones((9, 6), np.float32)}
    ratios = cm.analysis.norm_ratios(base, [base, base], base)
    assert np.isnan(ratios["kernel"])


def test_ranks_beyond_the_matrix_count_for_nothing():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(3, 9, 2)), rng.normal(size=(3, 2, 6))
    factors = factors_of(list((left @ right).astype(np.float32)))
    found = np.asarray(cm.analysis.interference(factors))
    np.testing.assert_allclose(found[1:], found[1], rtol=1e-5)
    for measure in ("subspace_alignment", "singular_task_interference"):
        two, six = (getattr(cm.analysis, measure)(factors, rank=k) for k in (2, 6))
        np.testing.assert_allclose(two, six, rtol=1e-4, atol=1e-6)
    assert (np.asarray(cm.analysis.effective_rank(factors.s)) < 2.001).all()


def test_all_measures_can_be_traced():
    factors = factors_of(random_matrices())
    for measure, static in (
        (cm.analysis.interference, {}),
        (cm.analysis.cosines, {}),
        (cm.analysis.subspace_alignment, {"rank": 2}),
        (cm.analysis.singular_task_interference, {"rank": 2}),
    ):
        traced = jax.jit(lambda x, f=measure, s=static: f(x, **s))(factors)
        np.testing.assert_allclose(traced, measure(factors, **static), atol=1e-5)


# --- leaves


def test_norm_ratios_and_scopes_of_leaves():
    trees, base = experts(), expert(9)
    merged = cm.weight_average(trees)
    plain = cm.analysis.norm_ratios(merged, trees)
    vectors = cm.analysis.norm_ratios(merged, trees, base)
    found = cm.analysis.analyse(trees, base)["leaves"]
    scopes = {task: cm.analysis.weight_scopes(tree) for task, tree in trees.items()}
    assert plain.keys() == vectors.keys() == scopes["cars"].keys() == found.keys()
    for name, leaf in found.items():
        assert plain[name] == pytest.approx(leaf["norm_ratio"], rel=1e-5)
        assert vectors[name] == pytest.approx(leaf["base"]["norm_ratio"], rel=1e-4)
        for i, task in enumerate(sorted(trees)):
            x = named_leaves(trees[task])[name].astype(np.float64)
            centre, spread = scopes[task][name]
            assert centre == pytest.approx(x.mean(), abs=1e-9)
            assert spread == pytest.approx(x.std(), rel=1e-9)
            own = leaf["scope"]["deviation"]["experts"][i]
            assert own == pytest.approx(spread, rel=1e-6)


def test_scopes_are_those_that_alignment_uses():
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    ((centre, spread),) = cm.analysis.weight_scopes(params).values()
    ((other, width),) = cm.methods.weight_scopes([params]).values()
    assert (centre, spread) == pytest.approx((float(other), float(width)))


def test_small_differences_between_large_numbers_are_not_lost():
    rng = np.random.default_rng(0)
    common = 1000 + rng.normal(size=500)
    small = 1e-9 * rng.normal(size=(3, 500))
    with jax.enable_x64(True):
        trees = [{"w": common + x} for x in small]
        leaf = cm.analysis.analyse(trees, {"w": common})["leaves"]["w"]
    exact = [np.linalg.norm((common + x) - common) for x in small]
    np.testing.assert_allclose(leaf["base"]["norm"], exact, rtol=1e-6)


def test_empty_leaves_and_leaves_that_are_not_merged():
    tree = {"a": np.zeros((0,), np.float32), "n": np.int32(3), "w": np.ones(2)}
    tree["w"] = tree["w"].astype(np.float32)
    found = cm.analysis.analyse([tree, tree])
    assert list(found["leaves"]) == ["w"]
    assert found["matrices"] == {}
    assert found["mean_over_matrices"]["mean"]["matrices"] == 0


# --- what is refused


def test_what_is_refused():
    trees = experts()
    tv = cm.truncate(cm.center(trees), rank=0.5)
    with pytest.raises(cm.ParameterError, match="are truncated: analyse the full ones"):
        cm.analysis.factorise(tv)
    factors = factors_of(random_matrices())
    with pytest.raises((cm.ParameterError, jaxtyping.TypeCheckError)):
        cm.analysis.interference(factors, normalise="all")
    for shares in ((0.0, 0.5), (0.5, 1.5), (float("nan"),)):
        with pytest.raises(cm.ParameterError, match=r"a float in \(0, 1\]; got"):
            cm.analysis.analyse(trees, shares=shares)
    with pytest.raises((cm.ParameterError, jaxtyping.TypeCheckError)):
        cm.analysis.analyse(trees, shares=(1,))
    for shares in ((), (0.5, 0.1), (0.1, 0.1)):
        with pytest.raises(cm.ParameterError, match="ascend"):
            cm.analysis.analyse(trees, shares=shares)
    with pytest.raises(cm.ParameterError, match="there is no expert"):
        cm.analysis.analyse([])
    with pytest.raises(cm.StructureError, match="missing"):
        cm.analysis.analyse([{"w": np.ones(2)}, {"v": np.ones(2)}])
    with pytest.raises(cm.ViewError):
        cm.analysis.analyse([{"odd": np.ones((2, 2), np.float32)}] * 2)
    with pytest.raises(cm.ParameterError, match="has no scope"):
        cm.analysis.weight_scopes({"w": np.zeros(0, np.float32)})
