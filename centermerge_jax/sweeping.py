"""Searching the hyperparameters of a method: merge, evaluate, choose.

What merges have in common is computed once. Where methods truncate task vectors, all
ranks are slices of one factorisation; where they are affine in the scale, two merges
tell the others. So a point of a search costs little more than its evaluation.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from centermerge_jax.errors import ParameterError
from centermerge_jax.methods import METHODS, Method
from centermerge_jax.methods.factored import FACTORED, Factored
from centermerge_jax.methods.soups import greedy_members
from centermerge_jax.methods.weight_average import weight_average
from centermerge_jax.progress import Report, silent
from centermerge_jax.task_vectors import Experts
from centermerge_jax.transforms import truncate
from centermerge_jax.trees import Params, is_merged, named_experts

Setting = Mapping[str, Any]
"""Hyperparameters by name."""

Scores = Mapping[str, float]
"""Of each task, higher is better."""

Evaluate = Callable[[Sequence[Params], Sequence[str]], Sequence[Scores]]
"""Scores of some merged models on tasks: on all of them, or on the one whose model each
of these is."""

Search = Literal["grid", "successive"]


@dataclass(frozen=True)
class Point:
    """A merge that was evaluated.

    Attributes:
      setting: Its hyperparameters.
      scores: Of each task.
      merge_seconds: Time of merging; the first of several that share work has it all.
      evaluate_seconds: Time of evaluating, its share of a batch.
    """

    setting: Setting
    scores: Scores
    merge_seconds: float
    evaluate_seconds: float

    @property
    def mean(self) -> float:
        """Mean over tasks: what the choice is by."""
        return float(np.mean(list(self.scores.values())))


def sweep(
    method: str,
    experts: Experts,
    base: Params | None = None,
    *,
    evaluate: Evaluate,
    grid: Mapping[str, Sequence[Any]] | None = None,
    search: Search = "grid",
    patience: int | None = None,
    batch: int = 1,
    known: Sequence[Point] = (),
    keep: Callable[[Point], None] | None = None,
    progress: Report = silent,
    **fixed: Any,
) -> list[Point]:
    """Merges and evaluates at several settings of a method's hyperparameters.

    Args:
      method: Its name in `cm.METHODS`.
      experts: Fine-tuned parameters of all experts.
      base: The parameters that they were fine-tuned from, if the method needs them.
      evaluate: Scores of merged models, on validation data: see `Evaluate`. Models that
        are evaluated together come together.
      grid: Values of each hyperparameter, in the order in which they are tried; by
        default those of the method in `cm.METHODS`.
      search: `grid` tries all combinations; `successive` one hyperparameter after the
        other, the others at their best so far, at first in the middle of their values,
        until nothing changes.
      patience: Leave the rest of a row, which is the values of the last hyperparameter
        (of the one at work) in order, once so many in succession were not better than
        the best of that row.
      batch: How many merged models are evaluated together, and held at a time.
      known: Points of an earlier search, which are not computed again.
      keep: Given every new point as soon as it is known.
      progress: Told the setting and the share that is done.
      **fixed: Further arguments of the method.

    Returns:
      The points in the order in which they were tried; `best` chooses one.

    Raises:
      ParameterError: The method has no such hyperparameter, there is no value of one,
        or a number is out of range.
      MergeError: As from the method.

    Example:
      >>> experts = [{"w": np.float32([1, 3])}, {"w": np.float32([2, 1])}]
      >>> base = {"w": np.float32([1, 1])}
      >>> def evaluate(models, tasks):
      ...     far = [float(abs(x["w"] - np.float32([1.5, 2])).max()) for x in models]
      ...     return [dict.fromkeys(tasks, -x) for x in far]
      >>> grid = {"scale": (0.2, 0.5, 0.8)}
      >>> points = sweep(
      ...     "task_arithmetic", experts, base, evaluate=evaluate, grid=grid
      ... )
      >>> best(points).setting
      {'scale': 0.5}
    """
    chosen = _checked(method, experts, base, grid, search, patience, batch, fixed)
    tasks = tuple(named_experts(experts))
    points: dict[str, Point] = {}
    before = {_key(point.setting): point for point in known}
    merges = merger(method, experts, base, grid=chosen, **fixed)
    alone = METHODS[method].needs_task and "task" not in fixed

    def run(settings: Sequence[Setting]) -> list[Point]:
        todo = [s for s in settings if _key(s) not in points | before]
        for point in _evaluated(merges, todo, evaluate, tasks, alone=alone):
            before[_key(point.setting)] = point
            if keep is not None:
                keep(point)
        points.update((_key(s), before[_key(s)]) for s in settings)
        last = settings[-1]
        share = len(points) / max(len(points), _most(chosen, search))
        progress(f"{method} {describe(last)}: {points[_key(last)].mean:.4f}", share)
        return [points[_key(s)] for s in settings]

    if search == "successive":
        _successive(chosen, run, batch=batch, patience=patience)
    else:
        for row in _grid(chosen):
            _along(row, run, batch=batch, patience=patience)
    return list(points.values())


def soup(
    experts: Experts,
    *,
    evaluate: Evaluate,
    known: Sequence[Point] = (),
    keep: Callable[[Point], None] | None = None,
    progress: Report = silent,
) -> tuple[list[Point], Point]:
    """The search of a greedy soup: which experts are averaged.

    Args:
      experts: Fine-tuned parameters of all experts.
      evaluate: As for `sweep`.
      known: As for `sweep`.
      keep: As for `sweep`.
      progress: As for `sweep`.

    Returns:
      Every average that was evaluated, its `members` being the setting; and the one
      that is the soup, which need not be the first with the highest mean.

    References:
      Wortsman et al., "Model soups", 2022, arXiv:2203.05482, recipe 1.
    """
    trees = named_experts(experts)
    before = {_key(point.setting): point for point in known}
    points: dict[str, Point] = {}
    total = 2 * len(trees) - 1

    def merged(members: Sequence[str]) -> Params:
        return weight_average([trees[name] for name in members])

    def score(members: tuple[str, ...]) -> float:
        setting = {"members": list(members)}
        key = _key(setting)
        if key not in before:
            (before[key],) = _evaluated(
                merged, [setting], evaluate, tuple(trees), alone=False
            )
            if keep is not None:
                keep(before[key])
        points[key] = before[key]
        progress(f"soup of {', '.join(members)}", len(points) / total)
        return points[key].mean

    members = greedy_members(tuple(trees), score)
    return list(points.values()), points[_key({"members": list(members)})]


def best(points: Sequence[Point]) -> Point:
    """The point with the highest mean; of equal ones the first.

    Raises:
      ParameterError: There is none.
    """
    if not points:
        raise ParameterError("no setting was evaluated, so none is best")
    return max(points, key=lambda point: point.mean)


def describe(setting: Setting) -> str:
    """A setting in words.

    Example:
      >>> describe({"rank": 0.08, "scale": 1.5})
      'rank 0.08, scale 1.5'
    """
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def merger(
    method: str,
    experts: Experts,
    base: Params | None = None,
    *,
    grid: Mapping[str, Sequence[Any]],
    **fixed: Any,
) -> Callable[..., Params]:
    """Merges by one method of the same experts, which share what they can.

    Args:
      method: Its name in `cm.METHODS`.
      experts: Fine-tuned parameters of all experts.
      base: The pretrained parameters, if the method needs them.
      grid: All values of the hyperparameters that will be asked for.
      **fixed: Arguments that stay.

    Returns:
      `merged(**setting)`: to rounding what the method itself gives. Ask for settings
      that differ in the scale alone one after the other.
    """
    known = METHODS[method]
    given = (experts, base) if known.needs_base else (experts,)
    # What else decides on directions is known to whole merges alone.
    plain = fixed.keys() <= {"views", "solver", "memory", "rest", "dtype"}
    if method in FACTORED and set(grid) == {"rank", "scale"} and plain:
        return _from_factors(FACTORED[method], given, grid["rank"], fixed)
    direct = _direct(known, given, fixed)
    if known.affine and len(set(grid.get("scale", ()))) > 2:
        return _along_scales(direct, known, given, grid["scale"], fixed)
    return direct


def _direct(
    method: Method, given: Sequence[Any], fixed: Mapping[str, Any]
) -> Callable[..., Params]:
    return lambda **setting: method.function(*given, **{**fixed, **setting})


def _from_factors(
    method: Factored,
    given: Sequence[Any],
    ranks: Sequence[Any],
    fixed: Mapping[str, Any],
) -> Callable[..., Params]:
    """Slices of one factorisation, made when the first is asked for."""
    how = {n: fixed[n] for n in ("views", "solver", "memory") if n in fixed}
    rest = {n: value for n, value in fixed.items() if n not in how}
    alike = {type(rank) for rank in ranks} in ({float}, {int})
    largest = max(ranks) if alike else 1.0
    factors: list[Any] = []
    kept: dict[str, Any] = {}

    def merged(*, rank: Any, scale: Any) -> Params:
        if not factors:
            vectors = method.vectors(*given)
            factors.append(truncate(vectors, rank=largest, donate=True, **how))
        if _key({"rank": rank}) not in kept:
            kept.clear()
            kept[_key({"rank": rank})] = truncate(factors[0], rank=rank)
        (own,) = kept.values()
        return method.merged(own, scale=scale, **rest)

    return merged


def _along_scales(
    direct: Callable[..., Params],
    method: Method,
    given: Sequence[Any],
    scales: Sequence[float],
    fixed: Mapping[str, Any],
) -> Callable[..., Params]:
    """On the line between the merges at the smallest and the largest scale."""
    low, high = min(scales), max(scales)
    first = next(iter(named_experts(given[0]).values()))
    wide = {"dtype": "float32"} if "dtype" in method.hyperparameters else {}
    dtype, ends = fixed.get("dtype"), {}

    def merged(*, scale: float, **others: Any) -> Params:
        key = _key(others)
        if key not in ends:
            ends.clear()
            ends[key] = [direct(scale=x, **others, **wide) for x in (low, high)]
        share = (scale - low) / (high - low)

        def between(a: Any, b: Any, like: Any) -> Any:
            if not is_merged(like):
                return a
            a, b = jnp.asarray(a), jnp.asarray(b)
            return (a + jnp.asarray(share, a.dtype) * (b - a)).astype(
                like.dtype if dtype is None else dtype
            )

        return jax.tree.map(between, *ends[key], first)

    return merged


def _evaluated(
    merges: Callable[..., Params],
    settings: Sequence[Setting],
    evaluate: Evaluate,
    tasks: Sequence[str],
    *,
    alone: bool,
) -> Iterator[Point]:
    """Points of settings that are evaluated together, task by task where need be."""
    if not settings:
        return
    scores: list[dict[str, float]] = [{} for _ in settings]
    merging = [0.0] * len(settings)
    evaluating = 0.0
    for some in [(task,) for task in tasks] if alone else [tuple(tasks)]:
        told = {"task": some[0]} if alone else {}
        models = []
        for i, setting in enumerate(settings):
            began = time.perf_counter()
            models.append(jax.block_until_ready(merges(**setting, **told)))
            merging[i] += time.perf_counter() - began
        began = time.perf_counter()
        for own, found in zip(scores, evaluate(models, some), strict=True):
            own.update(found)
        evaluating += time.perf_counter() - began
    share = evaluating / len(settings)
    for setting, own, seconds in zip(settings, scores, merging, strict=True):
        yield Point(dict(setting), own, seconds, share)


Run = Callable[[Sequence[Setting]], list[Point]]


def _grid(values: Mapping[str, Sequence[Any]]) -> Iterator[list[Setting]]:
    """Rows: all values of the last hyperparameter, for all of the others."""
    *outer, last = values or {"": ()}
    if not values:
        yield [{}]
        return
    for others in itertools.product(*(values[name] for name in outer)):
        told = dict(zip(outer, others, strict=True))
        yield [{**told, last: value} for value in values[last]]


def _along(
    row: Sequence[Setting], run: Run, *, batch: int, patience: int | None
) -> list[Point]:
    """The points of a row, as far as patience goes."""
    found: list[Point] = []
    for start in range(0, len(row), batch):
        found += run(row[start : start + batch])
        top = max(range(len(found)), key=lambda i: found[i].mean)
        if patience is not None and len(found) - 1 - top >= patience:
            break
    return found


def _successive(
    values: Mapping[str, Sequence[Any]], run: Run, *, batch: int, patience: int | None
) -> None:
    """One hyperparameter after the other, until a round changes nothing."""
    at = {name: some[len(some) // 2] for name, some in values.items()}
    if not values:
        run([at])
    before = None
    while at != before:
        before = dict(at)
        for name, some in values.items():
            row = [{**at, name: value} for value in some]
            found = _along(row, run, batch=batch, patience=patience)
            at[name] = best(found).setting[name]


def _most(values: Mapping[str, Sequence[Any]], search: Search) -> int:
    """About how many points there will be."""
    sizes = [len(some) for some in values.values()]
    return sum(sizes) if search == "successive" else int(np.prod(sizes))


def _checked(
    method: str,
    experts: Experts,
    base: Params | None,
    grid: Mapping[str, Sequence[Any]] | None,
    search: str,
    patience: int | None,
    batch: int,
    fixed: Mapping[str, Any],
) -> dict[str, tuple[Any, ...]]:
    """The grid, after everything that can be wrong was looked at."""
    if method not in METHODS:
        raise ParameterError(f"no method is called {method!r}")
    known = METHODS[method]
    if known.needs_base and base is None:
        raise ParameterError(f"{method} needs the pretrained parameters")
    chosen = {
        name: tuple(some)
        for name, some in (known.grid if grid is None else grid).items()
        if grid is not None or name not in fixed
    }
    for name, some in chosen.items():
        if name not in known.own:
            raise ParameterError(
                f"{method} has no {name!r}; it has {', '.join(known.own) or 'none'}"
            )
        if not some:
            raise ParameterError(f"no value is given for {name}")
        if name in fixed:
            raise ParameterError(f"{name} is in the grid and fixed")
    if search not in ("grid", "successive"):
        raise ParameterError(f"search is grid or successive; got {search!r}")
    for name, number in (("patience", patience), ("batch", batch)):
        if number is not None and number < 1:
            raise ParameterError(f"{name} is at least 1; got {number}")
    named_experts(experts)
    return chosen


def _key(setting: Setting) -> str:
    """What two settings have in common if they are the same."""
    return json.dumps(setting, sort_keys=True, default=str)
