"""What a method has to know of whole models, where they need not be held at once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import Params, align, base_name, is_merged, named_experts

Rows = Callable[[], Iterable[tuple[str, Sequence[Any]]]]
"""Goes once through all floating leaves, or pieces of them, by name: those of each
expert, and last that of the base if the method takes one."""


def whole_rows(experts: Experts, base: Params | None = None) -> Rows:
    """The floating leaves of trees in memory, as passes over files would give them.

    Raises:
      StructureError: The trees are not the same.
    """
    trees = named_experts(experts)
    name = base_name(trees)
    if base is not None:
        trees = trees | {name: base}
    _, leaves = align(trees, any_dtype=() if base is None else (name,))
    found = [(leaf, row) for leaf, row in leaves.items() if is_merged(row[0])]
    return lambda: found
