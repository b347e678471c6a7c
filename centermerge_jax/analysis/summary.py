"""Everything that there is to measure of several experts, as one document."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from centermerge_jax.analysis.factors import factorised
from centermerge_jax.analysis.leaves import (
    Products,
    combination,
    difference,
    length,
    products,
    ratio,
    scope,
)
from centermerge_jax.analysis.measures import AVERAGED, listed, mean_of, measures, plain
from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY
from centermerge_jax.parts import Leaves, in_parts
from centermerge_jax.ranks import resolve_rank
from centermerge_jax.task_vectors import Experts, center, subtract
from centermerge_jax.trees import Params, base_name, is_merged, named_experts
from centermerge_jax.views import Table, Views, resolve

SHARES = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32, 0.48, 0.64, 0.8, 1.0)
"""Ranks that are looked at unless told otherwise, as shares of min(m, n)."""

ALIGNED = 0.08
"""The rank at which subspaces are compared unless told otherwise, also a share."""


def analyse(
    experts: Experts,
    base: Params | None = None,
    *,
    shares: Sequence[float] = SHARES,
    alignment: float = ALIGNED,
    views: Views | None = None,
    memory: int = MEMORY,
) -> dict[str, Any]:
    """Measures the task vectors of several experts, around their mean and the base.

    Every matrix is factorised once for each task and origin; only the factors of one
    group of leaves are held at a time.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from, if they are at hand.
      shares: Ranks to look at, as shares of min(m, n) in (0, 1], ascending.
      alignment: The rank at which subspaces are compared, such a share too.
      views: Which leaves are matrices; `cm.views.auto` by default.
      memory: Bytes for the task vectors of a group and their factorisation.

    Returns:
      Values that can be written as JSON; `docs/analysis.md` says what they are.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: A share is out of range or they do not ascend.

    Example:
      >>> base = {"kernel": np.zeros((2, 2), np.float32)}
      >>> experts = [{"kernel": np.diag(np.float32(d))} for d in ([1, 0], [0, 1])]
      >>> found = analyse(experts, base, shares=(0.5, 1.0))
      >>> found["matrices"]["kernel"]["base"]["interference_top"]
      [0.0, 0.0]
    """
    trees = named_experts(experts)
    tasks, name = tuple(trees), base_name(trees)
    if base is not None:
        trees = trees | {name: base}
    analysis = Analysis(tasks, base is not None, shares, alignment)
    table = resolve(next(iter(trees.values())), views)

    def look(part: Mapping[str, Leaves], seen: Table) -> Leaves:
        own = {task: part[task] for task in tasks}
        origin = None if base is None else part[name]
        analysis.add(own, origin, seen, memory=memory)
        return own[tasks[0]]

    any_dtype = () if base is None else (name,)
    in_parts(look, trees, views=table, memory=memory, any_dtype=any_dtype)
    return analysis.document()


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is known so far of some leaves of several models.

    Attributes:
      tasks: Names of the experts.
      with_base: Whether there is a base.
      shares: Ranks to look at.
      alignment: The rank at which subspaces are compared.
      matrices: By name what was measured of each matrix.
      products: By name of the leaf, see `leaves.products`.

    Raises:
      ParameterError: A share is out of range or they do not ascend.
    """

    tasks: tuple[str, ...]
    with_base: bool
    shares: Sequence[float] = SHARES
    alignment: float = ALIGNED
    matrices: dict[str, dict[str, Any]] = field(default_factory=dict)
    products: dict[str, Products] = field(default_factory=dict)

    def __post_init__(self):
        """Refuses what are no shares before anything is computed."""
        for share in (*self.shares, self.alignment):
            if not (isinstance(share, float) and 0 < share <= 1):
                raise ParameterError(
                    f"a share of the rank is a float in (0, 1]; got {share!r}"
                )
        if list(self.shares) != sorted(set(self.shares)) or not self.shares:
            raise ParameterError(f"shares of the rank ascend; got {list(self.shares)}")

    def add(
        self,
        experts: Mapping[str, Leaves],
        base: Leaves | None,
        views: Table,
        *,
        memory: int,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        """Measures some leaves, or pieces of leaves, of all models.

        Args:
          experts: They, of each expert.
          base: They, of the base.
          views: Of those that are matrices.
          memory: Bytes of work space.
          starts: As for `factors.factorised`.
        """
        for name, first in experts[self.tasks[0]].items():
            if is_merged(first) and np.size(first):
                versions = [experts[task][name] for task in self.tasks]
                versions += [] if base is None else [base[name]]
                before = self.products.get(name, 0)
                self.products[name] = before + products(versions)
        matrices = {name: view for name, view in views.items() if view is not None}
        if not matrices:
            return
        experts = {t: {n: tree[n] for n in matrices} for t, tree in experts.items()}
        how: dict[str, Any] = {"memory": memory, "starts": starts}
        self._measure("mean", center(experts), matrices, **how)
        if base is not None:
            own = {name: base[name] for name in matrices}
            self._measure("base", subtract(experts, own), matrices, **how)

    def _measure(
        self,
        origin: str,
        tv: Any,
        matrices: Mapping[str, Any],
        **how: Any,
    ) -> None:
        tasks = len(self.tasks)
        for place, factors in factorised(tv, matrices, **how):
            size = factors.size
            at = tuple(resolve_rank(share, size) for share in self.shares)
            aligned = resolve_rank(self.alignment, size)
            # More directions than there are dimensions cannot be orthogonal, whatever
            # the tasks; and the cost grows with the cube of their number.
            few = sum(tasks * k <= max(size, tasks) for k in at)
            found = measures(factors, at=at, aligned=aligned, few=few)
            shape = [factors.u.shape[-2], factors.vh.shape[-1]]
            known = self.matrices.setdefault(
                place.name, {"shape": shape, "layer": place.layer}
            )
            known[origin] = listed(found, len(at))

    def document(self) -> dict[str, Any]:
        """All that is known, in values for JSON."""
        origins = ["mean", "base"] if self.with_base else ["mean"]
        return {
            "tasks": list(self.tasks),
            "shares": list(self.shares),
            "alignment_share": self.alignment,
            "origins": origins,
            "matrices": self.matrices,
            "mean_over_matrices": {x: self._means(x) for x in origins},
            "leaves": {
                name: self._leaf(found) for name, found in self.products.items()
            },
        }

    def _means(self, origin: str) -> dict[str, Any]:
        """Over the matrices that any task has changed."""
        found: dict[str, list[Any]] = defaultdict(list)
        changed = [x[origin] for x in self.matrices.values() if any(x[origin]["norm"])]
        for one in changed:
            for name in AVERAGED:
                found[name].append(np.array(one[name], float))
        means: dict[str, Any] = {"matrices": len(changed)}
        for name in AVERAGED:
            means[name] = mean_of(found[name]) if changed else None
        return means

    def _leaf(self, found: Products) -> dict[str, Any]:
        tasks, models = len(self.tasks), len(self.tasks) + self.with_base
        each = [combination(models, {t: 1.0}) for t in range(tasks)]
        mean = combination(models, dict.fromkeys(range(tasks), 1 / tasks))
        norms = [length(found, row) for row in each]
        scopes = [scope(found, row) for row in (*each, mean)]
        facts: dict[str, Any] = {
            "numbers": int(found[0, 0]),
            "norm": {"experts": norms, "merged": length(found, mean)},
            "norm_ratio": ratio(length(found, mean), norms),
            "scope": {
                part: {"experts": [s[i] for s in scopes[:-1]], "merged": scopes[-1][i]}
                for i, part in enumerate(("mean", "deviation"))
            },
            "mean": _vectors(found, [difference(row, mean) for row in each]),
        }
        if self.with_base:
            base = combination(models, {tasks: 1.0})
            own = _vectors(found, [difference(row, base) for row in each])
            own["norm_ratio"] = ratio(
                length(found, difference(mean, base)), own["norm"]
            )
            facts["base"] = own
            facts["norm"]["base"] = length(found, base)
        return plain(facts)


def _vectors(found: Products, rows: Sequence[Any]) -> dict[str, Any]:
    """Norms of task vectors and the cosines between them."""
    norms = [length(found, row) for row in rows]
    units = np.stack([r / n if n else 0 * r for r, n in zip(rows, norms, strict=True)])
    return {"norm": norms, "cosine": np.clip(units @ found @ units.T, -1, 1)}
