"""`LowRank`: a stack of matrices held as the factors of a truncated SVD."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from centermerge_jax.views import MatrixView


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

    def mask(self, k: Array | int) -> "LowRank":
        """The first `k` directions, the others set to zero: shapes stay, `k` may vary.

        A sweep over ranks under `jax.jit` compiles once this way, where `keep` would
        compile for each rank.
        """
        kept = jnp.arange(self.rank) < k
        return LowRank(self.u, jnp.where(kept, self.s, 0), self.vh, self.view)

    def dense(self) -> Float[Array, "..."]:
        """The product of the factors, in the shape of the leaf if there is a view."""
        highest = jax.lax.Precision.HIGHEST
        product = jnp.matmul(self.u * self.s[..., None, :], self.vh, precision=highest)
        return (
            product
            if self.view is None
            else jnp.asarray(self.view.from_matrix(product))
        )
