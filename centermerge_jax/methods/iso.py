"""Isotropic merging: a merged matrix whose singular values are all equal."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY, project
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.spectra import beside, flat, isometry, product, svd
from centermerge_jax.trees import Params
from centermerge_jax.views import Views


def iso_c(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """The sum of the task vectors with all singular values set to their mean.

        sum_t tau_t = U S V^T,  theta = theta_0 + scale * mean(S) U V^T

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix; the paper's lie from
        0.9 (20 tasks) to 1.5 (8 tasks).
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `scale` or `rest` is out of range.

    Note:
      Directions that the sum lacks get nothing: the singular vectors that belong to
      zero are arbitrary. The mean is over all singular values, zeros included.

    References:
      Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
      Task-Specific Subspaces", 2025, arXiv:2502.04959, Iso-C.
    """
    return merge_matrices(
        flattened_sum,
        experts,
        base,
        scale=scale,
        rest=rest,
        views=views,
        dtype=dtype,
        memory=memory,
    )


def iso_cts(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    common: float = 0.8,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Leading directions of the sum, and of each task beside them, all equally long.

        sum_t tau_t ~ U_c S_c V_c^T                  of rank k
        (1 - U_c U_c^T) tau_t ~ U_t S_t V_t^T        of rank s = (min(m, n) - k) / tasks
        U = polar([U_1 ... U_T U_c]),  V = polar([V_1 ... V_T V_c])
        theta = theta_0 + scale * mean(S_1 ... S_T, S_c) U V^T

    The rank s is rounded, as the authors do: where a matrix has fewer than half a
    direction for each task it is 0, and the result is that of `iso_c`.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix; the paper's lie from
        1.1 (20 tasks) to 1.9.
      common: Share in [0, 1] of the directions that are taken from the sum.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    References:
      Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and
      Task-Specific Subspaces", 2025, arXiv:2502.04959, Iso-CTS.
    """
    if not 0 <= common <= 1:
        raise ParameterError(f"common is a share in [0, 1]; got {common}")
    return merge_matrices(
        _common_and_specific,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={"common": float(common)},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def flattened_sum(x: Float[Array, "tasks out in"]) -> Float[Array, "out in"]:
    """The sum of the tasks' matrices with a flat spectrum."""
    u, s, vh = svd(x.sum(0))
    return product(u, flat(s), vh)


def _common_and_specific(
    x: Float[Array, "tasks out in"], *, common: float
) -> tuple[Float[Array, "out in"], Float[Array, ""]]:
    tasks, size = len(x), min(x.shape[1:])
    own = round((size - int(common * size)) / tasks)
    shared = size - tasks * own
    if shared < 0:  # rounding up took more than there is
        own, shared = own - 1, size - tasks * (own - 1)
    u, s, vh = svd(x.sum(0))
    u, s, vh = u[:, :shared], s[:shared], vh[:shared]
    rest = project(x, jnp.broadcast_to(u, (tasks, *u.shape)), complement=True)
    us, ss, vhs = svd(rest, jnp.linalg.norm(x, axis=(1, 2)))
    us, ss, vhs = us[..., :own], ss[..., :own], vhs[:, :own]
    every = jnp.concatenate([ss.reshape(-1), s])
    left, of_left = isometry(jnp.concatenate([beside(us), u], axis=1))
    rows = jnp.concatenate([vhs.reshape(-1, vh.shape[-1]), vh])
    right, of_right = isometry(rows)
    return product(left, flat(every), right), jnp.minimum(of_left, of_right)
