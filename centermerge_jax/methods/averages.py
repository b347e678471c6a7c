"""Averages of models other than the mean: on the sphere, by norms, scopes aligned."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from centermerge_jax.elementwise import elementwise
from centermerge_jax.errors import ParameterError
from centermerge_jax.leafwise import leafwise
from centermerge_jax.lengths import norm, unit
from centermerge_jax.methods.weight_average import task_shares
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.trees import (
    Params,
    base_name,
    is_merged,
    named_experts,
    named_leaves,
)

_CANCELLED = 1e-6  # a mean of directions so short is rounding errors


def lerp(experts: Experts, *, t: float, dtype: Any = None) -> Params:
    """The straight line between two experts.

        theta = (1 - t) theta_1 + t theta_2

    Args:
      experts: Parameters of two experts; those of a mapping are in the order of their
        names.
      t: 0 is the first and 1 the second; beyond them it extrapolates.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: There are not two of them, or `t` is not finite.

    Example:
      >>> lerp([{"w": np.float32([0, 4])}, {"w": np.float32([4, 4])}], t=0.25)
      {'w': Array([1., 4.], dtype=float32)}
    """
    check_dtype(dtype)
    trees = _two(experts, t)

    def merge(leaves: Sequence[Any], _: Any) -> Any:
        a, b = leaves
        return a + a.dtype.type(t) * (b - a)

    return elementwise(merge, trees, dtype=dtype)


def slerp(
    experts: Experts, *, t: float, parallel: float = 0.9995, dtype: Any = None
) -> Params:
    """The arc between two experts, leaf by leaf.

        theta = (sin((1 - t) w) theta_1 + sin(t w) theta_2) / sin(w)

    where w is the angle between the leaves as vectors. Leaves that are zero, or as good
    as parallel or opposite, so that no arc is told, are interpolated on the straight
    line.

    Args:
      experts: Parameters of two experts; those of a mapping are in the order of their
        names.
      t: 0 is the first and 1 the second.
      parallel: Cosine in (0, 1] from which on directions count as parallel, or as
        opposite below its negative.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: There are not two of them, or `t` or `parallel` is out of range.

    References:
      Shoemake, "Animating rotation with quaternion curves", 1985, section 3.3.
    """
    trees = _two(experts, t)
    if not 0 < parallel <= 1:
        raise ParameterError(f"parallel is a cosine in (0, 1]; got {parallel}")

    def merge(leaf: str, leaves: Sequence[Any], _: Any) -> Any:
        del leaf
        a, b = leaves
        xp = a.__array_namespace__()
        x, y = unit(a), unit(b)
        cos = xp.clip((x * y).sum(), -1, 1)
        straight = (abs(cos) >= parallel) | ~(abs(a) + abs(b) > 0).any()
        straight = straight | ~(abs(a) > 0).any() | ~(abs(b) > 0).any()
        w = xp.where(straight, xp.ones_like(cos), xp.arccos(cos))
        first = xp.where(straight, 1 - t, xp.sin((1 - t) * w) / xp.sin(w))
        second = xp.where(straight, t, xp.sin(t * w) / xp.sin(w))
        return first.astype(a.dtype) * a + second.astype(a.dtype) * b

    return leafwise(merge, trees, dtype=dtype)


def normalised_mean(
    experts: Experts, *, weights: Any = None, dtype: Any = None
) -> Params:
    """The direction of the mean of directions, with the mean of norms, leaf by leaf.

        theta = normalise(sum_t w_t theta_t / |theta_t|) sum_t w_t |theta_t|

    Where the directions cancel each other it is the mean.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      weights: As for `cm.weight_average`.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: `weights` is out of range.

    Note:
      This is what mergekit's `multislerp` comes to, whose tangent vectors cancel. The
      mean on the sphere is `karcher_mean`.
    """
    return _on_sphere(experts, weights, dtype, iterations=0)


def karcher_mean(experts: Experts, *, weights: Any = None, dtype: Any = None) -> Params:
    """The mean of directions on the sphere, with the mean of norms, leaf by leaf.

        p = argmin sum_t w_t angle(p, theta_t)^2,  theta = p sum_t w_t |theta_t|

    Found by p <- exp_p(sum_t w_t log_p(theta_t / |theta_t|)), from the direction of the
    mean. Leaves that are zero have no direction, and where the directions of the others
    cancel each other it is the mean.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      weights: As for `cm.weight_average`; not negative.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: `weights` is out of range.

    References:
      Karcher, "Riemannian center of mass and mollifier smoothing", 1977.
    """
    return _on_sphere(experts, weights, dtype, iterations=30)


def model_stock(experts: Experts, base: Params, *, dtype: Any = None) -> Params:
    """Between the base and the mean, the nearer the mean the more task vectors agree.

        theta = t theta_avg + (1 - t) theta_0,  t = T c / (1 + (T - 1) c)

    where c is the mean cosine between the task vectors of a leaf, at least 0.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.

    References:
      Jang, Yun and Han, "Model Stock", 2024, arXiv:2403.19522, equation 3.
    """
    trees = named_experts(experts)
    name = base_name(trees)
    count = len(trees)
    pairs = count * (count - 1)

    def merge(leaf: str, leaves: Sequence[Any], _: Any) -> Any:
        del leaf
        *tuned, origin = leaves
        deltas = [x - origin for x in tuned]
        # The sum of all cosines is the square of the sum of the directions.
        directions = [unit(x) for x in deltas]
        own = sum((x * x).sum() for x in directions)
        xp = origin.__array_namespace__()
        total = xp.stack(directions).sum(0)
        c = ((total * total).sum() - own) / pairs if pairs else xp.ones_like(own)
        c = xp.clip(c, 0, 1)
        return origin + count * c / (1 + (count - 1) * c) * sum(deltas) / count

    return leafwise(merge, trees | {name: base}, dtype=dtype, any_dtype=(name,))


def norm_matching(experts: Experts, *, dtype: Any = None) -> Params:
    """The mean, with each leaf of two or more axes as long as in the experts.

        theta = theta_avg mean_t |theta_t| / |theta_avg|

    Averaging shortens what differs. Leaves of one axis are the plain mean.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The experts are not the same tree.

    References:
      Wang et al., "Rethinking Weight-Averaged Model-merging", 2024, arXiv:2411.09263,
      for the effect of averaging on magnitudes.
    """

    def merge(leaf: str, leaves: Sequence[Any], _: Any) -> Any:
        del leaf
        mean = _mean(leaves)
        if mean.ndim < 2:
            return mean
        length = sum(norm(x) for x in leaves) / len(leaves)
        return unit(mean) * length

    return leafwise(merge, named_experts(experts), dtype=dtype)


def weight_scope_alignment(
    experts: Experts,
    *,
    variance: Literal["mean", "pooled"] = "mean",
    dtype: Any = None,
) -> Params:
    """The mean, after leaves of two or more axes were given the experts' scope.

        theta_t' = (theta_t - mu_t) sigma / sigma_t + mu,  theta = mean_t theta_t'

    The scope (mu_t, sigma_t) of a leaf is the mean and standard deviation of its
    numbers, (mu, sigma) that of all experts. Leaves of one axis are the plain mean.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      variance: Common variance: the mean of the experts', or that of all their numbers
        pooled.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The experts are not the same tree.
      ParameterError: `variance` is neither.

    Note:
      The paper aligns scopes while models are trained, for which there is
      `scope_divergence`; this is its counterpart for models that are there already.
      Which common variance the paper means is not certain; hence `variance`.

    References:
      Xu et al., "Weight Scope Alignment", 2024, arXiv:2408.12237, section 3.
    """
    if variance not in ("mean", "pooled"):
        raise ParameterError(f"variance is mean or pooled; got {variance!r}")

    def merge(leaf: str, leaves: Sequence[Any], _: Any) -> Any:
        del leaf
        if leaves[0].ndim < 2 or not leaves[0].size:
            return _mean(leaves)
        xp = leaves[0].__array_namespace__()
        centres = xp.stack([x.mean() for x in leaves])
        squares = xp.stack([x.var() for x in leaves])
        centre = centres.mean()
        common = squares.mean()
        if variance == "pooled":
            common = common + ((centres - centre) ** 2).mean()
        factors = xp.sqrt(common / xp.where(squares > 0, squares, common + 1))
        factors = xp.where(squares > 0, factors, xp.zeros_like(factors))
        aligned = [
            (x - m) * f for x, m, f in zip(leaves, centres, factors, strict=True)
        ]
        return sum(aligned) / len(leaves) + centre

    return leafwise(merge, named_experts(experts), dtype=dtype)


def scope_divergence(params: Params, scopes: Any) -> Any:
    """How far the scopes of matrices are from given ones: a term for a training loss.

        sum_leaves log(sigma'/sigma) + (sigma^2 + (mu - mu')^2) / (2 sigma'^2) - 1/2

    It is the KL divergence between normal distributions. Differentiable.

    Args:
      params: Parameters in training.
      scopes: From `weight_scopes` of the models to stay near to.

    Returns:
      A number from 0. It is infinite while a leaf is constant, as kernels are that
      begin at zero; leave such leaves out of both.

    References:
      Xu et al., "Weight Scope Alignment", 2024, arXiv:2408.12237, equation 5.

    Example:
      >>> params = {"w": jnp.array([[1.0, 3.0]])}
      >>> float(scope_divergence(params, weight_scopes([params])))
      0.0
    """
    total = jnp.zeros(())
    for name, (centre, spread) in _scopes(params).items():
        wanted, width = scopes[name]
        ratio = (spread**2 + (centre - wanted) ** 2) / (2 * width**2)
        total += jnp.log(width / spread) + ratio - 0.5
    return total


def weight_scopes(experts: Experts) -> dict[str, tuple[Any, Any]]:
    """Mean, and root of the mean variance, of each leaf of two or more axes.

    Args:
      experts: Parameters of at least one model.

    Raises:
      ParameterError: A leaf of two or more axes is constant in all models: nothing can
        have its scope.
    """
    found = [_scopes(tree) for tree in named_experts(experts).values()]
    scopes = {}
    for name in found[0]:
        centres, spreads = zip(*(each[name] for each in found), strict=True)
        width = jnp.sqrt(sum(s**2 for s in spreads) / len(spreads))
        if not isinstance(width, Tracer) and not width > 0:
            raise ParameterError(f"{name} is constant, which is no scope to align to")
        scopes[name] = (sum(centres) / len(centres), width)
    return scopes


def _on_sphere(
    experts: Experts, weights: Any, dtype: Any, *, iterations: int
) -> Params:
    trees = named_experts(experts)
    shares = [1 / len(trees)] * len(trees)
    if weights is not None:
        shares = [float(w) for w in task_shares(weights, tuple(trees))]
    if iterations and min(shares) < 0:
        raise ParameterError("weights on a sphere are not negative")

    def merge(leaf: str, leaves: Sequence[Any], _: Any) -> Any:
        del leaf
        directions = [unit(x) for x in leaves]
        length = sum(w * norm(x) for w, x in zip(shares, leaves, strict=True))
        middle = sum(w * u for w, u in zip(shares, directions, strict=True))
        p = unit(middle)
        if isinstance(p, np.ndarray):
            for _ in range(iterations):
                p = _step(p, directions, shares)
        else:  # one step to compile, not thirty
            p = jax.lax.fori_loop(
                0, iterations, lambda _, p: _step(p, directions, shares), p
            )
        mean = sum(w * x for w, x in zip(shares, leaves, strict=True))
        xp = p.__array_namespace__()
        told = ~(norm(middle) <= _CANCELLED)  # also where it is not a number
        return xp.where(told, p * length, mean).astype(leaves[0].dtype)

    return leafwise(merge, trees, dtype=dtype)


def _step(p: Any, directions: Sequence[Any], shares: Sequence[float]) -> Any:
    """The exponential, at p, of the mean of the logarithms of the directions."""
    xp = p.__array_namespace__()
    tangent, present = xp.zeros_like(p), 0.0
    for share, u in zip(shares, directions, strict=True):
        across = u - (u * p).sum() * p
        angle = xp.arctan2(norm(across), (u * p).sum())
        tangent = tangent + share * angle * unit(across)
        present = present + share * xp.sqrt((u * u).sum())
    tangent = tangent / xp.where(present > 0, present, 1)
    angle = norm(tangent)
    return unit(xp.cos(angle) * p + xp.sin(angle) * unit(tangent))


def _mean(leaves: Sequence[Any]) -> Any:
    first = leaves[0]
    return first + sum(x - first for x in leaves) / len(leaves)


def _scopes(params: Params) -> dict[str, tuple[Any, Any]]:
    return {
        name: (jnp.mean(leaf), jnp.std(leaf))
        for name, leaf in named_leaves(params).items()
        if is_merged(leaf) and np.ndim(leaf) > 1
    }


def _two(experts: Experts, t: float) -> dict[str, Params]:
    trees = named_experts(experts)
    if len(trees) != 2:
        raise ParameterError(f"between two experts; there are {len(trees)}")
    if not math.isfinite(t):
        raise ParameterError(f"t is a finite number; got {t}")
    return trees
