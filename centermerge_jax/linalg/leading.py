"""The leading right singular vectors of one matrix, from its Gram matrix.

Written once for NumPy and for `jax.numpy`: an `Ops` says which. A matrix is tall,
`[m, n]` with m >= n; `g` is `x^T x`. Everything here is about its eigenvalues `theta`,
the squares of x's singular values.

How good a block of vectors is: let the columns of `v [n, b]` be orthonormal Ritz
vectors with Ritz values `theta`, and `r = g v - v diag(theta)` their residuals. Against
the k leading directions of x, its first k columns lose the energy

    excess <= sum_{i <= k} min(|r_i|^2 / (theta_i - theta_b), |r_i|)

to leading order, where `theta_b`, the last Ritz value, stands for the largest
eigenvalue outside the block. `error` is the root of twice that, relative to `|x|_F`:
how much farther than the best matrix of rank k ours is from x, in quadrature. It rests
on the block having met every leading direction, which a Gaussian start does with
probability one, and on `theta_b`: where the spectrum is flat beyond the block, errors
up to 1.8 times the estimate were seen at loose tolerances. `certify` in `report.py`
rests on neither. As rounding shows in the residuals, the error also tells where the
squaring in `g` has drowned the small directions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

OVERSAMPLING = 1.5
"""Width of the block, as a multiple of the rank. The spectra of fine-tuning fall so
that theta_{1.5 k} is about half of theta_k, which gives four digits in some eight
products; a narrower block needs more products, a wider one costs more in each."""

_SPARE = (
    16  # at least so many more columns than directions, and blocks a multiple of it
)

MAX_PRODUCTS = 64
"""Products with the Gram matrix after which the iteration gives up."""

_GROWTH = 1e8
"""Bound on what one filter may amplify the largest direction by. In float32 a larger
one would bury the others in the rounding of the largest."""


_PASSES = 4
_NEARLY = 0.1  # deviation of a Gram matrix from the identity


@dataclass(frozen=True)
class Ops:
    """The few operations in which NumPy and `jax.numpy` differ."""

    xp: Any
    matmul: Callable[[Any, Any], Any]
    loop: Callable[[Callable[[Any], Any], Callable[[Any], Any], Any], Any]
    whiten: Callable[[Any, Any], Any]
    """`(y, g) -> y r^-1` with `r^T r = g`, the Cholesky factor of g."""
    top_eigenvectors: Callable[[Any, int], Any]
    """`(g, b) -> v [n, b]`, eigenvectors of the b largest eigenvalues."""


class Leading(NamedTuple):
    """Ritz vectors `[n, b]` by falling Ritz value, and what is known of them."""

    vectors: Any
    error: Any
    products: Any


def block_width(k: int, n: int) -> int:
    """Columns of the block in which `k` of `n` directions are sought."""
    wanted = max(k + _SPARE, int(OVERSAMPLING * k))
    return min(n, -(-wanted // _SPARE) * _SPARE)


def forms_gram(m: int, n: int, k: int) -> bool:
    """Whether forming `x^T x` once is cheaper than applying x and x^T each time."""
    b, products = block_width(k, n), 8
    return m * n * n + 2 * n * n * b * products < 4 * m * n * b * products


def leading(
    ops: Ops, x: Any, start: Any, *, energy: Any, k: int, solver: str, tolerance: float
) -> Leading:
    """The leading right singular vectors of `x [m, n]`, by `gram` or `subspace`.

    Args:
      ops: NumPy or `jax.numpy`.
      x: The matrix, m >= n.
      start: Gaussian block with `block_width(k, n)` columns.
      energy: `|x|_F^2`.
      k: Number of directions wanted.
      solver: gram or subspace.
      tolerance: Error at which the iteration stops.
    """
    m, n = x.shape
    if solver == "subspace" and not forms_gram(m, n, k):

        def apply(y: Any) -> Any:
            return ops.matmul(x.T, ops.matmul(x, y))

        return iterate(ops, apply, start, energy=energy, k=k, tolerance=tolerance)
    g = ops.matmul(x.T, x)

    def apply_gram(y: Any) -> Any:
        return ops.matmul(g, y)

    if solver == "subspace":
        return iterate(ops, apply_gram, start, energy=energy, k=k, tolerance=tolerance)
    vectors = ops.top_eigenvectors(g, block_width(k, n))
    v, w, theta = rayleigh_ritz(ops, apply_gram, vectors)
    error = block_error(ops.xp, v, w, theta, energy=energy, k=k)
    return Leading(v, error, ops.xp.zeros((), np.int32))


def iterate(
    ops: Ops,
    apply: Callable[[Any], Any],
    start: Any,
    *,
    energy: Any,
    k: int,
    tolerance: float,
) -> Leading:
    """Block iteration with Chebyshev filters of growing degree.

    Each round amplifies the wanted part of the spectrum by the Chebyshev polynomial
    that stays within 1 on [0, theta_b], orthonormalises, and rotates to Ritz vectors.
    The degree is what the error still calls for, as far as rounding allows it.

    Args:
      ops: NumPy or `jax.numpy`.
      apply: Multiplies a block `[n, b]` by the Gram matrix.
      start: Gaussian block `[n, b]`, b > k or b = n.
      energy: Trace of the Gram matrix.
      k: Number of directions wanted.
      tolerance: Error at which to stop.

    Returns:
      The block; `error` is above `tolerance`, or NaN, where it did not converge: no
      progress from one round to the next, or `MAX_PRODUCTS` used up.

    References:
      Zhou and Saad, "A Chebyshev-Davidson algorithm for large symmetric eigenproblems",
      2007, for the filter; Fukaya et al., "Shifted Cholesky QR for computing the QR
      factorization of ill-conditioned matrices", 2020, for the orthonormalisation.
    """
    xp = ops.xp
    eps = np.finfo(start.dtype).eps

    def ritz(y: Any, products: Any, before: Any) -> tuple[Any, ...]:
        v, w, theta = rayleigh_ritz(ops, apply, orthonormal(ops, y))
        error = block_error(xp, v, w, theta, energy=energy, k=k)
        return v, w, theta, error, products, before

    def unfinished(state: tuple[Any, ...]) -> Any:
        _, _, _, error, products, before = state
        advancing = error < 0.5 * before
        return ~(error <= tolerance) & advancing & (products < MAX_PRODUCTS)

    def round_(state: tuple[Any, ...]) -> tuple[Any, ...]:
        v, w, theta, error, products, _ = state
        edge = xp.maximum(theta[-1], eps * theta[0])
        degree = _degree(xp, theta[0] / edge, theta[k - 1] / edge, error / tolerance)
        half = edge / 2

        # The Chebyshev recurrence on [0, edge]; w = g v is there already.
        def step(chebyshev: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            i, y, z = chebyshev
            return i + 1, z, (apply(z) - half * z) * (2 / half) - y

        one = xp.ones((), np.int32)
        first = (one, v, (w - half * v) / half)
        _, _, y = ops.loop(lambda c: c[0] < degree, step, first)
        return ritz(y, products + degree, error)

    infinite = xp.full((), np.inf, start.dtype)
    two = xp.full((), 2, np.int32)
    state = ops.loop(unfinished, round_, ritz(apply(start), two, infinite))
    v, _, _, error, products, _ = state
    return Leading(v, error, products)


def orthonormal(ops: Ops, y: Any) -> Any:
    """An orthonormal basis of the columns of `y [n, b]`, by repeated Cholesky-QR.

    The shift makes a factorisation succeed whatever the columns; each pass then brings
    them nearer to orthonormal, and two are enough unless they were all but dependent.
    """
    xp = ops.xp
    identity = xp.eye(y.shape[-1], dtype=y.dtype)
    eps = np.finfo(y.dtype).eps

    def normalised(y: Any, passes: Any) -> tuple[Any, ...]:
        norms = xp.sqrt((y * y).sum(axis=0))
        y = y / xp.where(norms > 0, norms, xp.ones_like(norms))[None]
        g = ops.matmul(y.T, y)
        return y, g, xp.abs(g - identity).max(), passes

    def unfinished(state: tuple[Any, ...]) -> Any:
        _, _, deviation, passes = state
        return (deviation > 100 * eps) & (passes < _PASSES)

    def whiten(state: tuple[Any, ...]) -> tuple[Any, ...]:
        y, g, deviation, passes = state
        # Whitening squares a small deviation; only a large one can need the shift.
        shift = xp.where(deviation > _NEARLY, y.shape[-1] * eps, 0).astype(y.dtype)
        return normalised(ops.whiten(y, g + shift * identity), passes + 1)

    return ops.loop(unfinished, whiten, normalised(y, xp.zeros((), np.int32)))[0]


def rayleigh_ritz(
    ops: Ops, apply: Callable[[Any], Any], v: Any
) -> tuple[Any, Any, Any]:
    """Ritz vectors in the span of `v`, their images, and the Ritz values, falling."""
    w = apply(v)
    theta, rotation = ops.xp.linalg.eigh(ops.matmul(v.T, w))
    falling = np.arange(v.shape[1])[::-1]
    rotation = ops.xp.take(rotation, falling, axis=1)
    return ops.matmul(v, rotation), ops.matmul(w, rotation), theta[::-1]


def block_error(xp: Any, v: Any, w: Any, theta: Any, *, energy: Any, k: int) -> Any:
    """The error of the first `k` columns, as the module's docstring has it."""
    tiny = np.finfo(v.dtype).tiny
    r = w[:, :k] - v[:, :k] * theta[None, :k]
    squares = (r * r).sum(axis=0)
    gap = xp.maximum(theta[:k] - theta[-1], tiny)
    excess = xp.minimum(squares / gap, xp.sqrt(squares)).sum()
    error = xp.sqrt(2 * excess / xp.maximum(energy, tiny))
    # Nothing found in a matrix that is not zero is no success, but a lost range.
    return xp.where((theta[0] > 0) | (energy == 0), error, xp.full_like(error, np.nan))


def _degree(xp: Any, top: Any, cut: Any, missing: Any) -> Any:
    """Degree that gains `missing` at `cut`, within the growth allowed at `top`.

    All relative to the edge of the damped interval: there the Chebyshev polynomial is
    `cosh(degree * arccosh(2 x - 1))`.
    """
    rate = xp.arccosh(xp.maximum(2 * cut - 1, 1 + 1e-3))
    wanted = xp.ceil(xp.arccosh(1 + 2 * missing) / rate)
    growth = xp.arccosh(xp.maximum(2 * top - 1, 1 + 1e-3))
    allowed = xp.floor(float(np.arccosh(_GROWTH)) / growth)
    degree = xp.clip(wanted, 2, xp.clip(allowed, 2, 12))
    return xp.where(degree == degree, degree, 2).astype(np.int32)  # NaN goes on to fail


def factors(ops: Ops, x: Any, v: Any) -> tuple[Any, Any, Any]:
    """Singular triplets of `x [m, n]` from `v [n, k]`, so that `u diag(s) = x v`."""
    xp = ops.xp
    us = ops.matmul(x, v)
    # Norms of x v are more accurate than roots of eigenvalues, but in that rounding
    # they may come out of order.
    s = xp.sqrt((us * us).sum(axis=0))
    order = xp.argsort(-s)
    s, us, v = s[order], us[:, order], v[:, order]
    return us / xp.where(s > 0, s, xp.ones_like(s))[None], s, v.T


def _numpy_loop(
    condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any
) -> Any:
    while condition(state):
        state = body(state)
    return state


def _numpy_whiten(y: Any, g: Any) -> Any:
    lower = np.linalg.cholesky(g)
    (invert,) = scipy.linalg.get_lapack_funcs(("trtri",), (lower,))
    inverse, _ = invert(lower, lower=1)
    return y @ inverse.T


def _numpy_top_eigenvectors(g: Any, b: int) -> Any:
    n = len(g)
    return scipy.linalg.eigh(g, subset_by_index=(n - b, n - 1), check_finite=False)[1]


def _jax_whiten(y: Any, g: Any) -> Any:
    lower = jax.lax.linalg.cholesky(g, symmetrize_input=False)
    return jax.lax.linalg.triangular_solve(
        lower, y, left_side=False, lower=True, transpose_a=True
    )


def _jax_matmul(x: Any, y: Any) -> Any:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _jax_top_eigenvectors(g: Any, b: int) -> Any:
    return jnp.linalg.eigh(g)[1][:, g.shape[0] - b :]


NUMPY = Ops(np, np.matmul, _numpy_loop, _numpy_whiten, _numpy_top_eigenvectors)
JAX = Ops(jnp, _jax_matmul, jax.lax.while_loop, _jax_whiten, _jax_top_eigenvectors)
