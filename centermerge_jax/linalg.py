"""Truncated singular value decompositions of batches of matrices.

Works on arrays, not on trees. Everything is computed in float32 (float64 for float64
input) with full-precision products, whatever the storage type.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.ranks import Rank, check_fits, resolve_rank
from centermerge_jax.trees import X64, compute_dtype
from centermerge_jax.views import MatrixView

Solver = Literal["auto", "exact", "gram"]
SOLVERS: tuple[Solver, ...] = ("auto", "exact", "gram")

MEMORY = 2**30
"""Default bytes for the work space of factorisations in flight."""

_GRAM_UP_TO = 0.3
"""Share of rank up to which `auto` takes eigenvectors of the Gram matrix.

Beyond it the small singular values among the kept ones, which the Gram matrix squares
into the rounding of the large ones, begin to show in the result."""

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """Factors of a stack of matrices, `u @ diag(s) @ vh`.

    Attributes:
      u: Left singular vectors, as columns.
      s: Singular values, descending.
      vh: Right singular vectors, as rows.
      view: How the matrices lie in the leaf that they were taken from; None if they
        are plain matrices. Where the leaf is part of a joint matrix, the factor of the
        joined side is this leaf's slice of it.
    """

    u: Float[Array, "*batch m k"]
    s: Float[Array, "*batch k"]
    vh: Float[Array, "*batch k n"]
    view: MatrixView | None = field(default=None, metadata={"static": True})

    @property
    def rank(self) -> int:
        """Number of directions stored."""
        return self.s.shape[-1]

    @property
    def size(self) -> int:
        """`min(m, n)` of the matrices before truncation."""
        if self.view is not None:
            return self.view.size
        return min(self.u.shape[-2], self.vh.shape[-1])

    def keep(self, k: int) -> "LowRank":
        """The first `k` directions only."""
        u, s, vh = self.u[..., :k], self.s[..., :k], self.vh[..., :k, :]
        return LowRank(u, s, vh, self.view)

    def dense(self) -> Float[Array, "..."]:
        """The product of the factors, in the shape of the leaf if there is a view."""
        product = jnp.matmul(self.u * self.s[..., None, :], self.vh, precision=_HIGHEST)
        return product if self.view is None else self.view.from_matrix(product)


def choose_solver(k: int, size: int) -> Solver:
    """What `auto` stands for when keeping `k` of `size` directions."""
    return "gram" if k <= _GRAM_UP_TO * size else "exact"


def truncated_svd(
    x: Float[Array, "*batch m n"],
    *,
    rank: Rank,
    solver: Solver = "auto",
    memory: int = MEMORY,
) -> LowRank:
    """The leading singular triplets of each matrix of a batch.

        x ~ u @ diag(s) @ vh, the best approximation of rank k in the Frobenius norm

    Args:
      x: Matrices; low-precision types are computed in float32.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions.
      solver: `exact` decomposes fully and cuts; `gram` takes the eigenvectors of the
        smaller of `x^T x` and `x x^T`, which is several times faster and in float32
        correct to about 1e-4 of `x`'s norm up to 16 % of the rank (it cannot resolve
        singular values below some 3e-4 of the largest); `auto` takes `gram` up to 30 %
        and `exact` beyond.
      memory: Bytes of work space; more matrices than fit are solved one chunk after
        another.

    Returns:
      Factors in float32 (float64 for float64 input). Singular vectors are unique only
      up to sign and rotation among equal singular values; compare products. A vector of
      a singular value 0 may be zero under `gram`.

    Raises:
      ParameterError: `rank` is out of range or above `min(m, n)`, there is no such
        solver, or `x` is not floating matrices.

    Note:
      Not-a-number in one matrix spreads over that matrix, not over the batch. The
      gradient through the factorisation itself is not finite where singular values
      coincide, as those of an unchanged matrix do; gradients with respect to scales and
      factors, through `cm.combine`, always are.

    Example:
      >>> x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
      >>> truncated_svd(x, rank=2).s
      Array([3., 2.], dtype=float32)
    """
    if solver not in SOLVERS:
        raise ParameterError(f"solver is one of {', '.join(SOLVERS)}; got {solver!r}")
    _check_matrices(x)
    *batch, m, n = x.shape
    check_fits(rank, {f"[{m}, {n}]": min(m, n)})
    k = resolve_rank(rank, min(m, n))
    if solver == "auto":
        solver = choose_solver(k, min(m, n))
    u, s, vh = _factorise(x.reshape(-1, m, n), k=k, solver=solver, memory=memory)
    return LowRank(
        u.reshape(*batch, m, k), s.reshape(*batch, k), vh.reshape(*batch, k, n)
    )


def _check_matrices(x: Any) -> None:
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ParameterError(f"expected matrices [*batch, m, n], got {list(x.shape)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ParameterError(f"expected floating numbers, got {x.dtype}")
    if x.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ParameterError(f"got float64: {X64}")


@functools.partial(jax.jit, static_argnames=("k", "solver", "memory"))
def _factorise(
    x: Float[Array, "count m n"], *, k: int, solver: Solver, memory: int
) -> tuple[
    Float[Array, "count m k"], Float[Array, "count k"], Float[Array, "count k n"]
]:
    count, m, n = x.shape
    dtype = compute_dtype(x.dtype)
    one = functools.partial(_exact if solver == "exact" else _gram, k=k)
    # The matrix, its two factors and a square of the smaller side are alive at once.
    workspace = dtype.itemsize * (m * n + min(m, n) * (m + n + min(m, n)))
    chunk = max(1, min(count, memory // workspace))
    return jax.lax.map(lambda y: one(y.astype(dtype)), x, batch_size=chunk)


def _exact(
    x: Float[Array, "m n"], *, k: int
) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return u[:, :k], s[:k], vh[:k]


def _gram(
    x: Float[Array, "m n"], *, k: int
) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
    if x.shape[0] < x.shape[1]:
        v, s, uh = _gram(x.T, k=k)
        return uh.T, s, v.T
    # Squares of very large or small entries would leave the range of the type.
    largest = jnp.max(jnp.abs(x))
    unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    y = x / unit
    gram = jnp.matmul(y.T, y, precision=_HIGHEST)
    _, vectors = jnp.linalg.eigh(gram)
    v = vectors[:, ::-1][:, :k]
    us = jnp.matmul(y, v, precision=_HIGHEST)
    # Norms of y v are more accurate than roots of eigenvalues, but in that rounding
    # they may come out of order.
    s = jnp.linalg.norm(us, axis=0)
    order = jnp.argsort(-s)
    s, us, v = s[order], us[:, order], v[:, order]
    u = us / jnp.where(s > 0, s, jnp.ones_like(s))[None]
    return u, s * unit, v.T
