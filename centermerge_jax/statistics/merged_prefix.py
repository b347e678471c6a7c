"""Gram matrices of inputs that went through layers which are merged already.

RegMean asks what each layer of each expert gets to see. In the merged model it sees
something else, since the layers before it are merged too. Here the model is walked from
its first layer to its last: a layer's inputs are taken behind merged ones, and with
them it is merged itself.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from centermerge_jax.errors import DataError, ParameterError
from centermerge_jax.methods import regmean
from centermerge_jax.progress import Report, silent
from centermerge_jax.statistics.gram import (
    Apply,
    Batch,
    gram_leaves,
    gram_statistics,
)
from centermerge_jax.statistics.matrix_inputs import order_of_use
from centermerge_jax.trees import Params, align, is_merged, named_experts
from centermerge_jax.views import Views, resolve

Leaves = dict[str, Any]


def merged_prefix_grams(
    apply: Apply,
    experts: Mapping[str, Params],
    batches: Mapping[str, Iterable[Batch]],
    *,
    merge: Callable[..., Mapping[str, Any]] = regmean,
    views: Views | None = None,
    progress: Report = silent,
) -> dict[str, dict[str, Array]]:
    """Gram matrices as of `gram_statistics`, behind layers that are already merged.

    Block after block: the inputs of its matrices are taken from each task's data, with
    the block itself as the task's expert has it and all before it merged.

    Args:
      apply: The model.
      experts: Parameters by task.
      batches: Of each task's data; gone through once for each block.
      merge: `merge(leaves of each task, grams=..., views=...)`, of one block at a time;
        `cm.methods.regmean`, or that with other hyperparameters.
      views: Which leaves are matrices; `cm.views.auto` by default.
      progress: Told the block, and the share of all that is done.

    Returns:
      Gram matrices by task and leaf: merging with them once more gives the leaves with
      which they were made.

    Raises:
      ParameterError: The tasks of the experts are not those of the data.
      StructureError: The experts are not the same tree.
      ViewError: A leaf of two or more axes has no view.
      DataError: As for `gram_statistics`.

    Note:
      Leaves with one number in their names (`blocks/3/...`) are one block; so are those
      used between two blocks. Stacked layers that a scan goes through are one block.

    Example:
      >>> from types import SimpleNamespace
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> def apply(params, x):
      ...     return x @ params["0"]["kernel"] @ params["1"]["kernel"]
      >>> def expert(size):
      ...     first, second = jnp.full((1, 1), size), jnp.ones((1, 1))
      ...     return {"0": {"kernel": first}, "1": {"kernel": second}}
      >>> x = SimpleNamespace(inputs=jnp.ones((1, 1)), valid=np.array([True]))
      >>> grams = merged_prefix_grams(
      ...     apply,
      ...     {"a": expert(1.0), "b": expert(3.0)},
      ...     {"a": [x], "b": [x]},
      ... )
      >>> grams["a"]["1/kernel"]  # behind the first layer's merged kernel, which is 2
      Array([[4.]], dtype=float32)

    References:
      Nguyen et al., RegMean++: Enhancing Effectiveness and Generalization of Regression
      Mean for Model Merging, 2025, arXiv:2508.03121, section 3.
    """
    experts = named_experts(experts)
    if experts.keys() != batches.keys():
        raise ParameterError(
            f"there are experts for {', '.join(experts)}, and data for "
            f"{', '.join(sorted(batches))}"
        )
    structure, rows = align(experts)
    first = next(iter(experts))
    example = next(iter(batches[first]), None)
    if example is None:
        raise DataError(f"{first}: there is no batch")
    known = {*gram_leaves(apply, experts[first], example.inputs)}
    blocks = _blocks(order_of_use(apply, experts[first], example.inputs))
    # What the model does not use goes first: it makes no difference to the others.
    used = {leaf for block in blocks for leaf in block}
    blocks = [[leaf for leaf in rows if leaf not in used], *blocks]
    current = {
        task: {leaf: row[i] for leaf, row in rows.items()}
        for i, task in enumerate(experts)
    }
    table = resolve(experts[first], views)
    found: dict[str, dict[str, Array]] = {task: {} for task in experts}
    for number, block in enumerate(blocks):
        matrices = [leaf for leaf in block if leaf in known]
        made: dict[str, Leaves] = {task: {} for task in experts}
        for turn, task in enumerate(experts if matrices else ()):
            share = (number + turn / len(experts)) / len(blocks)
            progress(f"block {number} of {len(blocks) - 1}: {task}", share)
            params = structure.unflatten([current[task][leaf] for leaf in rows])
            made[task] = gram_statistics(apply, params, batches[task], leaves=matrices)
            found[task] |= made[task]
        floating = [leaf for leaf in block if is_merged(rows[leaf][0])]
        if floating:
            own = {task: {x: current[task][x] for x in floating} for task in experts}
            seen = {leaf: table[leaf] for leaf in floating if leaf in table}
            merged = merge(own, grams=made, views=seen)
            for leaves in current.values():
                leaves.update({leaf: merged[leaf] for leaf in floating})
    progress("done", 1.0)
    return found


def _blocks(order: Sequence[str]) -> list[list[str]]:
    """Leaves that are merged together, in the order in which the model uses them.

    Example:
      >>> _blocks(["embed/w", "blocks/0/a", "blocks/0/b", "blocks/1/a", "norm/w"])
      [['embed/w'], ['blocks/0/a', 'blocks/0/b'], ['blocks/1/a'], ['norm/w']]
    """
    blocks: dict[Any, list[str]] = {}
    last: Any = ""
    for leaf in order:
        number = re.match(r"((?:.*?[./])?\d+)(?=[./])", leaf)
        last = (
            number[1] if number else ("after", last) if isinstance(last, str) else last
        )
        blocks.setdefault(last, []).append(leaf)
    return list(blocks.values())
