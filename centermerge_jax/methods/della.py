"""DELLA: numbers are dropped with a probability that falls with their magnitude."""

import functools
from typing import Any

from centermerge_jax.errors import ParameterError
from centermerge_jax.leafwise import merge_leaves
from centermerge_jax.random_numbers import check_seed, task_uniforms
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.masks import masked, ranks
from centermerge_jax.transforms.signs import disjoint_mean
from centermerge_jax.trees import Params, named_experts
from centermerge_jax.views import MatrixView, Views, resolve


def della(
    experts: Experts,
    base: Params,
    *,
    density: float,
    epsilon: float = 0.15,
    scale: Any = 1.0,
    seed: int = 0,
    views: Views | None = None,
    dtype: Any = None,
) -> Params:
    """Keeps large numbers more probably than small ones, and averages what agrees.

        p = density - epsilon ... density + epsilon, by magnitude within each row
        D_t = mask_t tau_t / p
        theta = theta_0 + scale * mean of the D_t that have the sign of their sum

    A row is what an output is computed with; in leaves that are no matrices, what lies
    along the last axis.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      density: Mean probability that a number is kept.
      epsilon: How much more probable the largest and less probable the smallest is;
        `density - epsilon` is above 0, `density + epsilon` at most 1.
      scale: One number, or one for each leaf, as a tree prefix.
      seed: Of the random numbers, which belong to task and leaf by name.
      views: Which leaves are matrices; `cm.views.auto` by default.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `density`, `epsilon` or `scale` is out of range.

    References:
      Deep, Bhardwaj and Poria, "DELLA-Merging", 2024, arXiv:2406.11617, section 3.
    """
    if not (epsilon >= 0 and density - epsilon > 0 and density + epsilon <= 1):
        raise ParameterError(
            f"density {density} and epsilon {epsilon}: the probabilities from density "
            "- epsilon to density + epsilon have to lie in (0, 1]"
        )
    check_seed(seed)
    trees = named_experts(experts)
    tasks = tuple(trees)
    table = resolve(next(iter(trees.values())), views)

    def merge(leaf: str, x: Any) -> Any:
        rows = functools.partial(_rows, view=table.get(leaf))
        n = rows(x).shape[-1]
        place = ranks(rows(x)).astype(x.dtype) / max(1, n - 1)
        if n == 1:
            place = place + 0.5
        p = density - epsilon + 2 * epsilon * place
        kept = rows(task_uniforms(seed, "della", tasks, leaf, x)) < p
        dropped = masked(rows(x), kept) / p
        return disjoint_mean(_leaf(dropped, x.shape, table.get(leaf)))

    return merge_leaves(merge, experts, base, scale=scale, dtype=dtype)


def _rows(x: Any, *, view: MatrixView | None) -> Any:
    """Task vectors with the numbers of one row along the last axis."""
    if view is None:
        return x
    matrices = view.to_matrix(x)
    return matrices.swapaxes(-1, -2) if view.inputs == "rows" else matrices


def _leaf(rows: Any, shape: tuple[int, ...], view: MatrixView | None) -> Any:
    """The inverse of `_rows`."""
    if view is None:
        return rows.reshape(shape)
    matrices = rows.swapaxes(-1, -2) if view.inputs == "rows" else rows
    return view.from_matrix(matrices)
