"""The mean of the experts, plain or weighted."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from centermerge_jax.elementwise import elementwise
from centermerge_jax.errors import ParameterError
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.trees import Params, named_experts, named_leaves

_ROUNDING = 1e-12
"""Weights that cancel to this share of their size sum to zero but for rounding."""


def weight_average(
    experts: Experts, *, weights: Any = None, dtype: Any = None
) -> Params:
    """The mean of the experts, leaf by leaf.

        theta = sum_t w_t theta_t / sum_t w_t

    This *is* task arithmetic around the mean: with one scale for all tasks the centred
    vectors sum to zero, and with `scale_t = w_t / sum_t w_t` they lead to the weighted
    mean.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      weights: A mapping from each task name to a number, or an array `[tasks]`; only
        ratios count. Equal by default. Negative ones extrapolate.
      dtype: Type of the result; the experts' by default.

    Returns:
      Parameters like those of one expert, averaged in float32 and cast once.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: `weights` is not one finite number for each task, or their sum is
        zero.

    Note:
      Under `jax.jit` the values of traced weights are not checked.

    Example:
      >>> import numpy as np
      >>> experts = {"a": {"w": np.float32([1, 2])}, "b": {"w": np.float32([3, 4])}}
      >>> weight_average(experts)
      {'w': Array([2., 3.], dtype=float32)}
      >>> weight_average(experts, weights={"a": 3, "b": 1})
      {'w': Array([1.5, 2.5], dtype=float32)}

    References:
      Wortsman et al., "Model soups", 2022, arXiv:2203.05482.
    """
    check_dtype(dtype)
    trees = named_experts(experts)
    shares = None
    if weights is not None:
        shares = [task_shares(weights, tuple(trees))] * len(
            named_leaves(next(iter(trees.values())))
        )
    return elementwise(_mean, trees, given=shares, dtype=dtype)


def _mean(trees: Sequence[Any], shares: Any) -> Any:
    """The mean of arrays; relative to the first of them, so that nothing is lost."""
    first, *others = trees
    if shares is None:
        return first + sum((x - first for x in others), 0 * first) / len(trees)
    return sum(
        (s * (x - first) for s, x in zip(shares[1:], others, strict=True)), first
    )


def task_shares(weights: Any, tasks: Sequence[str]) -> Any:
    """The weights in the order of the tasks, divided by their sum."""
    if isinstance(weights, Mapping):
        if unknown := [str(name) for name in weights if name not in tasks]:
            raise ParameterError(
                f"weights: no task is called {', '.join(unknown)}; there are "
                f"{', '.join(tasks)}"
            )
        if missing := [task for task in tasks if task not in weights]:
            raise ParameterError(f"weights: none is given for {', '.join(missing)}")
        weights = [weights[task] for task in tasks]
    if any(isinstance(weight, Tracer) for weight in jax.tree.leaves(weights)):
        traced = jnp.asarray(weights)
        _check_shape(traced.shape, tasks)
        return traced / jnp.sum(traced)
    return _checked_shares(weights, tasks)


def _checked_shares(weights: Any, tasks: Sequence[str]) -> np.ndarray:
    try:
        given = np.asarray(weights)
    except ValueError:  # lists of unlike lengths
        given = np.asarray(None)
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (np.floating, np.integer)):
        raise ParameterError(f"weights are real numbers, got {weights!r}")
    _check_shape(given.shape, tasks)
    values = given.astype(np.float64)
    total, size = values.sum(), np.abs(values).sum()
    if not np.isfinite(size):
        raise ParameterError(f"weights are not finite: {values.tolist()}")
    if abs(total) <= _ROUNDING * size:
        raise ParameterError(f"weights sum to zero: {values.tolist()}")
    return values / total


def _check_shape(shape: tuple[int, ...], tasks: Sequence[str]) -> None:
    if shape != (len(tasks),):
        raise ParameterError(
            f"weights are one number for each of the {len(tasks)} tasks "
            f"({', '.join(tasks)}), got shape {list(shape)}"
        )
