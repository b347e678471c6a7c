"""Checkpoints on disk, searched over: what `centermerge sweep` puts together.

The models are merged under the names that they have on disk, exactly as `merging` would
merge them, and the merged leaves are then read as a network of their family.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from centermerge_jax.checkpoints import Checkpoint, constant_buffers, non_finite
from centermerge_jax.convert import nested
from centermerge_jax.data.cache import Repeatable
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.errors import CheckpointError, ParameterError, listing
from centermerge_jax.evaluator import evaluate_heads
from centermerge_jax.model_inputs import open_experts, open_model
from centermerge_jax.models import families, heads
from centermerge_jax.named_models import network_settings
from centermerge_jax.planning import Plan, cast, plan
from centermerge_jax.progress import Report, silent
from centermerge_jax.recipe import Recipe
from centermerge_jax.settings import find_method, read_value
from centermerge_jax.sweeping import Evaluate, Setting
from centermerge_jax.task_evaluation import Features
from centermerge_jax.trees import Params, compute_dtype

_FIELDS = ("rank", "scale", "rest", "density")
"""Hyperparameters that are fields of a recipe; others are set by name."""


def read_grid(method: str, given: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Values of hyperparameters, from `NAME=VALUE,VALUE,...`.

    Args:
      method: Name of the method.
      given: One text for each hyperparameter; none means the grid of the method.

    Raises:
      ParameterError: The method has no such hyperparameter, or a value is none.

    Example:
      >>> read_grid("cart", ["rank=0.04,16", "scale=1,2"])
      {'rank': (0.04, 16), 'scale': (1.0, 2.0)}
    """
    known = find_method(method)
    if not given:
        return {name: tuple(values) for name, values in known.grid.items()}
    found: dict[str, tuple[Any, ...]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ParameterError(f"--grid {text}: expected NAME=VALUE,VALUE")
        if name not in known.own:
            raise ParameterError(
                f"--grid {text}: {method} has no {name!r}; it has "
                f"{', '.join(known.own) or 'none'}"
            )
        if name in found:
            raise ParameterError(f"--grid {name} is given twice")
        found[name] = tuple(_value(known, name, one) for one in values.split(","))
    return found


def _value(method: Any, name: str, text: str) -> Any:
    if name in ("rank", "scale", "density"):
        kinds = {"rank": int | float, "scale": float, "density": float}
        return read_value(name, text, kinds[name])
    return read_value(name, text, method.own[name].annotation)


def at(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe with the hyperparameters of a point.

    Example:
      >>> recipe = Recipe(experts=("a", "b"), method="wudi")
      >>> found = at(recipe, {"learning_rate": 1e-4, "scale": 1.0})
      >>> found.scale, found.set
      (1.0, ('learning_rate=0.0001',))
    """
    if "members" in setting:  # of a soup
        return _of_members(recipe, setting["members"])
    fields = {name: x for name, x in setting.items() if name in _FIELDS}
    others = [f"{name}={x}" for name, x in setting.items() if name not in _FIELDS]
    return dataclasses.replace(recipe, **fields, set=(*recipe.set, *others))


def _of_members(recipe: Recipe, members: Sequence[str]) -> Recipe:
    """The average of some experts of a recipe; of one, it as it is."""
    base = open_model(recipe, "base", recipe.base) if recipe.base else None
    paths = {n: model.path for n, model in open_experts(recipe, base).items()}
    some = tuple(f"{name}={paths[name]}" for name in members)
    # Merges are of two models at least; a model's average with itself is the model.
    twice = (*some, f"{members[0]} again={paths[members[0]]}")
    return dataclasses.replace(recipe, experts=some if len(some) > 1 else twice)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Checkpoints as arguments of `sweeping.sweep`.

    Attributes:
      todo: The plan of the first merge.
      experts: Leaves to merge, by expert.
      base: Those of the base, if the method needs it.
      fixed: Arguments of the method that no point changes.
      others: Leaves of the network that are not merged.
    """

    todo: Plan
    experts: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Any] | None
    fixed: Mapping[str, Any]
    others: Mapping[str, Any]

    def params(self, merged: Mapping[str, Any]) -> Params:
        """The network that merged leaves are the parameters of, without its head."""
        template = next(iter(self.todo.models.values()))
        where = f"the merge of {', '.join(self.experts)}"
        leaves = {**self.others, **{n: np.asarray(x) for n, x in merged.items()}}
        leaves |= {new: leaves[old] for new, old in template.tied.items()}
        settings = network_settings(template)
        family, prefix = families.detect(leaves, settings, where=where)
        ours = family.table.read(leaves, prefix=prefix, where=where)
        tree = nested({n: x for n, x in ours.items() if not n.startswith("extra/")})
        tree.pop("head", None)
        return tree


def read_candidates(
    recipe: Recipe,
    grid: Mapping[str, Sequence[Any]],
    *,
    progress: Report = silent,
) -> Candidates:
    """Reads all models into memory, after everything that headers tell is checked.

    Args:
      recipe: Models, method, and the hyperparameters that stay.
      grid: The others.
      progress: Told of every model.

    Raises:
      MergeError: As from `planning.plan` for any point of the grid; or a leaf is not
        finite.
    """
    if recipe.overrides or any(
        isinstance(x, tuple | Mapping) for x in (recipe.rank, recipe.scale)
    ):
        raise ParameterError("a search has one rank and one scale for all leaves")
    method = find_method(recipe.method)
    if taken := [n for n in grid if n in _FIELDS and getattr(recipe, n) is not None]:
        raise ParameterError(f"--{taken[0]} is given, and the grid has it too")
    first = {name: values[0] for name, values in grid.items()}
    todo = plan(at(recipe, first | _some_task(recipe, method)))
    for name, values in grid.items():
        for value in values[1:]:  # what headers and methods refuse is refused now
            plan(at(recipe, {**first, **_some_task(recipe, method), name: value}))
    trees: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for i, (name, model) in enumerate(todo.models.items()):
        progress(f"reading {name}", i / len(todo.models))
        trees[name] = model.read_all(list(todo.leaves.merged))
    masks = constant_buffers(trees.values())
    carried = {mask: next(iter(trees.values()))[mask] for mask in masks}
    for name, tree in trees.items():
        rest = {leaf: x for leaf, x in tree.items() if leaf not in masks}
        problems += non_finite(name, rest)
        wide = recipe.dtype and compute_dtype(np.dtype(recipe.dtype))
        trees[name] = cast(rest, wide) if wide else rest
    if problems:
        raise CheckpointError(listing("{n} non-finite leaf name{s}", problems))
    base = trees.pop("base", None)
    fixed = {n: x for n, x in todo.hyperparameters.items() if n not in first}
    fixed.pop("task", None)
    fixed |= _own_fields(recipe, method)
    if todo.views:
        fixed["views"] = {n: view for n, view in todo.views.items() if n not in masks}
    if method.data:
        fixed[method.data_argument] = {
            name: one.read() for name, one in todo.statistics.items()
        }
    return Candidates(todo, trees, base, fixed, carried | _unmerged(todo))


def _own_fields(recipe: Recipe, method: Any) -> dict[str, Any]:
    """Rank and scale, where they stay."""
    return {
        name: getattr(recipe, name)
        for name in ("rank", "scale")
        if name in method.own and getattr(recipe, name) is not None
    }


def _some_task(recipe: Recipe, method: Any) -> dict[str, str]:
    """A task, for plans of methods that make one task's model."""
    given = any(text.startswith("task=") for text in recipe.set)
    if not method.needs_task or given:
        return {}
    named = recipe.experts[0].partition("=")
    return {"task": named[0] if named[1] else _name_of(recipe.experts[0])}


def _name_of(path: str) -> str:
    from centermerge_jax.checkpoints import open_checkpoint

    return open_checkpoint(path).name


def _unmerged(todo: Plan) -> dict[str, Any]:
    """Leaves of the network that are not merged: kept ones, and those left out."""
    first: Checkpoint = next(iter(todo.models.values()))
    left = [name for name in todo.leaves.left_out if name in first.leaves]
    found = first.read_all(left) if left else {}
    if todo.keeper is not None and todo.leaves.kept:
        found |= todo.keeper.read_all(list(todo.leaves.kept))
    return found


def evaluator(
    candidates: Candidates,
    features: Mapping[int, Features],
    tasks: Sequence[TaskSpec],
    task_heads: Mapping[str, Any],
    inputs: Mapping[str, Repeatable],
) -> Evaluate:
    """Scores of merged leaves on tasks; several models at once in one program.

    Args:
      candidates: What is merged.
      features: Of an `Encoder`, from which each head takes those of its length.
      tasks: The tasks.
      task_heads: Head of each, for `heads.apply`.
      inputs: Batches of each.

    Raises:
      ParameterError: A method that makes one task's model was given experts that are
        not called as the tasks are.
    """
    by_name = {task.name: task for task in tasks}
    together = {length: _side_by_side(run) for length, run in features.items()}

    def evaluate(
        models: Sequence[Params], only: Sequence[str]
    ) -> list[dict[str, float]]:
        if len(only) == len(candidates.experts):
            chosen = list(by_name)
        elif unknown := [name for name in only if name not in by_name]:
            raise ParameterError(
                f"{unknown[0]} is an expert but no task: call experts as tasks are "
                f"({', '.join(by_name)})"
            )
        else:
            chosen = list(only)
        stacked = _stacked([candidates.params(model) for model in models])
        scores: list[dict[str, float]] = [{} for _ in models]
        for name in chosen:
            task, head = by_name[name], task_heads[name]
            results = evaluate_heads(
                together[heads.length(head)],
                stacked,
                inputs[name],
                {f"model {i}": {"head": head, "at": i} for i in range(len(models))},
                apply_head=_head_of_one,
                name=name,
                classes=task.classes,
                metric=task.metric,
            )
            for own, result in zip(scores, results.values(), strict=True):
                own[name] = float(result.answers.score)
        return scores

    return evaluate


def _stacked(models: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *models)


def _side_by_side(run: Features) -> Callable[[Params, Any], Array]:
    """Features `[items, models, d]` of stacked models."""
    return jax.vmap(run, in_axes=(0, None), out_axes=1)


def _head_of_one(head: Mapping[str, Any], features: Array) -> Array:
    own = jnp.take(features, head["at"], axis=1)
    return heads.apply(head["head"], own)
