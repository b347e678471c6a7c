"""Parameters in recipes for mergekit: conditions on names, and values over the layers.

There every model has a weight of its own, which may be a number, a list of values over
the layers, or a list of conditions: the first whose `filter` is part of a tensor's name
speaks. Here they become one scale for each filter and one for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from centermerge_jax.yaml_files import Marked

Value = float | tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """One condition of a parameter.

    Attributes:
      filter: What has to be part of a tensor's name; None for any name.
      value: The parameter then: a number, or several over the layers.
    """

    filter: str | None
    value: Value


def given(entry: Marked) -> dict[str, Marked]:
    """The entries of a mapping; to mergekit an empty key is one that is not there."""
    return {
        key: item for key, item in entry.entries().items() if item.value is not None
    }


def cases(*settings: Marked) -> list[Case]:
    """The conditions of a parameter: of the first setting, of the next, and so on.

    Args:
      *settings: A model's own, and what holds for all models where no condition of the
        model's own speaks.

    Raises:
      ParameterError: A setting is neither a number nor a list of numbers or conditions.
    """
    found: list[Case] = []
    for setting in settings:
        for case in _cases(setting):
            found.append(case)
            if case.filter is None:  # whatever comes later never speaks
                return found
    return found


def scales(
    where: Marked,
    weights: Mapping[str, Sequence[Case]],
    factor: Sequence[Case],
    *,
    normalize: bool,
) -> dict[str | None, Any]:
    """The scale `weight * factor` for each filter in order, and last for the rest.

    Args:
      where: What errors are about.
      weights: The conditions of every task.
      factor: The conditions of a factor on all of them.
      normalize: Whether weights are divided by their sum.

    Returns:
      By filter, None for the rest: a mapping from task to number, or several numbers
      over the layers. A filter speaks where none before it does.

    Raises:
      ParameterError: No such scales mean the same.
    """
    lists = [*weights.values(), factor]
    ordered = [case.filter for conditions in lists for case in conditions]
    filters = [*dict.fromkeys(f for f in ordered if f is not None), None]
    found: dict[str | None, Any] = {}
    for i, condition in enumerate(filters):
        passed = set(filters[:i])
        own = {
            task: _speaking(where, conditions, condition, passed)
            for task, conditions in weights.items()
        }
        common = _speaking(where, factor, condition, passed)
        found[condition] = _product(where, own, common, normalize=normalize)
    return found


def _cases(setting: Marked) -> list[Case]:
    if not isinstance(setting.value, list):
        return [Case(None, float(setting.number()))]
    if not any(isinstance(item.value, dict) for item in setting.items()):
        return [Case(None, _numbers(setting))]
    return [_case(item) for item in setting.items()]


def _case(item: Marked) -> Case:
    keys = given(item)
    for key, entry in keys.items():
        if key not in ("filter", "value"):
            raise entry.unknown("key", key, ("filter", "value"))
    if "value" not in keys:
        raise item.wrong("a condition needs a 'value'")
    value = keys["value"]
    several = isinstance(value.value, list)
    condition = keys["filter"].text() if "filter" in keys else "*"
    return Case(
        None if condition == "*" else condition,
        _numbers(value) if several else float(value.number()),
    )


def _numbers(entry: Marked) -> tuple[float, ...]:
    return tuple(float(item.number()) for item in entry.items())


def _speaking(
    where: Marked,
    conditions: Sequence[Case],
    condition: str | None,
    passed: set[str | None],
) -> Value:
    """The value for names with `condition` and without any that has `passed`."""
    for case in conditions:
        if case.filter in (None, condition):
            return case.value
        if case.filter not in passed:
            raise where.wrong(
                f"a name may hold both {condition!r} and {case.filter!r}, and not all "
                "models ask for them in the same order: that cannot be said here"
            )
    said = "no filter matches" if condition is None else f"match {condition!r}"
    raise where.wrong(f"nothing is given for tensors that {said}: add a last value")


def _product(
    where: Marked, weights: Mapping[str, Value], factor: Value, *, normalize: bool
) -> Any:
    numbers = {task: x for task, x in weights.items() if not isinstance(x, tuple)}
    if len(numbers) == len(weights) and not isinstance(factor, tuple):
        total = sum(numbers.values()) if normalize else 1.0
        if abs(total) < 1e-8:  # where mergekit no longer divides
            raise where.wrong("the weights sum to zero and cannot be normalized")
        return {task: weight / total * factor for task, weight in numbers.items()}
    first, *others = weights.values()
    if normalize or any(other != first for other in others):
        raise where.wrong(
            "values over the layers can be said here only where they are the same for "
            "all models, without normalize"
        )
    if not isinstance(factor, tuple):
        first, factor = factor, first
    if isinstance(first, tuple) or not isinstance(factor, tuple):
        raise where.wrong("weight and lambda may not both be lists over the layers")
    return tuple(first * value for value in factor)
