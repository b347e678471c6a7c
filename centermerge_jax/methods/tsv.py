"""Task singular vectors: as one model, as one for each task, and around the mean."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from centermerge_jax.linalg import MEMORY, LowRank, Solver
from centermerge_jax.matrixwise import Rest, merge_matrices
from centermerge_jax.ranks import Rank
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms.spectra import common_frames, product
from centermerge_jax.trees import Params, check_task, named_experts
from centermerge_jax.views import Views


def tsv_m(
    experts: Experts,
    base: Params,
    *,
    scale: Any = 1.0,
    rank: Rank | None = None,
    views: Views | None = None,
    rest: Rest = "scaled_mean",
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Truncated task vectors in frames that were made orthogonal to each other.

        tau_t ~ U_t S_t V_t^T,  U = polar([U_1 ... U_T]),  V = polar([V_1 ... V_T])
        theta = theta_0 + scale * U diag(S_1 ... S_T) V^T

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: One number, or one for each leaf, as a tree prefix; 1 as in the paper.
      rank: Of each task; by default as many directions as fit side by side,
        `max(1, min(m, n) // tasks)`.
      views: Which leaves are matrices; `cm.views.auto` by default.
      rest: What becomes of leaves that are no matrices.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A hyperparameter is out of range.

    References:
      Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model
      Merging", 2024, arXiv:2412.00081, TSV-Merge.
    """
    return merge_matrices(
        whitened,
        experts,
        base,
        rank=an_equal_part(experts) if rank is None else rank,
        scale=scale,
        rest=rest,
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def cart_tsv(
    experts: Experts,
    *,
    rank: Rank,
    scale: Any,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """CART with the frames of TSV-M: centred vectors, made orthogonal to each other.

        theta_t - mean ~ U_t S_t V_t^T,  U, V as in `tsv_m`
        theta = mean + scale * U diag(S_1 ... S_T) V^T

    Args:
      experts: Fine-tuned parameters, best of three or more experts of one base.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions.
      scale: One number, or one for each leaf, as a tree prefix.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `rank` or `scale` is out of range.

    Note:
      Published code of the AdaRank authors has this combination, without figures.
    """
    return merge_matrices(
        whitened,
        experts,
        None,
        rank=rank,
        scale=scale,
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def tsv_c(
    experts: Experts,
    base: Params,
    *,
    task: str,
    rank: Rank | None = None,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """One task's model, from the leading directions of its task vector.

        theta = theta_0 + SVD_k(tau_task)

    What has to be kept for all tasks is about as large as one model. Leaves that are no
    matrices are the expert's own.

    Args:
      experts: Fine-tuned parameters of all experts.
      base: The parameters that they were fine-tuned from.
      task: Name of the task whose model it is.
      rank: By default `max(1, min(m, n) // tasks)`.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes for task vectors and work space at a time.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: There is no such task, or `rank` is out of range.

    References:
      Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model
      Merging", 2024, arXiv:2412.00081, TSV-Compress.
    """
    return merge_matrices(
        lambda factors: product(factors.u[0], factors.s[0], factors.vh[0]),
        only(experts, task),
        base,
        rank=an_equal_part(experts) if rank is None else rank,
        scale=1.0,
        rest="sum",
        views=views,
        solver=solver,
        dtype=dtype,
        memory=memory,
    )


def an_equal_part(experts: Experts) -> Callable[[int], int]:
    """The number of directions that each task may have of a matrix, at least one."""
    count = len(named_experts(experts))
    return lambda size: max(1, size // count)


def only(experts: Experts, task: str) -> dict[str, Params]:
    """That task's expert, out of all of them.

    Raises:
      ParameterError: There is no such task.
    """
    trees = named_experts(experts)
    check_task(task, tuple(trees))
    return {task: trees[task]}


def whitened(factors: LowRank) -> tuple[Float[Array, "out in"], Float[Array, ""]]:
    """The sum of truncated matrices in frames orthogonal to each other.

    Args:
      factors: Of each task, `[tasks, ...]`.

    Returns:
      It, and how near the frames are to lacking a direction.
    """
    u, vh, smallest = common_frames(factors)
    return product(u, factors.s.reshape(-1), vh), smallest
