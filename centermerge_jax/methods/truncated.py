"""What CART and its uncentred control share: truncate, and add back, part by part."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from centermerge_jax.linalg import Solver, check_solver
from centermerge_jax.parts import Leaves, in_parts
from centermerge_jax.ranks import Rank, check_fits, check_ranks, resolve_rank
from centermerge_jax.task_vectors import TaskVectors, check_dtype, combine_leaves
from centermerge_jax.transforms import truncate
from centermerge_jax.transforms.truncate import check_energy, check_noise
from centermerge_jax.trees import Params
from centermerge_jax.views import Table, Views, resolve


def merge_truncated(
    task_vectors: Callable[[Mapping[str, Leaves]], TaskVectors],
    trees: Mapping[str, Params],
    *,
    rank: Rank | Mapping[str, Rank],
    energy: float | None = None,
    noise: float | None = None,
    then: Callable[[TaskVectors, TaskVectors], TaskVectors] | None = None,
    scales: Callable[[TaskVectors], Sequence[Any]],
    views: Views | None,
    solver: Solver,
    dtype: Any,
    memory: int,
    any_dtype: tuple[str, ...] = (),
) -> Params:
    """Adds truncated task vectors to their origin, a few matrices at a time.

    Args:
      task_vectors: Makes them of some leaves of all `trees`.
      trees: Experts by task name, and perhaps a base.
      rank: As for `cm.truncate`.
      energy: As for `cm.truncate`.
      noise: As for `cm.truncate`.
      then: What is made of truncated task vectors, from them and the whole ones.
      scales: The scale of each leaf of truncated task vectors, in tree order.
      views: As for `cm.truncate`.
      solver: As for `cm.truncate`.
      dtype: Of the result.
      memory: Bytes for a part.
      any_dtype: As for `trees.align`.
    """
    tasks = [name for name in trees if name not in any_dtype]
    ranks = dict(zip(tasks, check_ranks(rank, tasks), strict=True))
    check_energy(energy)
    check_noise(noise)
    check_solver(solver, memory=memory)
    check_dtype(dtype)
    table = resolve(next(iter(trees.values())), views)
    sizes = {name: view.size for name, view in table.items() if view is not None}
    # A table that was resolved before may be of a part of a tree, without matrices.
    if sizes or not isinstance(views, Mapping):
        for each in ranks.values():
            check_fits(each, sizes)

    def merge_part(part: Mapping[str, Leaves], views: Table) -> Leaves:
        tv = task_vectors(part)
        size = next((sizes[name] for name in views if name in sizes), None)
        if size is not None:
            whole = tv
            tv = truncate(
                tv,
                rank={task: resolve_rank(ranks[task], size) for task in tv.tasks},
                energy=energy,
                noise=noise,
                views=views,
                solver=solver,
                memory=memory,
                donate=then is None,
            )
            tv = tv if then is None else then(tv, whole)
        return combine_leaves(tv, scales(tv), dtype=dtype)

    return in_parts(merge_part, trees, views=table, memory=memory, any_dtype=any_dtype)
