"""Measures of pairs of tasks: how much of each other's directions they use.

All are functions of the factors of one matrix, one for each task, as `factorise` gives
them. Directions whose singular value is a rounding error do not count, and so a task
that left a matrix as it was interferes with none.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.analysis.spectra import energies, stable_rank
from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import LowRank
from centermerge_jax.ranks import Rank, resolve_rank
from centermerge_jax.transforms.spectra import absent

Normalisation = Literal["top", "whole", "none"]
NORMALISATIONS: tuple[Normalisation, ...] = ("top", "whole", "none")
"""What singular values are normalised over: the k directions that are looked at, the
whole spectrum, or nothing."""

_HIGHEST = jax.lax.Precision.HIGHEST


def interference(
    factors: LowRank, *, normalise: Normalisation = "top"
) -> Float[Array, " r"]:
    """Row-space interference of several tasks, for every rank.

        I(k) = sum_i sum_{j != i} |diag(w_i) V_i V_j^T diag(w_j)|_F

    V_t are the leading k right singular vectors of task t, as rows, and w_t its
    singular values, divided by the root of the sum of their squares. Over the leading k
    (`top`) it compares directions at each rank by itself, and the least rank may
    interfere most; over the whole spectrum (`whole`) it grows with k. Both are the same
    at full rank. Not divided (`none`), they also tell how large what interferes is.

    Args:
      factors: Of one matrix: `u [tasks, out, r]`, `s [tasks, r]`, `vh [tasks, r, in]`.
      normalise: `top`, `whole` or `none`.

    Returns:
      I(1), ..., I(r); if normalised each at most tasks * (tasks - 1), the number of
      ordered pairs.

    Raises:
      ParameterError: There is no such normalisation.

    Note:
      One product of r x r for each pair of tasks serves all ranks: the squared norm
      grows from k - 1 to k by the squares in one row and one column.

    References:
      Choi et al., "Revisiting Weight Averaging for Model Merging", 2024,
      arXiv:2412.12153, I(k). Their text says "normalised singular values" and leaves
      open over what.

    Example:
      >>> eye = jnp.eye(2)[None]
      >>> one = LowRank(eye, jnp.array([[1.0, 0.0]]), eye)
      >>> both = jax.tree.map(lambda x: jnp.concatenate([x, x]), one)
      >>> interference(both)
      Array([2., 2.], dtype=float32)
    """
    if normalise not in NORMALISATIONS:
        raise ParameterError(
            f"normalise is one of {', '.join(NORMALISATIONS)}; got {normalise!r}"
        )
    return summed(shared_energies(factors), factors.s, normalise)


def shared_energies(factors: LowRank) -> Float[Array, "pairs r"]:
    """For each pair i < j the squares of its term of I(k), over the whole spectrum."""
    weights, tasks = energies(factors.s), len(factors.s)
    first, second = np.triu_indices(tasks, 1)
    if not len(first):
        return jnp.zeros((0, factors.rank), weights.dtype)

    def one(pair: tuple[Array, Array]) -> Float[Array, " r"]:
        i, j = pair
        products = jnp.matmul(factors.vh[i], factors.vh[j].T, precision=_HIGHEST)
        terms = weights[i][:, None] * jnp.square(products) * weights[j][None, :]
        new = jnp.sum(jnp.tril(terms), axis=1) + jnp.sum(jnp.triu(terms, 1), axis=0)
        return jnp.cumsum(new)

    return jax.lax.map(one, (jnp.asarray(first), jnp.asarray(second)))


def summed(
    shared: Float[Array, "pairs r"],
    s: Float[Array, "tasks r"],
    normalise: Normalisation,
) -> Float[Array, " r"]:
    """I(k) from what pairs share."""
    first, second = np.triu_indices(len(s), 1)
    terms = jnp.sqrt(shared)
    if normalise == "top":
        kept = jnp.sqrt(jnp.cumsum(energies(s), axis=-1))
        both = kept[first] * kept[second]
        terms = terms / jnp.where(both > 0, both, 1)
    elif normalise == "none":
        norms = s[:, :1] * jnp.sqrt(stable_rank(s))[:, None]
        terms = terms * norms[first] * norms[second]
    return 2 * jnp.sum(terms, axis=0)


def subspace_alignment(factors: LowRank, *, rank: Rank) -> Float[Array, "tasks tasks"]:
    """How far the leading row spaces of two tasks are the same, for all pairs.

        |V_i V_j^T|_F^2 / k

    The mean of the squared cosines of the principal angles between the two spaces.

    Args:
      factors: Of one matrix.
      rank: How many directions are leading: a share of r, or their number. Of a task
        that has fewer, all; then k is the smaller of the two.

    Returns:
      1 where one space holds the other, 0 where they are orthogonal or one is empty.

    References:
      Björck and Golub, "Numerical methods for computing angles between linear
      subspaces", 1973, theorem 1, for the angles.
    """
    k = resolve_rank(rank, factors.size)
    there = _present(factors)[:, :k]
    vh = jnp.where(there[..., None], factors.vh[:, :k], 0)
    products = jnp.einsum("ian,jbn->iajb", vh, vh, precision=_HIGHEST)
    count = jnp.sum(there, axis=1)
    least = jnp.minimum(count[:, None], count[None, :]).astype(vh.dtype)
    return jnp.sum(jnp.square(products), axis=(1, 3)) / jnp.maximum(least, 1)


def cosines(factors: LowRank) -> Float[Array, "tasks tasks"]:
    """Cosines of the angles between the tasks' matrices, for all pairs.

        <D_i, D_j> / (|D_i|_F |D_j|_F)

    Args:
      factors: Of one matrix.

    Returns:
      In [-1, 1]; 0 for a matrix of zeros, with itself too.
    """
    s = jnp.sqrt(energies(factors.s))
    x = jnp.matmul(factors.u * s[:, None, :], factors.vh, precision=_HIGHEST)
    x = x.reshape(len(x), -1)
    return jnp.clip(jnp.matmul(x, x.T, precision=_HIGHEST), -1, 1)


def singular_task_interference(factors: LowRank, *, rank: Rank) -> Float[Array, ""]:
    """Interference of the tasks' singular vectors on both sides.

        STI = |(U^T U - 1) diag(s) (V^T V - 1)|_1

    U and V hold the leading k singular vectors of all tasks as columns, and s their
    singular values; the norm is the sum of absolute values.

    Args:
      factors: Of one matrix.
      rank: How many directions of each task: a share of r, or their number. Those who
        proposed it keep r / tasks.

    Returns:
      0 where directions of different tasks are orthogonal, be it on one side only;
      proportional to the size of the task vectors.

    References:
      Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model
      Merging", CVPR 2025, arXiv:2412.00081, the definition of STI.
    """
    k, tasks = resolve_rank(rank, factors.size), len(factors.s)
    there = _present(factors)[:, :k]
    u = jnp.where(there[:, None, :], factors.u[..., :k], 0)
    vh = jnp.where(there[..., None], factors.vh[:, :k], 0)
    s = jnp.where(there, factors.s[:, :k], 0)
    # Of one task's own vectors the products are those of the identity.
    others = 1 - jnp.eye(tasks, dtype=u.dtype)[:, None, :, None]
    left = others * jnp.einsum("ima,jmb->iajb", u, u, precision=_HIGHEST)
    right = others * jnp.einsum("ian,jbn->iajb", vh, vh, precision=_HIGHEST)
    left, right = (x.reshape(tasks * k, tasks * k) for x in (left, right))
    product = jnp.matmul(left * s.reshape(1, -1), right, precision=_HIGHEST)
    return jnp.sum(jnp.abs(product))


def _present(factors: LowRank) -> Array:
    """Which singular values are more than rounding errors, `[tasks, r]`."""
    shape = (factors.u.shape[-2], factors.vh.shape[-1])
    least = absent(shape, factors.s.dtype) * factors.s[:, :1]
    return (factors.s > least) & (factors.s > 0)
