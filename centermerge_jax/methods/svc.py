"""SVC: singular values of a merged matrix calibrated by what the tasks have there."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY, LowRank
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.methods.tsv import whitened
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.spectra import flat, product, svd
from centermerge_jax.trees import Params
from centermerge_jax.views import Views

Merger = Literal["task_arithmetic", "iso_c", "tsv_m"]


def svc(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    merger: Merger = "task_arithmetic",
    views: Views | None = None,
    rest: Rest | None = None,
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """A merged matrix, with directions shortened that several tasks counted into.

        D     = scale * merger(tau_1, ..., tau_T) = U diag(s) V^T
        p_rt  = <u_r^T D, u_r^T tau_t> / |u_r^T tau_t|^2
        theta = theta_0 + U diag(gamma s) V^T,  gamma_r = T / sum_t max(a, p_rt)

    with a = 1 / T, and 1 for `tsv_m`.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: A number, known when tracing.
      merger: What is calibrated: the sum, or what `iso_c` or `tsv_m` makes of it.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices; by default what the merger
        makes of them, `sum` for task_arithmetic and `scaled_mean` for the others.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    Note:
      All directions of what `iso_c` gives are equally long, so that it has no singular
      vectors of its own; they are taken from the sum.

    References:
      "SVC", 2026, arXiv:2602.05536.
    """
    if merger not in ("task_arithmetic", "iso_c", "tsv_m"):
        raise ParameterError(
            f"merger is task_arithmetic, iso_c or tsv_m; got {merger!r}"
        )
    try:
        scale = float(scale)
    except (TypeError, jax.errors.ConcretizationTypeError) as error:
        message = f"scale is one number, known when tracing; got {scale!r}"
        raise ParameterError(message) from error
    if rest is None:
        rest = "sum" if merger == "task_arithmetic" else "scaled_mean"
    return merge_matrices(
        _calibrated,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={"merger": merger, "scale": scale},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def _calibrated(
    x: Float[Array, "tasks out in"], *, merger: Merger, scale: float
) -> Float[Array, "out in"]:
    """The calibrated matrix before it is scaled, as its scale is a factor of it."""
    tasks = len(x)
    if merger == "tsv_m":
        k = max(1, min(x.shape[1:]) // tasks)
        u, s, vh = svd(x)
        merged, _ = whitened(LowRank(u[..., :k], s[:, :k], vh[:, :k]))
        u, s, vh = svd(merged)
    else:
        u, s, vh = svd(x.sum(0))
        s = flat(s) if merger == "iso_c" else s
    own = jnp.einsum("or,toi->tri", u, x, precision=Precision.HIGHEST)
    inner = scale * jnp.einsum("ri,tri->tr", s[:, None] * vh, own)
    square = (own * own).sum(-1)
    least = 1.0 if merger == "tsv_m" else 1 / tasks
    share = jnp.where(square > 0, inner / jnp.where(square > 0, square, 1), least)
    gamma = tasks / jnp.maximum(share, least).sum(0)
    return product(u, gamma * s, vh)
