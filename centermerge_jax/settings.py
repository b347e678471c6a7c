"""The hyperparameters of a recipe's method, for all leaves and for each."""

import contextlib
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import jax
import numpy as np

from centermerge_jax.errors import ParameterError, listing
from centermerge_jax.linalg import SOLVERS
from centermerge_jax.magnitudes import check_share
from centermerge_jax.matrixwise import RESTS
from centermerge_jax.methods import METHODS, Method
from centermerge_jax.overrides import leaf_settings
from centermerge_jax.ranks import check_fits, check_rank
from centermerge_jax.recipe import DTYPES, Recipe
from centermerge_jax.trees import is_merged
from centermerge_jax.views import MatrixView, Table, load

_BY_LEAF = ("rank", "scale")
"""Hyperparameters that may differ from leaf to leaf."""

_FLAGS = ("rest", "weights", "density")
"""Hyperparameters with a field of their own; others are given by `set`."""

_GENERAL = ("views", "solver", "dtype")
"""Hyperparameters that say how, not what: harmless to methods that do not take them."""


SOUP = "greedy_soup"
"""A method that takes an evaluation, and so is a search."""


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
      ParameterError: There is none.
    """
    if name == SOUP:
        raise ParameterError(
            f"{SOUP} chooses experts by their scores on validation data: centermerge "
            f"sweep --method {SOUP}"
        )
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(METHODS)
        raise ParameterError(f"no method is called {name!r}{hint} ({known})")
    return METHODS[name]


def hyperparameters(recipe: Recipe, method: Method) -> dict[str, Any]:
    """The keyword arguments that all leaves share, from the fields of the same name.

    Raises:
      ParameterError: The method takes no such argument, needs one that is not given, or
        it is out of range.
    """
    values: dict[str, Any] = {}
    for name in (*_BY_LEAF, *_FLAGS, *_GENERAL):
        value = getattr(recipe, name)
        parameter = method.hyperparameters.get(name)
        if parameter is None:
            if value is not None and name not in _GENERAL:
                raise ParameterError(f"{recipe.method} takes no --{name}")
        elif value is not None:
            values[name] = value
        elif parameter.default is parameter.empty and not _all_overridden(recipe, name):
            raise ParameterError(f"{recipe.method} needs --{name}")
    values |= _set(recipe, method)
    for name, choices in (("rest", RESTS), ("solver", SOLVERS), ("dtype", DTYPES)):
        if values.get(name, choices[0]) not in choices:
            raise ParameterError(
                f"--{name} is one of {', '.join(choices)}; got {values[name]!r}"
            )
    if "density" in values:
        check_share(values["density"])
    if "views" in method.hyperparameters:
        values["views"] = load(recipe.views or "auto")
    if recipe.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ParameterError(
            "--dtype float64 needs JAX_ENABLE_X64=1 in the environment"
        )
    if recipe.dtype is not None:
        values["dtype"] = np.dtype(recipe.dtype)
    return {name: value for name, value in values.items() if name not in _BY_LEAF}


def _set(recipe: Recipe, method: Method) -> dict[str, Any]:
    """What the recipe sets beside the fields, in the types of the function."""
    fields = (*_BY_LEAF, *_FLAGS)
    known = {name: p for name, p in method.own.items() if name not in fields}
    values = {}
    for text in recipe.set:
        name, given, value = text.partition("=")
        if not given:
            raise ParameterError(f"--set {text}: expected NAME=VALUE")
        if name in fields:
            raise ParameterError(f"--set {text}: it has a flag of its own, --{name}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ParameterError(
                f"--set {text}: {recipe.method} has no {name!r}{hint} (it has "
                f"{', '.join(known) or 'none to set'})"
            )
        if name in values:
            raise ParameterError(f"--set {name} is given twice")
        values[name] = read_value(name, value, known[name].annotation)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in values:
            raise ParameterError(f"{recipe.method} needs --set {name}=...")
    return values


def read_value(name: str, text: str, kind: Any) -> Any:
    """A value that was written as text, in the type that a parameter is annotated with.

    Raises:
      ParameterError: It is none of that type.

    Example:
      >>> read_value("bits", "3", int | None), read_value("common", "1", float)
      (3, 1.0)
    """
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ParameterError(f"{name} is one of {choices}; got {text!r}")
        return text
    kinds = get_args(kind) or (kind,)
    if str in kinds:
        return text
    readers: tuple[type, ...] = (int, float)  # as it is written, if either will do
    if float not in kinds and int in kinds:
        readers = (int,)
    elif int not in kinds and float in kinds:
        readers = (float,)
    for read in readers:
        with contextlib.suppress(ValueError):
            return read(text)
    wanted = "a whole number" if readers == (int,) else "a number"
    raise ParameterError(f"{name} is {wanted}; got {text!r}")


def try_out(
    recipe: Recipe, method: Method, values: Mapping[str, Any], tasks: Sequence[str]
) -> None:
    """Calls the method on matrices of four numbers: what it refuses is refused now.

    Args:
      recipe: Nothing is done unless it sets what only the method itself can check.
      method: Its method.
      values: What `hyperparameters` gave.
      tasks: Names of the experts.

    Raises:
      ParameterError: A hyperparameter is out of range.
    """
    if not recipe.set and recipe.density is None:
        return
    model = {f"layers/{i}/kernel": np.eye(2, dtype=np.float32) for i in (0, 1)}
    experts = dict.fromkeys(tasks, model)
    taken = method.hyperparameters
    told = {name: x for name, x in values.items() if name in taken and name != "views"}
    told |= {name: 1.0 for name in _BY_LEAF if name in taken}
    if method.data:
        told[method.data_argument] = dict.fromkeys(tasks, model)
    method.function(experts, *([model] if method.needs_base else []), **told)


def _all_overridden(recipe: Recipe, name: str) -> bool:
    return any(getattr(override, name) is not None for override in recipe.overrides)


def leaf_hyperparameters(
    recipe: Recipe,
    method: Method,
    header: Mapping[str, Any],
    table: Table,
    tasks: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Rank and scale of each leaf, as far as the method takes them.

    Args:
      recipe: Its `rank`, `scale` and `overrides` are looked at.
      method: Its method.
      header: The leaves to merge, of which values are not looked at.
      table: Their views.
      tasks: Names of the experts.

    Raises:
      ParameterError: One is missing or out of range, or an override has no effect.
    """
    matrices = {name: view for name, view in table.items() if view is not None}
    floating = [name for name, leaf in header.items() if is_merged(leaf)]
    found = leaf_settings(recipe, floating, matrices=list(matrices))
    taken = method.hyperparameters
    needed = [name for name in _BY_LEAF if name in taken]
    required = [name for name in needed if taken[name].default is taken[name].empty]
    missing = []
    for leaf, values in found.items():
        for key, value in list(values.items()):
            if value is not None and key not in needed:
                raise ParameterError(f"{recipe.method} takes no {key} (for {leaf})")
            if value is not None:
                _check_setting(key, value, leaf, tasks)
                if key == "scale" and not isinstance(value, Mapping):
                    values[key] = float(value)  # 1 is 1.0
            elif key in required and (leaf in matrices or key == "scale"):
                missing.append(f"{leaf}: {key}")
            else:
                del values[key]
    if missing:
        raise ParameterError(listing("{n} hyperparameter{s} missing", missing))
    if "rank" in needed:
        _check_ranks(matrices, found)
    # What is carried goes along with some leaf that is merged.
    first = next(iter(found.values()), {})
    some = {key: value for key, value in first.items() if key != "rank"}
    return {name: found.get(name, some) for name in header}


def _check_setting(key: str, value: Any, leaf: str, tasks: Sequence[str]) -> None:
    if key == "rank":
        check_rank(value)
    elif isinstance(value, Mapping):
        if set(value) != set(tasks):
            raise ParameterError(
                f"scale for {leaf} names {', '.join(value)}; the tasks are "
                f"{', '.join(tasks)}"
            )
        for number in value.values():
            _check_setting(key, number, leaf, tasks)
    elif not math.isfinite(value):
        raise ParameterError(f"--scale is not finite: {value}")


def _check_ranks(
    matrices: Mapping[str, MatrixView], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks every rank against the matrices that it is for."""
    sizes: dict[Any, dict[str, int]] = {}
    for name, view in matrices.items():
        rank = settings[name].get("rank", 1)  # a method may know one by itself
        sizes.setdefault(rank, {})[name] = view.size
    for rank, found in sizes.items() or [(1, {})]:
        check_fits(rank, found)
