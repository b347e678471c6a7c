"""What must hold for every set of experts, by hypothesis, on few shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import deviation_norm

import centermerge_jax as cm

M, N = 6, 9
RANKS = st.sampled_from([1, 2, 0.5, 1.0])
SCALES = st.sampled_from([0.0, 0.5, 1.0, 2.5])
SEEDS = st.integers(0, 2**32 - 1)
laws = settings(max_examples=20, deadline=None, derandomize=True)


def draw(seed, tasks=3):
    """Experts whose centred vectors have prescribed gaps: one frame, own spectra."""
    rng = np.random.default_rng(seed)
    experts = {}
    for i in range(tasks):
        u, _ = np.linalg.qr(rng.normal(size=(M, M)))
        v, _ = np.linalg.qr(rng.normal(size=(N, N)))
        kernel = (u * 0.3 ** np.arange(M)) @ v[:, :M].T * (1 + i)
        experts[f"task {i}"] = {
            "kernel": kernel.astype(np.float32),
            "bias": rng.normal(size=N).astype(np.float32),
        }
    return experts


@functools.cache
def merge(rank):
    run = functools.partial(cm.cart, rank=rank, solver="exact")
    return jax.jit(lambda experts, scale: run(experts, scale=scale))


def close(a, b, experts, tolerance=2e-4):
    for leaf in ("kernel", "bias"):
        unit = max(deviation_norm([e[leaf] for e in experts.values()]), 1.0)
        assert (
            np.linalg.norm(np.float64(a[leaf]) - np.float64(b[leaf]))
            <= tolerance * unit
        )


def average(experts):
    return {
        leaf: np.mean([np.float64(e[leaf]) for e in experts.values()], axis=0)
        for leaf in ("kernel", "bias")
    }


@laws
@given(SEEDS, SCALES)
def test_full_rank_is_the_average_for_every_scale(seed, scale):
    experts = draw(seed)
    close(merge(1.0)(experts, scale), average(experts), experts)
    close(merge(M)(experts, scale), average(experts), experts)


@laws
@given(SEEDS, RANKS, SCALES)
def test_two_experts_give_the_average_for_every_rank(seed, rank, scale):
    experts = draw(seed, tasks=2)
    close(merge(rank)(experts, scale), average(experts), experts)


@laws
@given(SEEDS, RANKS, SCALES)
def test_one_expert_returns_itself(seed, rank, scale):
    experts = draw(seed, tasks=1)
    merged = merge(rank)(experts, scale)
    np.testing.assert_array_equal(merged["kernel"], experts["task 0"]["kernel"])
    np.testing.assert_array_equal(merged["bias"], experts["task 0"]["bias"])


@laws
@given(SEEDS, RANKS, SCALES, st.permutations(range(3)))
def test_the_order_of_experts_does_not_matter(seed, rank, scale, order):
    experts = draw(seed)
    names = list(experts)
    shuffled = {names[i]: experts[name] for i, name in zip(order, names, strict=True)}
    close(merge(rank)(experts, scale), merge(rank)(shuffled, scale), experts)


@laws
@given(SEEDS, RANKS, SCALES)
def test_translating_all_experts_translates_the_result(seed, rank, scale):
    experts, shift = draw(seed), draw(seed + 1)["task 0"]
    moved = {n: jax.tree.map(jnp.add, e, shift) for n, e in experts.items()}
    wanted = jax.tree.map(jnp.add, merge(rank)(experts, scale), shift)
    close(merge(rank)(moved, scale), wanted, experts)


@laws
@given(SEEDS, RANKS, SCALES)
def test_rotating_a_matrix_commutes(seed, rank, scale):
    experts = draw(seed)
    q, _ = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(M, M)))
    q = q.astype(np.float32)
    turned = {n: e | {"kernel": q @ e["kernel"]} for n, e in experts.items()}
    merged = merge(rank)(experts, scale)
    close(
        merge(rank)(turned, scale), {**merged, "kernel": q @ merged["kernel"]}, experts
    )


@laws
@given(SEEDS, RANKS, SCALES)
def test_doubling_every_deviation_doubles_the_correction(seed, rank, scale):
    experts = draw(seed)
    mean = average(experts)
    doubled = {
        name: {k: np.float32(2 * np.float64(x) - mean[k]) for k, x in e.items()}
        for name, e in experts.items()
    }
    once, twice = merge(rank)(experts, scale), merge(rank)(doubled, scale)
    wanted = {k: 2 * np.float64(x) - mean[k] for k, x in once.items()}
    close(twice, wanted, doubled)


@laws
@given(SEEDS)
def test_selecting_at_full_rank_and_scale_one_returns_the_expert(seed):
    experts = draw(seed)
    tv = cm.truncate(cm.center(experts), rank=1.0)
    for name, expert in experts.items():
        close(cm.select(tv, name, scale=1.0), expert, experts, tolerance=1e-5)


@laws
@given(SEEDS, RANKS)
def test_scale_zero_is_the_origin_and_the_result_is_affine_in_it(seed, rank):
    experts = draw(seed)
    at = {scale: merge(rank)(experts, scale) for scale in (0.0, 1.0, 2.0)}
    close(at[0.0], average(experts), experts, tolerance=1e-6)
    wanted = {k: 2 * np.float64(at[1.0][k]) - at[0.0][k] for k in at[0.0]}
    close(at[2.0], wanted, experts)


@laws
@given(SEEDS, st.sampled_from([1, 2, 0.5]))
def test_the_rank_kept_is_the_rank_asked_for(seed, rank):
    """Rank 0 cannot happen silently, nor any other number of directions."""
    tv = cm.truncate(cm.center(draw(seed)), rank=rank)
    k = {1: 1, 2: 2, 0.5: 3}[rank]
    for task in range(3):
        merged = cm.select(tv, task, scale=1.0)
        difference = np.float64(merged["kernel"]) - np.float64(tv.origin["kernel"])
        s = np.linalg.svd(difference, compute_uv=False)
        assert s[k - 1] > 1e-4 * s[0]
        assert np.all(s[k:] < 1e-5 * s[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_leaves_without_a_view_come_out_as_the_mean_without_rounding_dust(dtype):
    experts = [
        jax.tree.map(lambda x: jnp.asarray(x, dtype), e) for e in draw(0).values()
    ]
    merged = cm.cart(experts, rank=1, scale=7.0)
    mean = cm.weight_average(experts)
    np.testing.assert_array_equal(merged["bias"], mean["bias"])
    same = [experts[0]] * 3
    for k, x in cm.weight_average(same).items():
        np.testing.assert_array_equal(x, experts[0][k])
