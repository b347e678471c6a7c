"""RegMean: matrices weighed by the second moments of their inputs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY
from centermerge_jax.matrixwise import merge_matrices
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params, named_experts, named_leaves
from centermerge_jax.views import Views

Grams = Mapping[str, Mapping[str, Any]]
"""For each task, by name of the matrix, the mean of x^T x over its inputs x:
`[*batch, in, in]`, where leaves are stacked over layers with their batch axes."""


def regmean(
    experts: Experts,
    *,
    grams: Grams,
    off_diagonal: float = 0.95,
    ridge: float = 1e-6,
    views: Views | None = None,
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """The matrices whose outputs are nearest to those of all experts on their inputs.

        W = (sum_t W_t G_t) (sum_t G_t)^-1,  G_t = mean of x^T x, W_t as [out, in]

    What has no such statistics is averaged.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      grams: Second moments of the inputs of each matrix under each expert, from data
        without labels (`centermerge statistics`).
      off_diagonal: Factor in [0, 1] on the entries of each G_t off its diagonal.
      ridge: What is added to the diagonal of each G_t, relative to its mean.
      views: Which leaves are matrices; `cm.views.auto` by default.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range, or statistics do not fit.

    Note:
      Computed around the mean of the experts, which changes nothing but rounding.

    References:
      Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models",
      2022, arXiv:2212.09849.
    """
    if not 0 <= off_diagonal <= 1:
        raise ParameterError(f"off_diagonal is a factor in [0, 1]; got {off_diagonal}")
    if not 0 <= ridge < float("inf"):
        raise ParameterError(f"ridge is a number from 0; got {ridge}")
    return merge_matrices(
        _nearest_outputs,
        experts,
        None,
        scale=1.0,
        given=check_grams(grams, experts),
        how={"off_diagonal": float(off_diagonal), "ridge": float(ridge)},
        views=views,
        dtype=dtype,
        memory=memory,
    )


def regmean_plus_plus(
    experts: Experts,
    *,
    grams: Grams,
    off_diagonal: float = 0.95,
    ridge: float = 1e-6,
    views: Views | None = None,
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """RegMean on inputs that went through the layers below as they are merged.

    The formula is that of `regmean`; what differs is where inputs are from.

    Args:
      experts: As for `regmean`.
      grams: From `cm.merged_prefix_grams`, or `centermerge statistics --kind
        merged_gram`, whose merges are RegMean with its defaults.
      off_diagonal: As for `regmean`.
      ridge: As for `regmean`.
      views: As for `regmean`.
      dtype: As for `regmean`.
      memory: As for `regmean`.

    Raises:
      MergeError: As for `regmean`.

    References:
      Nguyen et al., "RegMean++: Enhancing Effectiveness and Generalization of
      Regression Mean for Model Merging", 2025, arXiv:2508.03121.
    """
    return regmean(
        experts,
        grams=grams,
        off_diagonal=off_diagonal,
        ridge=ridge,
        views=views,
        dtype=dtype,
        memory=memory,
    )


def check_grams(grams: Grams, experts: Experts) -> Grams:
    """The statistics of the experts, if there are some for each.

    Raises:
      ParameterError: A task has none, or they are of another task or leaf.
    """
    trees = named_experts(experts)
    tasks = set(trees)
    if set(grams) != tasks:
        raise ParameterError(
            f"statistics are given for {', '.join(sorted(grams)) or 'no task'}; the "
            f"tasks are {', '.join(sorted(tasks))}"
        )
    leaves = named_leaves(next(iter(trees.values())))
    for task, known in grams.items():
        if unknown := [name for name in named_leaves(known) if name not in leaves]:
            raise ParameterError(
                f"statistics of {task} are for {unknown[0]}, which is no leaf of the "
                f"experts; they have {', '.join(list(leaves)[:3])}, ..."
            )
    return grams


def _nearest_outputs(
    x: Float[Array, "tasks out in"],
    g: Float[Array, "tasks in in"],
    *,
    off_diagonal: float,
    ridge: float,
) -> Float[Array, "out in"]:
    size = g.shape[-1]
    eye = jnp.eye(size, dtype=g.dtype)
    # One unit for all, so that products stay in the range of float32.
    unit = jnp.trace(g.sum(0)) / (len(g) * size)
    g = g / jnp.where(unit > 0, unit, 1)
    g = g * (off_diagonal + (1 - off_diagonal) * eye)[None] + ridge * eye[None]
    weighted = jnp.matmul(x, g, precision=Precision.HIGHEST).sum(0)
    return jnp.linalg.solve(g.sum(0), weighted.mT).mT
