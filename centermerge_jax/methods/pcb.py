"""PCB: numbers weighed by what they are within their task and beside the others."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from centermerge_jax.magnitudes import check_share
from centermerge_jax.scales import one_scale
from centermerge_jax.task_vectors import Experts, check_dtype, subtract
from centermerge_jax.trees import Params

_TAIL = 1e-4
"""Share of the numbers at each end of the magnitudes that are clipped."""


def pcb(
    experts: Experts,
    base: Params,
    *,
    density: float = 0.1,
    scale: Any,
    dtype: Any = None,
) -> Params:
    """Weighs numbers by a balance of importance within and similarity between tasks.

        intra_t = exp(T minmax(|tau_t|)^2),  inter_t = tanh(tau_t sum_s tau_s)
        w_t     = minmax(intra_t inter_t, where it is among the largest)
        theta   = theta_0 + scale * sum_t w_t tau_t / sum_t w_t

    over whole task vectors, of which the extreme 0.01 % at either end are clipped.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Share in (0, 1] of the numbers of each task that get a weight.
      scale: One number, or one for each leaf, as a tree prefix; the paper's are near
        1.2 or searched for each task.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.

    Note:
      The products of task vectors go into tanh as they are, so that the result depends
      on the size of the parameters.

    References:
      Du et al., "Parameter Competition Balancing for Model Merging", 2024,
      arXiv:2410.02396.
    """
    check_share(density)
    check_dtype(dtype)
    tv = subtract(experts, base)
    scales = one_scale(scale, tv.origin, tv.tasks)
    dense = [delta for _, delta in tv.flat().values() if delta is not None]
    flat = jnp.concatenate([x.reshape(len(x), -1) for x in dense], axis=1)
    merged = _balanced(flat, density=density)
    leaves, start = [], 0
    for (origin, delta), own, stored in zip(
        tv.flat().values(), scales, tv.dtypes, strict=True
    ):
        if delta is None:
            leaves.append(origin)
            continue
        mine = merged[start : start + origin.size].reshape(origin.shape)
        start += origin.size
        whole = origin + jnp.asarray(own, origin.dtype) * mine.astype(origin.dtype)
        leaves.append(whole.astype(stored if dtype is None else dtype))
    return jax.tree.structure(tv.origin).unflatten(leaves)


@functools.partial(jax.jit, static_argnames="density")
def _balanced(
    x: Float[Array, "tasks count"], *, density: float
) -> Float[Array, " count"]:
    tasks, count = x.shape
    size = jnp.abs(x)
    ordered = jnp.sort(size, axis=1)
    low = ordered[:, int(count * _TAIL), None]
    high = ordered[:, max(0, int(count * (1 - _TAIL)) - 1), None]
    size = jnp.clip(size, low, jnp.maximum(low, high))
    score = jnp.exp(tasks * _minmax(size) ** 2) * jnp.tanh(x * x.sum(0, keepdims=True))
    first = min(count - 1, int(count * (1 - density)))
    score = jnp.maximum(score, jnp.sort(score, axis=1)[:, first, None])
    weights = _minmax(score)
    total = jnp.maximum(weights.sum(0), 1e-12)
    # What is not finite was clipped; it is not lost.
    return (jnp.sign(x) * size * weights).sum(0) / total + 0 * x.sum(0)


def _minmax(x: Float[Array, "tasks count"]) -> Float[Array, "tasks count"]:
    """Each row from 0 to 1; 0 where all its numbers are equal."""
    low = x.min(axis=1, keepdims=True)
    width = x.max(axis=1, keepdims=True) - low
    return (x - low) / jnp.where(width > 0, width, 1)
