"""ACE-Merging: task vectors weighed by covariances that they tell themselves."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.spectra import product, svd
from centermerge_jax.trees import Params
from centermerge_jax.views import Views

_TINY = 1e-12


def ace_merging(
    experts: Experts,
    base: Params,
    *,
    scale: Any = 1.0,
    ridge: float = 1e-5,
    heterogeneity: float = 0.3,
    fraction: float = 0.3,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """RegMean with covariances of the inputs estimated from the task vectors.

        E_t = tau_t less its mean over outputs,  C_t = E_t^T E_t
        M   = (sum_t E_t (C_t + ridge)) (sum_t (C_t + ridge) + 1 c)^-1
        theta = theta_0 + scale * M

    where the row c is the mean of the rows of sum_t C_t. If the tasks' sizes differ,
    `var(log |tau_t|^2) / mean(log |tau_t|^2)^2 > heterogeneity`, each C_t and its ridge
    are divided by its trace and c by the mean of |tau_t|^2; and the leading directions
    U_k V_k^T of M + sum_t tau_t (C_t - mean_s (C_s + ridge)) are added to M, as long as
    their singular values are on average.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      ridge: What is added to the diagonal of each C_t, above 0; 1e-5 for vision
        transformers, 2e-4 for RoBERTa, 4e-2 for GPT-2. It is to be seen against the
        size of the task vectors.
      heterogeneity: From 0.
      fraction: Share in (0, 1] of min(m, n) that counts as leading directions.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    References:
      Xu et al., "ACE-Merging: Data-Free Model Merging with Adaptive Covariance
      Estimation", 2026, arXiv:2603.02945.
    """
    if not 0 < ridge < float("inf") or not 0 <= heterogeneity < float("inf"):
        raise ParameterError(
            f"ridge is above 0 and heterogeneity from 0; got {ridge}, {heterogeneity}"
        )
    if not 0 < fraction <= 1:
        raise ParameterError(f"fraction is a share in (0, 1]; got {fraction}")
    return merge_matrices(
        _estimated,
        experts,
        base,
        scale=scale,
        rest=rest,
        how={
            "ridge": float(ridge),
            "heterogeneity": float(heterogeneity),
            "fraction": float(fraction),
        },
        views=views,
        dtype=dtype,
        memory=memory,
    )


def _estimated(
    x: Float[Array, "tasks out in"],
    *,
    ridge: float,
    heterogeneity: float,
    fraction: float,
) -> Float[Array, "out in"]:
    tasks, width = len(x), x.shape[2]
    sizes = (x * x).sum((1, 2))
    logs = jnp.log(sizes + _TINY)
    spread = logs.var(ddof=1) if tasks > 1 else jnp.zeros_like(logs[0])
    unlike = spread / (logs.mean() ** 2 + _TINY) > heterogeneity
    centred = x - x.mean(1, keepdims=True)
    grams = _matmul(centred.mT, centred)
    traces = jnp.trace(grams, axis1=1, axis2=2)
    units = jnp.where(unlike & (traces > 0), traces, 1)[:, None, None]
    grams = grams / units
    eye = jnp.eye(width, dtype=x.dtype)[None]
    ridged = grams + ridge / units * eye
    shared = grams.sum(0).mean(0, keepdims=True)
    mean_size = sizes.mean()
    shared = shared / jnp.where(unlike & (mean_size > 0), mean_size, 1)
    top = _matmul(centred, ridged).sum(0)
    merged = jnp.linalg.solve((ridged.sum(0) + shared).mT, top.mT).mT

    def refined() -> Array:
        left = grams - ridged.mean(0, keepdims=True)
        u, s, vh = svd(merged + _matmul(x, left).sum(0))
        k = max(1, int(fraction * len(s)))
        level = jnp.where(s[:k] > 0, s[:k].mean(), 0)
        return merged + product(u[:, :k], level, vh[:k])

    return jax.lax.cond(unlike, refined, lambda: merged)


def _matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
