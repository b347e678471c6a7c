"""All methods by name, with what the command line and tables need to know of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from centermerge_jax.methods.cart import cart
from centermerge_jax.methods.task_arithmetic import (
    task_arithmetic,
    truncated_task_arithmetic,
)
from centermerge_jax.methods.ties import ties, ties_statistics
from centermerge_jax.methods.weight_average import weight_average
from centermerge_jax.trees import Params

Scope = Literal["element", "leaf", "tree"]
"""How much of a tree a method has to see at once: single numbers of all models, whole
(joined) leaves, or everything. Leaves without a view are seen number by number by the
methods that take views."""


@dataclass(frozen=True)
class Method:
    """A merging method as callers see it that know only its name.

    Attributes:
      function: `function(experts[, base], **hyperparameters) -> params`.
      centered: Whether task vectors are taken around the mean: then two experts merge
        into their average.
      scope: How much of a tree it has to see at once.
      statistics: What it has to know of whole trees, where they need not be seen at
        once: `statistics(rows, **hyperparameters)` returns further arguments of the
        function; `rows()` goes once through the leaves of all experts and the base.
      passes: How often `statistics` calls `rows`.
    """

    function: Callable[..., Params]
    centered: bool = False
    scope: Scope = "leaf"
    statistics: Callable[..., Mapping[str, Any]] | None = None
    passes: int = 0

    @property
    def needs_base(self) -> bool:
        """Whether it takes the pretrained parameters as second argument."""
        return "base" in inspect.signature(self.function).parameters

    @property
    def hyperparameters(self) -> Mapping[str, inspect.Parameter]:
        """Its keyword-only parameters."""
        parameters = inspect.signature(self.function).parameters
        return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


METHODS: Mapping[str, Method] = {
    "cart": Method(cart, centered=True),
    "weight_average": Method(weight_average, scope="element"),
    "task_arithmetic": Method(task_arithmetic, scope="element"),
    "truncated_task_arithmetic": Method(truncated_task_arithmetic),
    "ties": Method(ties, scope="element", statistics=ties_statistics, passes=3),
}
