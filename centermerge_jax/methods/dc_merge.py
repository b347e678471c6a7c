"""DC-Merge: task vectors in common frames, sparse there, and averaged where agreed."""

from typing import Any

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY, LowRank, Solver
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.methods.tsv import an_equal_part
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.masks import largest, masked
from centermerge_jax.transforms.signs import disjoint_mean
from centermerge_jax.transforms.spectra import common_frames
from centermerge_jax.trees import Params
from centermerge_jax.views import Views


def dc_merge(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    keep: float = 0.001,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Task vectors as coordinates in frames common to all, where few entries count.

        tau_t ~ U_t S_t V_t^T of rank k = min(m, n) / tasks
        U = polar([U_1 ... U_T]),  V = polar([V_1 ... V_T])
        M_t   = the largest entries of U^T U_t S_t V_t^T V
        M     = mean of the entries that agree in sign, within the tasks' own blocks
        theta = theta_0 + scale * U M V^T

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      keep: Share in (0, 1] of the entries of each M_t.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    References:
      "DC-Merge", 2026, arXiv:2603.06242.
    """
    if not 0 < keep <= 1:
        raise ParameterError(f"keep is a share in (0, 1]; got {keep}")
    return merge_matrices(
        _in_common_frames,
        experts,
        base,
        rank=an_equal_part(experts),
        scale=scale,
        rest=rest,
        how={"keep": float(keep)},
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def _in_common_frames(
    factors: LowRank, *, keep: float
) -> tuple[Float[Array, "out in"], Float[Array, ""]]:
    u, vh, smallest = common_frames(factors)
    left = _matmul(u.mT[None], factors.u) * factors.s[:, None, :]
    entries = _matmul(left, _matmul(factors.vh, vh.mT[None]))
    merged = disjoint_mean(masked(entries, largest(entries, share=keep)))
    tasks, k = factors.s.shape
    own = jnp.arange(tasks * k) // k
    blocks = own[:, None] == own[None, :]
    return _matmul(_matmul(u, masked(merged, blocks)), vh), smallest


def _matmul(a: Any, b: Any) -> Array:
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
