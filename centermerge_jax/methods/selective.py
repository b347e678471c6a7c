"""Merging parts of a network, with the other parts kept as one model has them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from centermerge_jax.errors import ParameterError
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params, check_task, named_experts, named_leaves


def merge_some(
    method: Callable[..., Params],
    experts: Experts,
    base: Params | None = None,
    *,
    match: str | Sequence[str],
    keep_from: str,
    **hyperparameters: Any,
) -> Params:
    """Merges the leaves whose names match, and keeps the others of one expert.

    So are decision transformers merged: attention and MLP of all environments, and the
    embeddings and heads of each, which differ in shape.

    Args:
      method: Any method, such as `cm.cart`.
      experts: Fine-tuned parameters of at least one expert; leaves that are not merged
        may differ in shape, or be missing in some.
      base: The parameters that they were fine-tuned from, for methods that take them.
      match: Regular expressions, of which one has to match the whole name of a leaf.
      keep_from: Name of the expert whose other leaves are kept.
      **hyperparameters: Of the method.

    Returns:
      Parameters like those of that expert.

    Raises:
      ParameterError: A pattern matches no leaf, or there is no such expert.
      StructureError: The leaves that match are not the same in all models.

    Example:
      >>> import numpy as np
      >>> from centermerge_jax.methods import weight_average
      >>> hopper = {"attn": np.float32([1, 1]), "head": np.float32([5])}
      >>> walker = {"attn": np.float32([3, 5]), "head": np.float32([7, 7, 7])}
      >>> experts = {"hopper": hopper, "walker": walker}
      >>> merge_some(weight_average, experts, match="attn", keep_from="walker")
      {'attn': Array([2., 3.], dtype=float32), 'head': array([7., 7., 7.], ...)}

    References:
      Lawson and Qureshi, "Merging Decision Transformers", 2023, arXiv:2303.07551.
    """
    trees = named_experts(experts)
    check_task(keep_from, tuple(trees))
    patterns = [match] if isinstance(match, str) else list(match)
    own = named_leaves(trees[keep_from])
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in own):
            raise ParameterError(f"{pattern!r} matches the name of no leaf")

    def chosen(tree: Params) -> dict[str, Any]:
        return {
            name: leaf
            for name, leaf in named_leaves(tree).items()
            if any(re.fullmatch(pattern, name) for pattern in patterns)
        }

    models = [{task: chosen(tree) for task, tree in trees.items()}]
    models += [] if base is None else [chosen(base)]
    merged: Mapping[str, Any] = method(*models, **hyperparameters)
    leaves = [merged.get(name, leaf) for name, leaf in own.items()]
    return jax.tree.structure(trees[keep_from]).unflatten(leaves)
