"""Ranks and scales that are found from the weights."""

import math
import re

import jaxtyping
import numpy as np
import pytest
import zoo
from numpy_methods import noise_edge as edge_by_midpoints
from safetensors.numpy import load_file, save_file

import centermerge_jax as cm
from centermerge_jax import needs, stream
from centermerge_jax.linalg import noise_edge
from centermerge_jax.linalg.noise import marchenko_pastur_median
from centermerge_jax.methods import METHODS
from centermerge_jax.planning import plan
from centermerge_jax.recipe import Override, Recipe

METHOD = METHODS["cart_data_free"].function
WHOLE = METHODS["cart_data_free_whole"].function
BOTH = pytest.mark.parametrize("method", [METHOD, WHOLE])
MATCH = pytest.mark.parametrize("match", ["projection", "length"])


def test_the_edge_is_the_published_one():
    # Gavish and Donoho: 2.858 for square matrices, 4 / sqrt(3) of known noise, and a
    # polynomial within 0.02 of the others.
    assert noise_edge(300, 300) == pytest.approx(2.858, abs=5e-4)
    known = noise_edge(7, 7) * math.sqrt(marchenko_pastur_median(1.0))
    assert known == pytest.approx(4 / math.sqrt(3), rel=1e-12)
    for b in np.linspace(0.01, 1, 34):
        approximate = 0.56 * b**3 - 0.95 * b**2 + 1.82 * b + 1.43
        exact = noise_edge(round(b * 10_000), 10_000)
        assert exact == pytest.approx(approximate, abs=0.02)


@pytest.mark.parametrize(
    ("m", "n"), [(1, 768), (2, 2), (16, 24), (384, 1536), (99, 100)]
)
def test_the_edge_by_another_quadrature(m, n):
    assert noise_edge(m, n) == noise_edge(n, m)
    assert noise_edge(m, n) == pytest.approx(edge_by_midpoints(m, n), rel=1e-3)


def test_the_median_is_that_of_noise():
    s = np.linalg.svd(np.random.default_rng(0).normal(size=(300, 600)), compute_uv=0)
    assert np.median(s) ** 2 / 600 == pytest.approx(
        marchenko_pastur_median(0.5), rel=0.02
    )


def noisy(rank, *, strength, m=120, n=200, seed=0):
    """A matrix of some rank under noise, with singular values far above its end."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(size, m)))[0][:, :rank] for size in (m, n))
    end = math.sqrt(m) + math.sqrt(n)
    noise = strength * rng.normal(size=(m, n))
    return np.float32(noise + strength * end * (u * np.linspace(2, 4, rank)) @ v.T)


@pytest.mark.parametrize("strength", [1e-20, 1e-3, 1e15])
def test_the_rank_under_noise_is_found(strength):
    ranks = {"a": 1, "b": 5, "c": 9}
    zero = {"kernel": np.zeros((120, 200), np.float32)}
    experts = {
        task: {"kernel": noisy(rank, strength=strength, seed=rank)}
        for task, rank in ranks.items()
    }
    tv = cm.truncate(cm.subtract(experts, zero), rank=1.0, noise=1.0)
    assert (np.asarray(tv.deltas["kernel"].s) > 0).sum(1).tolist() == [1, 5, 9]
    # `rank` is the most there can be, of a spectrum that is known as a whole.
    few = cm.truncate(cm.subtract(experts, zero), rank=4, noise=1.0).deltas["kernel"]
    assert few.u.shape == (3, 120, 4)
    assert (np.asarray(few.s) > 0).sum(1).tolist() == [1, 4, 4]


def test_of_noise_alone_a_matrix_is_the_mean():
    rng = np.random.default_rng(0)
    experts = [
        {
            "kernel": np.float32(rng.normal(size=(60, 80))),
            "norm/scale": np.ones(3, "f4"),
        }
        for _ in range(4)
    ]
    mean = np.mean([np.float64(x["kernel"]) for x in experts], axis=0)
    for found in (
        cm.cart(experts, rank=1.0, noise=1.0, scale=3.0),
        METHOD(experts, noise=1.0),
        WHOLE(experts, noise=1.0),
    ):
        np.testing.assert_allclose(found["kernel"], mean, rtol=0, atol=1e-6)


def test_small_matrices_have_nothing_above_the_edge():
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (2, 50), (1, 7)):
        experts = [{"kernel": np.float32(rng.normal(size=shape))} for _ in range(3)]
        tv = cm.truncate(cm.center(experts), rank=1.0, noise=1.0)
        assert not np.asarray(tv.deltas["kernel"].s).any()


def test_what_lacks_rank_has_no_noise():
    """All that is there is kept, and nothing of what rounding made."""
    rng = np.random.default_rng(0)
    low = [rng.normal(size=(40, 3)) @ rng.normal(size=(3, 50)) for _ in range(3)]
    zero = {"kernel": np.zeros((40, 50), np.float32)}
    tv = cm.subtract([{"kernel": np.float32(x)} for x in low], zero)
    s = np.asarray(cm.truncate(tv, rank=1.0, noise=1.0).deltas["kernel"].s)
    assert (s > 0).sum(1).tolist() == [3, 3, 3]


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_wrong_noise(noise):
    with pytest.raises(cm.ParameterError, match="noise is a positive multiple"):
        cm.cart(zoo.models()[0], rank=1.0, noise=noise, scale=1.0)


def test_a_truncated_spectrum_has_no_edge():
    tv = cm.truncate(cm.center(zoo.models()[0]), rank=4)
    with pytest.raises(cm.ParameterError, match="its whole spectrum is not known"):
        cm.truncate(tv, rank=2, noise=1.0)


def lengths(experts, merged, names):
    """Of each task's way from the mean, and of the merge's, over some leaves."""
    mean = {n: np.mean([np.float64(t[n]) for t in experts.values()], 0) for n in names}

    def length(tree):
        return math.hypot(*(np.linalg.norm(tree[n] - mean[n]) for n in names))

    return [length(tree) for tree in experts.values()], length(merged)


def test_length_is_that_of_the_experts():
    experts, _ = zoo.models(4)
    merged = WHOLE(experts, rank=0.25, match="length")
    known = [n for n in zoo.MATRICES if n != "small/kernel"]
    of_experts, found = lengths(experts, merged, zoo.MATRICES)
    assert found == pytest.approx(np.mean(of_experts), rel=1e-4)
    # And matrix by matrix.
    merged = METHOD(experts, rank=0.25, match="length")
    for name in known:
        of_experts, found = lengths(experts, merged, [name])
        assert found == pytest.approx(np.mean(of_experts), rel=1e-4)


def orthogonal(count, size=12):
    """Experts that changed two directions each, that no other one changed."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    pairs = [q[:, 2 * i : 2 * i + 2] for i in range(count)]
    return {
        str(i): {"kernel": np.float32(3 * x @ x.T + np.eye(size))}
        for i, x in enumerate(pairs)
    }


@BOTH
def test_tasks_apart_are_all_restored(method):
    """Where truncation finds each task's own directions, they come back whole."""
    experts = orthogonal(4)
    merged = np.asarray(method(experts, rank=2)["kernel"])
    total = sum(np.float64(x["kernel"]) - np.eye(12) for x in experts.values())
    np.testing.assert_allclose(merged, np.eye(12) + total, rtol=0, atol=1e-5)
    # A centred vector has (tasks - 1) / tasks of its squares in them.
    merged = np.asarray(method(experts, energy=0.74)["kernel"])
    np.testing.assert_allclose(merged, np.eye(12) + total, rtol=0, atol=1e-5)


@BOTH
@MATCH
@pytest.mark.parametrize("noise", [1e-5, 1e-3, 3e-2, 0.1])
def test_what_nearly_cancels_is_not_blown_up(method, match, noise):
    rng = np.random.default_rng(0)
    experts = {
        task: {"kernel": tree["kernel"] + np.float32(noise * rng.normal(size=(12, 12)))}
        for task, tree in orthogonal(3).items()
    }
    # Six directions of each hold all that is common: the sum is what is left out.
    plain = cm.cart(experts, rank=6, scale=1.0)
    merged = method(experts, rank=6, match=match)
    of_experts, found = lengths(experts, merged, ["kernel"])
    _, left = lengths(experts, plain, ["kernel"])
    assert found <= 100.1 * left
    assert found <= 10.1 * math.hypot(*of_experts)


@BOTH
@MATCH
@pytest.mark.parametrize("how", [{"rank": 0.25}, {"energy": 0.5}, {"rank": 1.0}])
def test_two_experts_and_one_are_their_average(method, match, how):
    experts, _ = zoo.models(2)
    for some in (experts, dict(list(experts.items())[:1])):
        merged = method(some, match=match, **how)
        for name in zoo.MATRICES:
            mean = np.mean([np.float64(tree[name]) for tree in some.values()], axis=0)
            np.testing.assert_allclose(merged[name], mean, rtol=0, atol=1e-6)


@BOTH
@MATCH
def test_whole_vectors_are_the_average(method, match):
    experts, _ = zoo.models()
    merged = method(experts, rank=1.0, match=match)
    mean = cm.weight_average(experts)
    for name in zoo.MATRICES:
        np.testing.assert_allclose(merged[name], mean[name], rtol=0, atol=1e-6)


@BOTH
@MATCH
@pytest.mark.parametrize("size", [1e-20, 1e12])
def test_very_long_and_short_vectors(method, match, size):
    experts, _ = zoo.models()
    mean = cm.weight_average(experts)
    around = {
        task: {n: np.float32(x - mean[n]) for n, x in tree.items()}
        for task, tree in experts.items()
    }
    sized = {
        task: {n: np.float32(size) * x for n, x in tree.items()}
        for task, tree in around.items()
    }
    found, wanted = (
        method(x, rank=0.25, match=match, solver="exact") for x in (sized, around)
    )
    for name in zoo.MATRICES:
        unit = np.abs(wanted[name]).max()
        np.testing.assert_allclose(
            np.asarray(found[name]) / np.float32(size),
            wanted[name],
            rtol=0,
            atol=2e-4 * unit,
        )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"match": "norm"}, "match is projection or length; got 'norm'"),
        ({"per": "layer"}, "per is matrix or model; got 'layer'"),
        ({"match": "length"}, "needs the whole task vectors"),
    ],
)
def test_what_rescale_refuses(told, message):
    tv = cm.truncate(cm.center(zoo.models()[0]), rank=0.25)
    wrong = (cm.ParameterError, jaxtyping.TypeCheckError)
    with pytest.raises(wrong, match=re.escape(message) + "|Literal"):
        cm.rescale(tv, **told)


def test_nothing_to_rescale():
    with pytest.raises(cm.ParameterError, match="no task vector is truncated"):
        cm.rescale(cm.center(zoo.models()[0]))


def test_already_factors_have_a_length_too():
    """Those of experts that were given as factors, of which some are left out."""
    whole = cm.truncate(cm.center(zoo.models()[0]), rank=1.0, views=cm.views.fused)
    dense = cm.center(zoo.models()[0])
    low = cm.truncate(whole, rank=0.25)
    for per in ("matrix", "model"):
        found = cm.rescale(low, match="length", whole=whole, per=per)
        wanted = cm.rescale(low, match="length", whole=dense, per=per)
        for name, (_, delta) in found.flat().items():
            if isinstance(delta, cm.LowRank):
                own = wanted.flat()[name][1]
                np.testing.assert_allclose(delta.s, own.s, rtol=1e-4, atol=0)


@pytest.fixture
def paths(tmp_path):
    found = {}
    for name, tree in zoo.models()[0].items():
        found[name] = str(tmp_path / f"{name}.safetensors")
        save_file(dict(tree), found[name])
    return found


@pytest.mark.parametrize("name", ["cart_data_free", "cart_data_free_whole"])
@pytest.mark.parametrize(
    "told", [{"rank": 0.25}, {"rank": 12}, {"energy": 0.6}, {"noise": 0.7}]
)
def test_from_files(name, told, paths, tmp_path, monkeypatch):
    """Also with a rank that matrices of several sizes have a share of each."""
    monkeypatch.setattr(needs, "LEAST", 64)
    monkeypatch.setattr(needs, "AT_ONCE", 64)
    stream.merge(paths, tmp_path / "merged.safetensors", name, **told)
    merged = load_file(tmp_path / "merged.safetensors")
    for leaf, x in METHODS[name].function(zoo.models()[0], **told).items():
        np.testing.assert_allclose(merged[leaf], x, rtol=0, atol=5e-6, err_msg=leaf)


def test_one_scale_for_what_is_seen_at_once(paths):
    recipe = Recipe(
        experts=tuple(paths.values()),
        method="cart_data_free_whole",
        overrides=(Override(match=".*mlp.*", scale=2.0),),
        scale=1.0,
    )
    with pytest.raises(cm.ParameterError, match="takes one for all leaves"):
        plan(recipe)
