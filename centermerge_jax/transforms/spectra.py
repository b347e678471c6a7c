"""What is done to singular values and to the frames of several tasks' vectors.

Functions of one matrix: `[out, in]`, of several tasks `[tasks, out, in]`, or of their
factors. They are traced by JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.linalg import LowRank, polar
from centermerge_jax.transforms.masks import masked


def beside(u: Float[Array, "tasks m k"]) -> Float[Array, "m all"]:
    """The columns of all tasks next to each other.

    Example:
      >>> beside(jnp.arange(4.0).reshape(2, 2, 1))
      Array([[0., 2.],
             [1., 3.]], dtype=float32)
    """
    return jnp.moveaxis(u, 0, 1).reshape(u.shape[1], -1)


def common_frames(
    factors: LowRank,
) -> tuple[Float[Array, "m all"], Float[Array, "all n"], Float[Array, ""]]:
    """The nearest orthonormal frames to the singular vectors of all tasks together.

    Where there are more vectors than dimensions their rows, not their columns, are
    orthonormal. Tasks that share directions leave fewer than there are vectors: then
    it is the frame of what there is, as `isometry` has it.

    Args:
      factors: Of each task, `[tasks, ...]`.

    Returns:
      The left vectors as columns, and the right ones as rows, task after task; and how
      near they are to lacking a direction, as `isometry` has it.

    References:
      Gargiulo et al., "Task Singular Vectors", 2024, arXiv:2412.00081: whitening by the
      orthogonal Procrustes problem.
    """
    # Vectors that belong to zero are arbitrary, and would turn the frames.
    shape = (factors.u.shape[1], factors.vh.shape[2])
    there = factors.s > absent(shape, factors.s.dtype) * factors.s[:, :1]
    rows = masked(factors.vh, there[:, :, None]).reshape(-1, factors.vh.shape[-1])
    left, of_left = isometry(beside(masked(factors.u, there[:, None, :])))
    right, of_right = isometry(rows)
    return left, right, jnp.minimum(of_left, of_right)


def isometry(x: Float[Array, "m n"]) -> tuple[Float[Array, "m n"], Float[Array, ""]]:
    """The polar factor without what it would make up for directions that x lacks.

    `polar` completes it by arbitrary directions; here they are left out, so that the
    result is orthonormal on the span of x only and unique.

    Returns:
      It, and the smallest singular value of x relative to its largest, up to `absent`
      where directions were left out.

    Example:
      >>> isometry(jnp.array([[2.0, 0.0], [0.0, 0.0]]))[0] + 0.0
      Array([[1., 0.],
             [0., 0.]], dtype=float32)
    """
    frame = polar(x)

    def without() -> Array:
        u, _, vh = svd(x)
        return jnp.matmul(u, vh, precision=Precision.HIGHEST)

    least = absent(x.shape, x.dtype)
    q = jax.lax.cond(frame.smallest > least, lambda: frame.q, without)
    return q, frame.smallest


def product(
    u: Float[Array, "*batch m k"], s: Float[Array, "*batch k"], vh: Any
) -> Float[Array, "*batch m n"]:
    """`u @ diag(s) @ vh`."""
    return jnp.matmul(u * s[..., None, :], vh, precision=Precision.HIGHEST)


def svd(x: Any, size: Any = 0.0) -> tuple[Array, Array, Array]:
    """The full decomposition; values within rounding are 0, and so are their vectors.

    Those are arbitrary, and a map that gives them a value would make up directions.

    Args:
      x: Matrices.
      size: Of what they were computed from, `[*batch]`, if that was larger: rounding
        errors are relative to it.

    Example:
      >>> u, s, vh = svd(jnp.ones((2, 2)))
      >>> s.round(3) + 0.0, product(u, jnp.ones(2), vh).round(3)
      (Array([2., 0.], dtype=float32), Array([[0.5, 0.5],
             [0.5, 0.5]], dtype=float32))
    """
    # LAPACK does not come back from an infinite number.
    x = jnp.where(jnp.isfinite(x), x, jnp.nan)
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    largest = jnp.maximum(s[..., 0], jnp.broadcast_to(size, s.shape[:-1]))
    there = s > absent(x.shape, s.dtype) * largest[..., None]
    s = masked(s, there)
    return masked(u, there[..., None, :]), s, masked(vh, there[..., :, None])


def absent(shape: tuple[int, ...], dtype: Any) -> float:
    """Share of the largest singular value up to which others are rounding errors."""
    return max(shape[-2:]) * float(jnp.finfo(dtype).eps)


def flat(s: Float[Array, " k"]) -> Float[Array, " k"]:
    """Singular values all set to their mean, but for those that are zero.

    Example:
      >>> flat(jnp.array([4.0, 2.0, 0.0]))
      Array([2., 2., 0.], dtype=float32)
    """
    return masked(jnp.full_like(s, s.mean()), s > 0)
