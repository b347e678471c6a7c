"""The truncated SVD: every solver on matrices of prescribed spectrum, host and jit."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import centermerge_jax as cm
from centermerge_jax.linalg import TOLERANCE, choose_solver, device, host, solve
from centermerge_jax.linalg.report import certify

M, N, K = 160, 96, 12
I = np.arange(1, N + 1)  # noqa: E741  the index of a singular value
FALLING = I**-0.6 * np.exp(-I / (0.45 * N))  # as those of fine-tuning fall

SPECTRA = {
    "falling": FALLING,
    "geometric": 10.0 ** (-6 * I / N),
    "flat": np.ones(N),
    "flat with a gap": np.where(I <= K, 1.0, 0.1),
    "clustered at the cut": np.where(
        I < 8, FALLING, np.where(I < 20, 0.3 - 1e-3 * I, 0.1)
    ),
    "rank deficient": np.where(I <= 5, FALLING, 0.0),
    "rank of the cut": np.where(I <= K, FALLING, 0.0),
    "one outlier": np.r_[1e3, FALLING[1:]],
    "one far outlier": np.r_[1e6, FALLING[1:]],
    "steep": I**-3.0,
    "zero": np.zeros(N),
}


def matrix(s, m=M, n=N, seed=0):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(m, len(s))))
    v, _ = np.linalg.qr(rng.normal(size=(n, len(s))))
    return (u * s) @ v.T


def best(x, k=K):
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    return (u[..., :k] * s[..., None, :k]) @ vh[..., :k, :]


def excess(x, ours, k=K):
    """How much farther from x than the best ours is, in quadrature, relative to x."""
    scale = np.linalg.norm(x) or 1.0
    x, ours = x / scale, np.float64(ours) / scale
    return np.sqrt(
        max(0, np.linalg.norm(x - ours) ** 2 - np.linalg.norm(x - best(x, k)) ** 2)
    )


def solved(x, **kwargs):
    how = {"rank": K, "tolerance": TOLERANCE, "key": None, "memory": 2**30} | kwargs
    return solve([x], **how)[0]


def dense(result):
    us = np.float64(result.u) * np.float64(result.s)[..., None, :]
    return us @ np.float64(result.vh)  # of two NumPy arrays: JAX would narrow it


@pytest.mark.parametrize("solver", ["exact", "gram", "subspace"])
@pytest.mark.parametrize("where", ["host", "jit"])
def test_prescribed_spectra(where, solver):
    run = functools.partial(solved, solver=solver)
    if where == "jit":
        run = jax.jit(run)
    for unit in (1.0, 1e-20, 1e-7, 1e8, 1e20):
        x = np.float32(np.stack([matrix(s) for s in SPECTRA.values()]) * unit)
        tall = jax.tree.map(np.asarray, run(jnp.asarray(x)))
        wide = jax.tree.map(np.asarray, run(jnp.asarray(x.swapaxes(-1, -2))))
        wide = wide._replace(u=wide.vh.swapaxes(-1, -2), vh=wide.u.swapaxes(-1, -2))
        for i, kind in enumerate(SPECTRA):
            for result in (tall, wide):
                one = jax.tree.map(lambda y, i=i: y[i], result)
                check_factors(kind, np.float64(x[i]), one)


def check_factors(kind, x, result):
    _, s, _ = np.linalg.svd(x)
    norm = np.linalg.norm(x) or 1.0
    ours = dense(result)
    q = np.linalg.qr(np.float64(result.vh.T))[0]
    assert np.linalg.norm(x @ q @ q.T - ours) <= 2e-6 * norm, kind
    found = excess(x, x @ q @ q.T)
    if kind == "flat":  # which is larger of equals is a matter of rounding
        assert found <= 2e-4
    else:
        assert found <= TOLERANCE, kind
        assert found <= 1.5 * result.error + 1e-7, kind
    assert np.abs(result.s - s[:K]).max() <= 2e-6 * norm, kind
    assert np.all(np.diff(result.s) <= 0), kind
    if s[K - 1] - s[K] > 1e-3 * norm or kind == "zero":  # else the best is not unique
        assert np.linalg.norm(ours - best(x)) <= 2e-4 * norm, kind
    assert np.abs(result.vh @ result.vh.T - np.eye(K)).max() < 2e-5, kind
    left = result.u[:, result.s > 0.03 * result.s.max()]
    assert np.abs(left.T @ left - np.eye(left.shape[1])).max(initial=0) < 1e-3, kind


def test_nothing_found_is_no_success():
    from centermerge_jax.linalg.leading import block_error

    zero = np.zeros((6, 4), np.float32)
    lost = block_error(np, zero, zero, zero[0], energy=np.float32(1), k=2)
    empty = block_error(np, zero, zero, zero[0], energy=np.float32(0), k=2)
    assert np.isnan(lost)
    assert empty == 0


@pytest.mark.parametrize("solver", ["gram", "subspace"])
def test_every_scale(solver):
    # Squares of x, and squares of its Gram matrix, have to stay in range.
    jitted = jax.jit(functools.partial(solved, solver=solver))
    x = np.float32(matrix(FALLING))
    for power in range(-30, 37, 3):
        y = x * np.float32(10.0**power)
        for run in (functools.partial(solved, solver=solver), jitted):
            result = run(jnp.asarray(y))
            assert excess(np.float64(y), dense(result)) < TOLERANCE, power
            assert result.error > 0
    huge = np.diag(np.float32([3.3e38, 1e38, *np.ones(70)]))
    np.testing.assert_allclose(
        solved(jnp.asarray(huge), rank=2, solver=solver).s, [3.3e38, 1e38], rtol=1e-6
    )


def test_what_squaring_drowns_is_decomposed_fully_and_counted():
    x = jnp.stack(
        [
            jnp.asarray(matrix(SPECTRA[k]), jnp.float32)
            for k in ("falling", "one outlier")
        ]
    )
    for solver in ("gram", "subspace"):
        with cm.recorded_solves() as solves:
            result = solved(x, solver=solver)
        assert result.fell_back.tolist() == [False, True]
        assert [(s.matrices, s.fell_back, s.solver) for s in solves] == [(2, 1, solver)]
        under_jit = jax.jit(functools.partial(solved, solver=solver))(x)
        assert under_jit.fell_back.tolist() == [False, True]
    # a low rank is no reason for it, though its last directions are rounding
    low = jnp.asarray(matrix(SPECTRA["rank deficient"]), jnp.float32)
    assert not solved(low, solver="subspace").fell_back


def test_iteration_takes_few_products():
    x = jnp.asarray(matrix(FALLING), jnp.float32)
    result = solved(x, solver="subspace")
    assert 2 <= result.products <= 12
    loose = solved(x, solver="subspace", tolerance=0.05)
    assert loose.products < result.products
    assert excess(np.float64(x), dense(loose)) <= 0.05


def test_small_ranks_are_found_without_a_gram_matrix(monkeypatch):
    from centermerge_jax.linalg import leading

    asked = []
    original = leading.forms_gram
    monkeypatch.setattr(
        leading, "forms_gram", lambda *a: asked.append(original(*a)) or asked[-1]
    )
    # A wide matrix with a tiny rank: products with x twice cost less than squaring it.
    s = np.exp(-np.arange(1, 401) / 20)
    x = np.float32(matrix(s, 420, 400))
    result = solved(jnp.asarray(x), solver="subspace", rank=1)
    assert asked[0] is True
    monkeypatch.setattr(leading, "forms_gram", lambda *_: False)
    other = solved(jnp.asarray(x), solver="subspace", rank=1)
    np.testing.assert_allclose(dense(other), dense(result), atol=1e-6)
    under_jit = jax.jit(functools.partial(solved, solver="subspace", rank=1))
    np.testing.assert_allclose(dense(under_jit(x)), dense(result), atol=1e-6)
    assert not leading.forms_gram(3072, 768, 7)


def test_result_depends_on_the_key_within_the_tolerance_only():
    x = jnp.asarray(matrix(FALLING), jnp.float32)
    run = functools.partial(cm.truncated_svd, x, rank=K, solver="subspace")
    first, again, other = (run(key=jax.random.key(seed)).dense() for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    norm = np.linalg.norm(x)
    assert np.linalg.norm(first - other) < 1e-4 * norm
    assert np.array_equal(run().dense(), run(key=jax.random.key(0)).dense())
    with pytest.raises(cm.ParameterError, match="typed PRNG key"):
        run(key=jnp.zeros(2, jnp.uint32))


@pytest.mark.parametrize("tolerance", [0, -1e-3, 1.0, float("nan"), "1e-3", None])
def test_wrong_tolerance(tolerance):
    with pytest.raises(Exception, match="tolerance"):
        solved(jnp.ones((40, 40)), solver="gram", tolerance=tolerance)


@pytest.mark.parametrize("solver", ["exact", "gram", "subspace"])
def test_not_a_number_stays_in_its_matrix(solver):
    x = np.stack([np.float32(matrix(FALLING, seed=i)) for i in range(3)])
    x[1, 3, 4] = np.nan
    for run in (solved, jax.jit(solved, static_argnames="solver")):
        result = run(jnp.asarray(x), solver=solver)
        assert np.isnan(result.s[1]).all()
        for i in (0, 2):
            assert excess(np.float64(x[i]), dense(result)[i]) < TOLERANCE


def test_shapes_and_types():
    x = np.stack([matrix(FALLING, seed=i) for i in range(6)]).reshape(2, 3, M, N)
    narrow = jnp.asarray(x, jnp.bfloat16)
    for run in (cm.truncated_svd, jax.jit(cm.truncated_svd, static_argnames="rank")):
        factors = run(narrow, rank=0.125)
        assert (factors.u.shape, factors.s.shape) == ((2, 3, M, K), (2, 3, K))
        assert factors.vh.dtype == jnp.float32
        wanted = best(np.float64(narrow))
        error = np.linalg.norm(np.float64(factors.dense()) - wanted)
        assert error < 1e-4 * np.linalg.norm(wanted)
        empty = run(jnp.zeros((0, 8, 6)), rank=2)
        assert (empty.u.shape, empty.vh.shape) == ((0, 8, 2), (0, 2, 6))
    with jax.enable_x64(True):
        fine = cm.truncated_svd(jnp.asarray(x[0]), rank=K, solver="subspace")
        assert fine.s.dtype == jnp.float64
        assert excess(x[0, 0], np.asarray(fine.dense())[0]) < TOLERANCE
    every = cm.truncated_svd(jnp.asarray(x[0, 0], jnp.float32), rank=1.0)
    np.testing.assert_allclose(every.dense(), x[0, 0], atol=1e-6)


def test_a_memory_budget_changes_nothing_but_the_chunks():
    x = jnp.asarray(np.stack([matrix(FALLING, seed=i) for i in range(7)]), jnp.float32)
    run = jax.jit(functools.partial(solved, solver="gram"), static_argnames="memory")
    whole = run(x, memory=2**30)
    for memory in (1, 4 * 10**6):
        np.testing.assert_allclose(
            dense(run(x, memory=memory)), dense(whole), atol=1e-5
        )
    assert device.chunk_size(7, M, N, itemsize=4, memory=1) == 1
    with pytest.raises(cm.ParameterError, match="whole number of bytes"):
        run(x, memory=0)
    assert device.chunk_size(7, M, N, itemsize=4, memory=2**30) == 7
    # as even as they can be: 4 + 3, not 6 + 1
    six = 6 * 4 * (3 * M * N + 4 * N * N)
    assert device.chunk_size(7, M, N, itemsize=4, memory=six) == 4


def test_auto():
    assert choose_solver(61, 768) == choose_solver(245, 768) == "subspace"
    assert choose_solver(300, 768) == choose_solver(12, 96) == "gram"
    assert choose_solver(400, 768) == choose_solver(3, 64) == "exact"


def test_report_bounds_the_true_excess_and_tightly():
    x = np.stack([matrix(s) for s in SPECTRA.values()])
    for solver in ("gram", "subspace", "exact"):
        report = cm.svd_report(jnp.asarray(x, jnp.float32), rank=K, solver=solver)
        assert report.solver == solver
        factors = cm.truncated_svd(jnp.asarray(x, jnp.float32), rank=K, solver=solver)
        ours = dense(factors)
        for i, kind in enumerate(SPECTRA):
            y = np.float64(np.float32(x[i]))
            norm = np.linalg.norm(y) or 1.0
            true = excess(y, ours[i])
            assert true - 1e-8 <= report.excess[i] <= 2 * true + 1e-5, kind
            assert report.residual[i] == pytest.approx(
                np.linalg.norm(y - ours[i]) / norm, abs=1e-7
            )
            assert report.energy[i] == pytest.approx(
                (np.linalg.norm(ours[i]) / norm) ** 2, abs=1e-7
            )


@pytest.mark.parametrize(
    ("x", "rank"),
    [
        (np.eye(8), 8),
        (np.diag([1.0, 1, 0, 0, 0]), 2),
        (np.diag([1.0, 0.99]), 1),
        (np.random.default_rng(0).normal(size=(50, 2)), 1),
        (np.pad(np.eye(3), (0, 77)), 5),
        (np.ones((1, 1)), 1),
        (np.zeros((4, 3)), 2),
    ],
)
def test_report_of_simple_matrices_is_tight(x, rank):
    report = cm.svd_report(jnp.asarray(x, jnp.float32), rank=rank)
    assert report.excess < 1e-6
    for bad in (np.nan, np.inf):
        broken = np.float32(x)
        broken[0, 0] = bad
        assert np.isnan(cm.svd_report(jnp.asarray(broken), rank=rank).excess)


def test_report_is_refused_under_jit():
    x = jnp.ones((4, 4))
    for run in (lambda x: cm.svd_report(x, rank=1), lambda _: cm.svd_report(x, rank=1)):
        with pytest.raises(cm.ParameterError, match=r"outside of jax\.jit"):
            jax.jit(run)(x)


def test_certificate_sees_a_direction_that_was_missed():
    x = matrix(FALLING)
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    for missed in (0, 5, K - 1):
        kept = [i for i in range(K + 1) if i != missed]
        ours = (u[:, kept] * s[kept]) @ vh[kept]
        bound = certify(x, ours, vh[kept])[2]
        assert bound >= excess(x, ours) > 1e-3
    assert bound == pytest.approx(excess(x, ours), rel=0.02)
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(N, K)))[0]
    assert certify(x, x @ q @ q.T, q.T)[2] >= excess(x, x @ q @ q.T) > 0.1


def test_gradients_through_the_factorisation_are_refused_and_others_finite():
    x = jnp.asarray(matrix(SPECTRA["flat"]), jnp.float32)

    def energy(x):
        return jnp.sum(cm.truncated_svd(x, rank=K).dense() ** 2)

    for run in (jax.grad(energy), jax.jit(jax.grad(energy)), jax.grad(jax.jit(energy))):
        with pytest.raises(cm.ParameterError, match="no gradient"):
            run(x)
    experts = {n: {"mlp": {"kernel": x * c}} for n, c in (("a", 1), ("b", 2), ("c", 4))}

    def loss(scale, experts):
        merged = cm.cart(experts, rank=0.1, scale=scale)
        return jnp.sum(merged["mlp"]["kernel"] ** 2)

    for run in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.grad(jax.jit(loss))):
        assert np.isfinite(run(1.5, experts))
    tv = cm.truncate(cm.center(experts), rank=0.1)
    gradient = jax.grad(lambda d: jnp.sum(d["mlp"]["kernel"].dense() ** 2))(tv.deltas)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_rank_sweep_compiles_once():
    factors = cm.truncated_svd(jnp.asarray(matrix(FALLING), jnp.float32), rank=K)
    total = jax.jit(lambda f, k: f.mask(k).dense())
    for k in (1, 5, K):
        np.testing.assert_allclose(
            total(factors, k), factors.keep(k).dense(), atol=1e-6
        )
    assert total._cache_size() == 1


ONE_CORE = """
    import os
    os.sched_setaffinity(0, {0})
    import jax, jax.numpy as jnp, numpy as np
    import centermerge_jax as cm
    x = jax.random.normal(jax.random.key(0), (6, 400, 300))
    run = lambda x: cm.truncated_svd(x, rank=0.1, solver="SOLVER")
    a, b = run(x), jax.jit(run)(x)
    np.testing.assert_allclose(a.s, b.s, rtol=1e-3)
    np.testing.assert_allclose(a.dense(), b.dense(), atol=5e-2)
    print("done")
"""


@pytest.mark.parametrize("solver", ["gram", "subspace"])
def test_one_core_is_enough(solver):
    program = textwrap.dedent(ONE_CORE).replace("SOLVER", solver)
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        check=False,
    )
    assert run.stdout == "done\n", run.stderr


def test_blas_threads_are_given_back_even_after_an_error():
    blas = host._blas()
    before = [lib["num_threads"] for lib in blas.info()]
    how = {"k": 2, "solver": "gram", "tolerance": 1e-4, "memory": 2**30}
    how["dtype"] = np.dtype("float32")
    with pytest.raises(Exception, match=r"no matrix|astype"):
        host.solve_on_host([np.ones((9, 9)), "no matrix"], np.ones((9, 9)), **how)
    assert [lib["num_threads"] for lib in blas.info()] == before
