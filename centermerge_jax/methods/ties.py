"""TIES: task vectors trimmed, and averaged where they agree in sign."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from centermerge_jax.elementwise import BLOCK, elementwise, widened
from centermerge_jax.host_memory import on_host
from centermerge_jax.magnitudes import check_share, kept, magnitude_thresholds
from centermerge_jax.methods.passes import Rows, whole_rows
from centermerge_jax.scales import one_scale
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.trees import (
    Params,
    base_name,
    compute_dtype,
    dtype_of,
    named_experts,
)


def ties(
    experts: Experts,
    base: Params,
    *,
    density: float = 0.2,
    scale: Any = 1.0,
    thresholds: Sequence[Any] | None = None,
    majority: Any = None,
    dtype: Any = None,
) -> Params:
    """Trims task vectors, elects a sign for each number, and averages what has it.

        D_t   = tau_t where |tau_t| is among the largest of the whole tau_t, else 0
        gamma = sign(sum_t D_t)
        theta = theta_0 + scale * mean of the D_t that are not 0 and have that sign

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Share in (0, 1] of each task vector that is kept, counted over the whole
        vector and not leaf by leaf; numbers equal to the smallest one are kept too.
      scale: One number, or one for each leaf, as a tree prefix.
      thresholds: Magnitude from which on each task vector is kept, and
      majority: Sign that is elected where the sum is zero: both from
        `ties_statistics`, for those who cannot hold all trees; else they are found
        here.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `density` or `scale` is out of range.

    Note:
      The authors' code keeps one number more of each task vector.

    Example:
      >>> base = {"w": np.zeros(4, np.float32)}
      >>> experts = [{"w": np.float32([4, 3, 0, 1])}, {"w": np.float32([2, -1, 0, 3])}]
      >>> ties(experts, base, density=0.5)
      {'w': Array([3., 3., 0., 3.], dtype=float32)}

    References:
      Yadav et al., "TIES-Merging", 2023, arXiv:2306.01708, algorithm 1.
    """
    check_dtype(dtype)
    check_share(density)
    trees = named_experts(experts)
    tasks = tuple(trees)
    name = base_name(trees)
    trees = trees | {name: base}
    scales = one_scale(scale, base, tasks)
    found = {"thresholds": thresholds, "majority": majority}
    if thresholds is None or majority is None:
        rows = whole_rows(experts, base)
        host = all(on_host(leaf) for _, row in rows() for leaf in row)
        found = (ties_statistics if host else _on_device)(rows, density=density)
    return elementwise(
        functools.partial(_merge, **found),
        trees,
        given=scales,
        dtype=dtype,
        any_dtype=(name,),
    )


def ties_statistics(rows: Rows, *, density: float = 0.2) -> dict[str, Any]:
    """What TIES has to know of the whole task vectors, from three passes.

    Args:
      rows: Called three times; its leaves lie in this process's memory.
      density: As for `ties`.

    Returns:
      `thresholds`, a number for each expert, and `majority`, -1, 0 or 1: the sign that
      is elected more often.
    """
    thresholds = magnitude_thresholds(lambda: _deltas(rows), share=density)
    balance = 0
    for deltas in _deltas(rows):
        elected = np.sign(sum(_trimmed(deltas, thresholds)))
        balance += int(np.nansum(elected))
    return {"thresholds": thresholds, "majority": np.sign(np.float32(balance))}


def _deltas(rows: Rows) -> Iterator[list[np.ndarray]]:
    """Blocks of the task vectors that fit into a cache."""
    for _, row in rows():
        dtype = compute_dtype(dtype_of(row[0]))
        flat = [np.asarray(leaf).reshape(-1) for leaf in row]
        for start in range(0, flat[0].size, BLOCK):
            block = slice(start, start + BLOCK)
            *experts, base = (x[block].astype(dtype, copy=False) for x in flat)
            yield [x - base for x in experts]


def _on_device(rows: Rows, *, density: float) -> dict[str, Any]:
    """The same for arrays that are traced, or on an accelerator: by sorting."""
    wide = [widened(row) for _, row in rows()]
    deltas = [[x - base for x in experts] for *experts, base in wide]
    thresholds = []
    for own in zip(*deltas, strict=True):
        sizes = [jnp.abs(x.astype(jnp.float32)).reshape(-1) for x in own]
        ordered = jnp.sort(jnp.concatenate(sizes))
        thresholds.append(ordered[ordered.size - kept(density, ordered.size)])
    elected = [jnp.sign(sum(_trimmed(row, thresholds))) for row in deltas]
    balance = sum(jnp.sum(signs.astype(jnp.int32)) for signs in elected)
    return {"thresholds": thresholds, "majority": jnp.sign(jnp.float32(balance))}


def _trimmed(deltas: Sequence[Any], thresholds: Sequence[Any]) -> list[Any]:
    xp = deltas[0].__array_namespace__()
    return [
        xp.where(xp.abs(x.astype(np.float32)) < threshold, xp.zeros_like(x), x)
        for x, threshold in zip(deltas, thresholds, strict=True)
    ]


def _merge(
    trees: Sequence[Any], scale: Any, *, thresholds: Sequence[Any], majority: Any
) -> Any:
    *experts, base = trees
    xp = base.__array_namespace__()
    trimmed = _trimmed([x - base for x in experts], thresholds)
    sign = xp.sign(sum(trimmed))
    sign = xp.where(sign == 0, xp.asarray(majority, dtype=base.dtype), sign)
    agree = [x * sign > 0 for x in trimmed]
    zero = xp.zeros_like(base)
    total = sum(xp.where(a, x, zero) for a, x in zip(agree, trimmed, strict=True))
    count = sum(a.astype(base.dtype) for a in agree)
    # What is not a number agrees with nothing, but is not to be lost.
    merged = total / xp.maximum(count, xp.ones_like(base)) + 0 * sum(trimmed)
    return base + scale * merged
