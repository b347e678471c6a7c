"""Task vectors in few bits."""

from typing import Any

from centermerge_jax.errors import ParameterError
from centermerge_jax.leafwise import merge_leaves
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params

_MOST_BITS = 16


def one_bit(
    experts: Experts, base: Params, *, scale: Any = 1.0, dtype: Any = None
) -> Params:
    """Keeps of each leaf of each task vector the signs, and one magnitude.

        theta = theta_0 + scale * sum_t sign(tau_t) mean|tau_t|

    Leaves of one axis keep their whole vectors; those of more are all taken, matrices,
    embeddings and stacked vectors alike.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or as for `cm.combine`.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `scale` is out of range.

    References:
      Liu et al., "BitDelta", 2024, arXiv:2402.10193.
    """

    def binary(leaf: str, x: Any) -> Any:
        del leaf
        if x.ndim < 3 or not x.size:
            return x
        axes = tuple(range(1, x.ndim))
        xp = x.__array_namespace__()
        return xp.sign(x) * abs(x).mean(axes, keepdims=True)

    return merge_leaves(binary, experts, base, scale=scale, dtype=dtype)


def quantised(
    experts: Experts,
    base: Params,
    *,
    bits: int = 2,
    base_bits: int | None = None,
    scale: Any,
    dtype: Any = None,
) -> Params:
    """Task arithmetic with task vectors in a few bits for each number.

        Q_b(x) = min + step round((x - min) / step),  step = (max - min) / (2^b - 1)
        theta  = theta_0 + scale * sum_t Q_bits(tau_t)

    With `base_bits` their mean is stored once and the rest around it, as CART has it:

        m = Q_base_bits(mean_t tau_t)
        theta = theta_0 + scale * sum_t (m + Q_bits(tau_t - m))

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      bits: For each number of a task vector, 1 to 16.
      base_bits: For each number of their mean, 1 to 16.
      scale: One number, or as for `cm.combine`.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: The bits or `scale` are out of range.

    References:
      Kim et al., "Task Vector Quantization for Memory-Efficient Model Merging", 2025,
      arXiv:2503.06921.
    """
    for name, value in (("bits", bits), ("base_bits", base_bits or 1)):
        if type(value) is not int or not 1 <= value <= _MOST_BITS:
            raise ParameterError(f"{name} is 1 to {_MOST_BITS}; got {value!r}")

    def narrow(leaf: str, x: Any) -> Any:
        del leaf
        if base_bits is None:
            return quantise(x, bits=bits)
        middle = quantise(x.mean(0)[None], bits=base_bits)
        return middle + quantise(x - middle, bits=bits)

    return merge_leaves(narrow, experts, base, scale=scale, dtype=dtype)


def quantise(x: Any, *, bits: int) -> Any:
    """Each array of a stack, rounded to `2^bits` values from its least to its largest.

    Args:
      x: Arrays `[count, *shape]`.
      bits: At least 1.

    Example:
      >>> import numpy as np
      >>> quantise(np.float32([[0, 1, 2.2, 3]]), bits=2)
      array([[0., 1., 2., 3.]], dtype=float32)
    """
    if not x.size:
        return x
    axes = tuple(range(1, x.ndim))
    xp = x.__array_namespace__()
    low = x.min(axes, keepdims=True)
    step = (x.max(axes, keepdims=True) - low) / (2**bits - 1)
    some = xp.where(step > 0, step, xp.ones_like(step))
    return low + step * xp.round((x - low) / some)
