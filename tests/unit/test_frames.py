"""Frames against float64 statements in NumPy; products are compared, never vectors."""

import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import frames
from centermerge_jax.linalg.frames import orthonormalize, polar, project

TALL, SQUARE = (24, 8), (8, 8)
SPECTRA = {
    "flat": np.ones(8),
    "geometric": np.geomspace(1, 1e-2, 8),
    "steep": np.geomspace(1, 1e-6, 8),
    "outlier": np.array([1e3, *np.ones(7)]),
    "deficient": np.array([1, 1, 0.5, 0.5, 0.25, 0, 0, 0]),
    "zero": np.zeros(8),
}
UNITS = [1e-20, 1.0, 1e20]


def matrix(spectrum, shape=TALL, seed=0):
    """A matrix with the given singular values, in NumPy float64."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(shape[0], spectrum.size)))[0]
    v = np.linalg.qr(rng.normal(size=(shape[1], spectrum.size)))[0]
    return (u * spectrum) @ v.T


@jax.jit
def by_products(x):
    """As `polar` does it on other platforms than the CPU."""
    return frames.Frame(*frames._by_products(frames._unit(x)))


def batch(unit=1.0, shape=TALL):
    """One matrix of each spectrum, `[2, 3, m, n]` in float32."""
    stack = [matrix(s, shape, seed) for seed, s in enumerate(SPECTRA.values())]
    return jnp.asarray(unit * np.reshape(stack, (2, 3, *shape)), jnp.float32)


def each(frame, x):
    """The spectrum's name, `q`, `smallest` and the matrix, in float64, one by one."""
    q, smallest, x = (np.asarray(y, np.float64) for y in (*vars(frame).values(), x))
    assert q.shape == x.shape
    assert smallest.shape == x.shape[:-2]
    return zip(
        SPECTRA, *(y.reshape(6, *y.shape[2:]) for y in (q, smallest, x)), strict=True
    )


def polar_factor(x):
    u, _, vh = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vh


def relative(x):
    values = np.linalg.svd(x, compute_uv=False)
    return values[-1] / values[0] if values[0] else 0.0


def assert_orthonormal(q, *, atol=2e-6):
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), rtol=0, atol=atol)


def assert_polar(name, q, smallest, x):
    assert_orthonormal(q)
    np.testing.assert_allclose(smallest, relative(x), rtol=1e-4, atol=3e-7)
    # q^T x is the positive semidefinite factor, whether or not q is unique.
    h = q.T @ x
    norm = np.linalg.norm(x, 2)
    np.testing.assert_allclose(h, h.T, rtol=0, atol=2e-6 * norm)
    assert np.linalg.eigvalsh(h + h.T)[0] >= -2e-6 * norm
    np.testing.assert_allclose(q @ h, x, rtol=0, atol=2e-6 * norm)
    if name not in ("deficient", "zero"):
        error = 2e-6 + 2e-7 / relative(x)
        np.testing.assert_allclose(q, polar_factor(x), rtol=0, atol=error)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", [TALL, SQUARE])
def test_polar(unit, shape):
    x = batch(unit, shape)
    for one in each(polar(x), x):
        assert_polar(*one)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", [TALL, SQUARE])
def test_polar_by_products_as_on_other_platforms_than_the_cpu(unit, shape):
    x = batch(unit, shape)
    for one in each(by_products(x), x):
        assert_polar(*one)


def test_an_svd_is_taken_only_where_products_fail(monkeypatch):
    taken = []

    def nothing(x):
        jax.debug.callback(lambda: taken.append(x.shape))
        return jnp.zeros_like(x), jnp.zeros(x.shape[:-2], x.dtype)

    monkeypatch.setattr(frames, "_by_svd", nothing)
    x = frames._unit(batch()).reshape(6, *TALL)
    well = x[:3].at[2].set(jnp.nan)
    assert_orthonormal(np.asarray(frames._by_products(well)[0][1]))
    jax.effects_barrier()
    assert not taken
    q, _ = frames._by_products(x)
    jax.effects_barrier()
    assert taken == [(6, *TALL)]
    assert [bool((y != 0).any()) for y in q] == [True, True, False, True, False, False]


@pytest.mark.parametrize("function", [polar, orthonormalize])
def test_products_on_a_gpu_are_in_full_precision(function):
    traced = jax.jit(lambda x: project(x, function(x).q)).trace(batch())
    lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) >= 2
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_the_schedule_lifts_what_is_small_and_keeps_what_is_large():
    for eps in (np.finfo(np.float32).eps, np.finfo(np.float64).eps):
        low = float(np.sqrt(eps))
        s = np.geomspace(low, 1, 10001)
        for alpha in frames._schedule(low):
            s = alpha * s * (3 - (alpha * s) ** 2) / 2
            assert s.min() > 0
            assert s.max() < 1 + 1e-12
        # The last step squares what is missing.
        assert 1 - s.min() < low / 4


def test_polar_of_wide_matrices_is_that_of_the_transposes():
    x = batch()
    tall, wide = polar(x), polar(x.mT)
    np.testing.assert_array_equal(wide.q, tall.q.mT)
    np.testing.assert_array_equal(wide.smallest, tall.smallest)


@pytest.mark.parametrize("unit", UNITS)
def test_orthonormalize(unit):
    x = batch(unit)
    for _, q, smallest, one in each(orthonormalize(x), x):
        assert_orthonormal(q)
        np.testing.assert_allclose(smallest, relative(one), rtol=1e-4, atol=3e-7)
        norm = np.linalg.norm(one, 2)
        np.testing.assert_allclose(q @ (q.T @ one), one, rtol=0, atol=2e-6 * norm)


def test_orthonormalize_spans_what_numpy_spans():
    x = batch()
    for name, q, _, one in each(orthonormalize(x), x):
        if name in ("flat", "geometric", "outlier"):
            basis = np.linalg.qr(one)[0]
            np.testing.assert_allclose(q @ q.T, basis @ basis.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_project(unit):
    q = orthonormalize(batch()).q
    # Most of x lies within the span; what does not is 1e-4 of it.
    coefficients = np.random.default_rng(1).normal(size=(2, 3, 8, 8))
    noise = 1e-4 * np.random.default_rng(2).normal(size=q.shape)
    x = jnp.asarray(unit * (np.asarray(q) @ coefficients + noise), jnp.float32)
    basis = np.linalg.qr(np.asarray(q, np.float64))[0]
    wanted = basis @ (basis.mT @ np.asarray(x, np.float64))
    inside, outside = project(x, q), project(x, q, complement=True)
    np.testing.assert_allclose(inside / unit, wanted / unit, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        outside / unit, (np.asarray(x, np.float64) - wanted) / unit, rtol=0, atol=1e-5
    )
    # Once would leave 1e-2 of the complement within the span.
    within = np.linalg.norm(basis.mT @ np.asarray(outside, np.float64))
    assert within < 1e-5 * np.linalg.norm(np.asarray(outside, np.float64))


@pytest.mark.parametrize("function", [polar, orthonormalize])
def test_jit_and_vmap_agree_with_the_batch(function):
    x = batch()[:, :2]
    eager = function(x)
    for mapped in (jax.jit(function)(x), jax.vmap(jax.vmap(function))(x)):
        assert mapped.q.shape == x.shape
        well = np.s_[0, :2]  # where the frame is unique
        np.testing.assert_allclose(mapped.q[well], eager.q[well], rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            mapped.smallest, eager.smallest, rtol=1e-4, atol=3e-7
        )


@pytest.mark.parametrize("function", [polar, orthonormalize, by_products])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_matrix(function, value):
    x = batch()[0]
    frame = function(x.at[1, 3, 2].set(value))
    alone = function(x)
    assert np.isnan(frame.q[1]).all()
    assert np.isnan(frame.smallest[1])
    for i in (0, 2):
        np.testing.assert_array_equal(frame.q[i], alone.q[i])
        np.testing.assert_array_equal(frame.smallest[i], alone.smallest[i])


def test_low_precision_is_widened():
    x = batch().astype(jnp.bfloat16)
    for function in (polar, orthonormalize):
        frame, wide = function(x), function(x.astype(jnp.float32))
        assert frame.q.dtype == frame.smallest.dtype == np.float32
        np.testing.assert_array_equal(frame.q, wide.q)
    q = wide.q
    assert project(x, q).dtype == np.float32
    np.testing.assert_array_equal(project(x, q), project(x.astype(jnp.float32), q))


def test_float64_where_the_caller_enables_it():
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(SPECTRA["geometric"]))
        for frame in (polar(x), by_products(x)):
            assert frame.q.dtype == frame.smallest.dtype == np.float64
            np.testing.assert_allclose(frame.q, polar_factor(x), rtol=0, atol=1e-13)
            np.testing.assert_allclose(frame.smallest, 1e-2, rtol=1e-12)
        q = orthonormalize(x).q
        assert_orthonormal(np.asarray(q), atol=1e-14)
        assert project(x.astype(jnp.float32), q).dtype == np.float64
        np.testing.assert_allclose(project(x, q), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("by_map", [False, True])
def test_the_derivative_of_polar_is_that_of_finite_differences(by_map):
    x = batch().reshape(6, *TALL)[jnp.array([0, 1, 3])]
    dx = jnp.asarray(np.random.default_rng(3).normal(size=x.shape), jnp.float32)

    def q(x):
        return jax.vmap(lambda y: polar(y).q)(x) if by_map else polar(x).q

    _, dq = jax.jvp(q, (x,), (dx,))
    gradient = jax.vjp(q, x)[1](dx)[0]
    for i in range(3):
        y, dy = np.asarray(x[i], np.float64), np.asarray(dx[i], np.float64)
        step = 1e-5 * relative(y) * np.linalg.norm(y, 2)
        wanted = (polar_factor(y + step * dy) - polar_factor(y - step * dy)) / step / 2
        np.testing.assert_allclose(dq[i], wanted, rtol=0, atol=1e-4 * abs(wanted).max())
        # The derivative is symmetric: <dx, dq[dx]> is <gradient, dx>.
        np.testing.assert_allclose(
            (gradient[i] * dy).sum(), (dy * wanted).sum(), rtol=1e-3
        )


def test_the_derivative_of_polar_is_finite_where_directions_vanish():
    x = batch()
    gradient = jax.grad(lambda x: (polar(x).q ** 3).sum())(x)
    assert np.isfinite(gradient).all()
    assert (gradient[1, 2] == 0).all()  # of the zero matrix
    assert (jax.grad(lambda x: polar(x).smallest.sum())(x) == 0).all()
    assert (jax.grad(lambda x: orthonormalize(x).smallest.sum())(x) == 0).all()


def test_the_gradient_of_a_span_is_finite_for_independent_columns():
    x = batch()[0, :2]

    def energy(x):
        return (project(jnp.ones_like(x), orthonormalize(x).q)[..., 0, :] ** 3).sum()

    assert np.isfinite(jax.grad(energy)(x)).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.ones(3), r"expected matrices \[\*batch, m, n\], got \[3\]"),
        (jnp.ones((0, 3)), "expected matrices"),
        (jnp.ones((3, 3), jnp.int32), "expected floating numbers, got int32"),
        (np.ones((3, 3)), "switch on jax_enable_x64"),
    ],
)
def test_what_is_no_matrix_of_floats(x, message):
    # The shape checks that are on in tests would refuse some of it before: unwrap.
    q = jnp.ones((3, 1))
    for function in (polar, orthonormalize):
        with pytest.raises(ParameterError, match=message):
            inspect.unwrap(function)(x)
    for arguments in ((x, q), (q, x)):
        with pytest.raises(ParameterError, match=message):
            inspect.unwrap(project)(*arguments)


def test_shapes_that_do_not_fit():
    with pytest.raises(ParameterError, match="8 columns of length 3 cannot be indep"):
        orthonormalize(jnp.ones((3, 8)))
    for shape in ((4, 1), (2, 3, 1)):
        with pytest.raises(ParameterError, match="do not fit"):
            inspect.unwrap(project)(jnp.ones((3, 3)), jnp.ones(shape))
    with pytest.raises((ParameterError, jaxtyping.TypeCheckError)):
        project(jnp.ones((3, 3)), jnp.ones((4, 1)))
