"""Orthonormal frames: the one nearest to a matrix, one of its span, projections.

A frame is a matrix with orthonormal columns (rows, if it is wide).

On the CPU the polar factor comes from LAPACK's SVD. Elsewhere dense decompositions are
slow, and it is found by matrix products. One step replaces each singular value s of q
by the cubic

    s -> alpha s (3 - alpha^2 s^2) / 2

and leaves the singular vectors alone; alpha = 1 is the step of Newton and Schulz, which
converges to 1 from anywhere in (0, 1]. Larger first ones lift the small values by 2.5
times a step instead of 1.5. No step sees more of the matrix than its present singular
values, so that small ones lose nothing to the squaring in a Gram matrix.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg.svd import check_matrices
from centermerge_jax.trees import compute_dtype

_MOST = 1.69
"""Largest alpha. It takes the value 1 to 0.12; towards sqrt(3) it would go to 0, and
the largest singular values would drown in rounding errors."""

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frame:
    """Orthonormal frames, and how well the matrices that they come from tell them.

    Attributes:
      q: Orthonormal columns, or rows where it is wide.
      smallest: The smallest singular value of the matrix relative to its largest, to
        some units of rounding; 0 for a zero matrix. It carries no gradient.
    """

    q: Float[Array, "*batch m n"]
    smallest: Float[Array, "*batch"]


def polar(x: Float[Array, "*batch m n"]) -> Frame:
    """The nearest matrix with orthonormal columns (rows, if wide): the polar factor.

        x = p diag(s) w^T, q = p w^T;  q^T x (x q^T, if wide) is positive semidefinite

    Args:
      x: Matrices, tall or wide, of any scale; low-precision types are widened.

    Returns:
      `q` of the shape of x, in float32 (float64 for float64 input), and `smallest`.

    Raises:
      ParameterError: `x` is not floating matrices, or float64 without x64.

    Note:
      `q` is orthonormal to a few units of rounding, and off the true factor by about
      rounding / `smallest`, which is how sensitive the factor itself is to `x`. It is
      not unique where `smallest` is 0 to rounding: then `q` is still orthonormal, but
      arbitrary in the directions that vanish, or all but vanish, from `x`.

      Not-a-number stays in its matrix. On GPU and TPU an SVD is taken only if a matrix
      of the batch has `smallest` below about 5e-4 (2e-8 in float64), but always under
      `jax.vmap`: give batch axes as they are.

      The first derivative is exact wherever the factor is unique, at repeated singular
      values too. Directions that vanish from `x` have none and count as 0, so that it
      is finite. Higher derivatives are not to be relied on.

    Example:
      >>> frame = polar(jnp.array([[0.0, -3.0], [2.0, 0.0]]))
      >>> jnp.round(frame.q) + 0.0, frame.smallest.round(1)
      (Array([[ 0., -1.],
             [ 1.,  0.]], dtype=float32), Array(0.7, dtype=float32))

    References:
      Higham, "Functions of Matrices", 2008, chapter 8; Chen and Chow, "A stable scaling
      of Newton-Schulz for improving the sign function computation of a Hermitian
      matrix", 2014, for alpha; Nakatsukasa and Higham, "Backward stability of
      iterations for computing the polar decomposition", 2012.
    """
    check_matrices(x)
    if x.shape[-2] < x.shape[-1]:
        frame = polar(x.mT)
        return Frame(frame.q.mT, frame.smallest)
    return Frame(*_polar(_unit(x)))


def orthonormalize(x: Float[Array, "*batch m n"]) -> Frame:
    """An orthonormal basis of the span of the columns, by Householder's QR.

        q^T q = 1,  q (q^T x) = x

    Args:
      x: Tall or square matrices of any scale; low-precision types are widened.

    Returns:
      `q` of the shape of x, in float32 (float64 for float64 input), and `smallest`.

    Raises:
      ParameterError: `x` has more columns than rows, is not floating matrices, or is
        float64 without x64.

    Note:
      `q` is always orthonormal. Where `smallest` is 0 to rounding, the columns of `x`
      are dependent, and `q` spans more than they do. Columns are turned as little as
      possible by `polar`; here the first ones are, from the left to the right. The
      derivative exists where the columns are independent, and is not finite elsewhere.
      Not-a-number stays in its matrix.

    Example:
      >>> twice = jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
      >>> orthonormalize(twice).smallest < 1e-6
      Array(True, dtype=bool)
    """
    check_matrices(x)
    m, n = x.shape[-2:]
    if m < n:
        raise ParameterError(
            f"{n} columns of length {m} cannot be independent: expected tall matrices"
        )
    q, r = jnp.linalg.qr(_unit(x))
    values = jnp.linalg.svd(jax.lax.stop_gradient(r), compute_uv=False)
    return Frame(q, _ratio(values[..., -1], values[..., 0]))


def project(
    x: Float[Array, "*batch m n"],
    q: Float[Array, "*batch m k"],
    *,
    complement: bool = False,
) -> Float[Array, "*batch m n"]:
    """Projects the columns of x onto a span, or onto what is orthogonal to it.

        q (q^T x), or x - q (q^T x)

    Args:
      x: Matrices; low-precision types are widened.
      q: Bases with orthonormal columns, such as a frame's `q`.
      complement: Whether to project onto the orthogonal complement of the span.

    Returns:
      Matrices in float32 (float64 if either argument is).

    Raises:
      ParameterError: The shapes do not fit, or the arguments are not floating matrices.

    Note:
      The complement is taken twice: once would leave rounding errors of `x` within the
      span, which are large beside a complement that is small.

    Example:
      >>> q = jnp.array([[1.0], [0.0]])
      >>> x = jnp.array([[3.0], [4.0]])
      >>> project(x, q).T, project(x, q, complement=True).T
      (Array([[3., 0.]], dtype=float32), Array([[0., 4.]], dtype=float32))
    """
    check_matrices(x)
    check_matrices(q)
    if x.shape[:-1] != q.shape[:-1]:
        raise ParameterError(
            f"bases {list(q.shape)} do not fit matrices {list(x.shape)}: all axes but "
            "the last have to be equal"
        )
    dtype = np.result_type(compute_dtype(x.dtype), compute_dtype(q.dtype))
    x, q = x.astype(dtype), q.astype(dtype)

    def within(y: Array) -> Array:
        return _matmul(q, _matmul(q.mT, y))

    if not complement:
        return within(x)
    rest = x - within(x)
    return rest - within(rest)


@jax.custom_jvp
@jax.jit
def _polar(x: Float[Array, "*batch m n"]) -> tuple[Array, Array]:
    """The fields of the frame, for tall matrices whose largest entry is 1."""
    return jax.lax.platform_dependent(x, cpu=_by_svd, default=_by_products)


def _by_svd(x: Array) -> tuple[Array, Array]:
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    q = _matmul(u, vh)
    # In float32 LAPACK's vectors are orthonormal to 1e-5 only.
    return q + 0.5 * _matmul(q, _missing(q)), _ratio(s[..., -1], s[..., 0])


def _by_products(x: Array) -> tuple[Array, Array]:
    # Above 1 the steps would diverge. The root of |g|_F, or of that of any power of g,
    # bounds the largest singular value; with g^2 it is 2 times too large at most for
    # the sizes in use, which costs one step.
    g = _matmul(x.mT, x)
    bound = _frobenius(_matmul(g, g)) ** 0.25

    def step(q: Array, alpha: Array) -> tuple[Array, None]:
        g = alpha * alpha * _matmul(q.mT, q)
        return alpha * (1.5 * q - 0.5 * _matmul(q, g)), None

    enough = math.sqrt(jnp.finfo(x.dtype).eps)
    alphas = jnp.array(_schedule(enough), x.dtype)
    q, _ = jax.lax.scan(step, x / _nonzero(bound), alphas)
    # The last step squares what is missing. Too much is missing where singular values
    # were below those of the schedule. A comparison with NaN is False: no SVD for it.
    missing = _missing(q)
    failed = _frobenius(missing) > enough
    q = q + 0.5 * _matmul(q, missing)
    q = jax.lax.cond(
        jnp.any(failed), lambda: jnp.where(failed, _by_svd(x)[0], q), lambda: q
    )
    # Here the small singular values are seen; in the Gram matrix they are squared.
    values = jnp.linalg.eigvalsh(_symmetric_part(q, x))
    return q, _ratio(values[..., 0], values[..., -1])


@_polar.defjvp
def _derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """With x = q h, h = v diag(s) v^T: dq = q w + (1 - q q^T) dx h^-1.

    The skew w solves w h + h w = q^T dx - dx^T q, which is diagonal in terms of v.
    """
    (x,), (dx,) = primals, tangents
    q, smallest = _polar(x)
    s, v = jnp.linalg.eigh(_symmetric_part(q, x))
    # Rounding errors of s are absolute; what is within them is nothing to divide by.
    nothing = x.shape[-1] * jnp.finfo(s.dtype).eps * s[..., -1:, None]

    def over(y: Array, divisor: Array) -> Array:
        divides = divisor > nothing
        return jnp.where(divides, y / jnp.where(divides, divisor, 1), 0)

    rotated = _matmul(dx, v)
    inside = _matmul(q.mT, rotated)
    outside = rotated - _matmul(q, inside)
    inside = _matmul(v.mT, inside)
    skew = over(inside - inside.mT, s[..., :, None] + s[..., None, :])
    dq = _matmul(q, _matmul(v, skew)) + over(outside, s[..., None, :])
    return (q, smallest), (_matmul(dq, v.mT), jnp.zeros_like(smallest))


@functools.cache
def _schedule(smallest: float) -> tuple[float, ...]:
    """The alphas that take all of [`smallest`, 1] to nearly 1, but for one step.

    The best alpha for [l, 1] sends both ends to the same value, the new l.
    """
    alphas, low = [], smallest
    while 1 - low > smallest / 10:
        alpha = min(_MOST, math.sqrt(3 / (1 + low + low * low)))
        alphas.append(alpha)
        low *= alpha * (3 - (alpha * low) ** 2) / 2
    return tuple(alphas)


def _unit(x: Array) -> Array:
    """Widened, and divided by the largest entry, so that squares stay in range."""
    x = x.astype(compute_dtype(x.dtype))
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    # Infinity would leave zeros beside it.
    unit = jnp.where(jnp.isfinite(largest), _nonzero(largest), jnp.nan)
    return x / jax.lax.stop_gradient(unit)


def _missing(q: Array) -> Array:
    """What `q^T q` lacks of the identity."""
    g = _matmul(q.mT, q)
    return jnp.broadcast_to(jnp.eye(g.shape[-1], dtype=g.dtype), g.shape) - g


def _symmetric_part(q: Array, x: Array) -> Array:
    """`q^T x`, made symmetric: without rounding errors it is."""
    h = _matmul(q.mT, x)
    return (h + h.mT) / 2


def _ratio(smallest: Array, largest: Array) -> Array:
    """Quotient of singular values; rounding can make the smallest negative."""
    return jnp.maximum(smallest, 0) / _nonzero(largest)


def _frobenius(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)


def _nonzero(x: Array) -> Array:
    return jnp.where(x == 0, 1, x)
