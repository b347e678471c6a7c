"""MagMax: of every number the task vector's in which it is largest."""

from collections.abc import Sequence
from typing import Any

from centermerge_jax.elementwise import elementwise
from centermerge_jax.scales import one_scale
from centermerge_jax.task_vectors import Experts, check_dtype
from centermerge_jax.transforms.signs import magmax_update
from centermerge_jax.trees import Params, base_name, named_experts


def magmax(
    experts: Experts, base: Params, *, scale: Any = 0.5, dtype: Any = None
) -> Params:
    """Takes each number from the task vector in which its magnitude is largest.

        theta = theta_0 + scale * tau_s,  s = argmax_t |tau_t|, number by number

    Made for experts that were fine-tuned one after the other, each from the last. Of
    magnitudes that are equal the later task's counts: the last of a sequence, or by
    name of a mapping. To go on with a further expert later, keep the result under
    scale 1 and merge it with the new one: the maximum needs no other memory
    (`transforms.signs.magmax_update`).

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that the first was fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `scale` is out of range.

    Note:
      On experts that were fine-tuned independently it is no better than task
      arithmetic.

    References:
      Marczak et al., "MagMax", 2024, arXiv:2407.06322, section 4.
    """
    check_dtype(dtype)
    trees = named_experts(experts)
    name = base_name(trees)
    return elementwise(
        _merge,
        trees | {name: base},
        given=one_scale(scale, base, tuple(trees)),
        dtype=dtype,
        any_dtype=(name,),
    )


def _merge(trees: Sequence[Any], scale: Any) -> Any:
    *experts, base = trees
    result = experts[0] - base
    for x in experts[1:]:
        result = magmax_update(result, x - base)
    return base + scale * result
