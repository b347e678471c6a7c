"""Recipes in YAML files: `centermerge merge recipe.yaml`.

A file of our own form has the fields of `Recipe` as keys; one that was written for
mergekit (it has a `merge_method`) goes to `mergekit`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import SOLVERS
from centermerge_jax.matrixwise import RESTS
from centermerge_jax.mergekit import from_mergekit, is_mergekit
from centermerge_jax.methods import METHODS
from centermerge_jax.overrides import rank_gradient
from centermerge_jax.ranks import check_rank
from centermerge_jax.recipe import DTYPES, Override, Recipe, parse_size
from centermerge_jax.yaml_files import Marked, Problems, read_yaml

_FORMATS = ("hub", "orbax", "safetensors")
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@.+)?")
_FILES = (".safetensors", ".json", ".msgpack", ".npz", ".bin", ".pt", ".pth", ".ckpt")


def load_recipe(path: str | Path) -> tuple[Recipe, list[str]]:
    """Reads a recipe file.

    Relative paths in it start at its own folder, but `output` at the current one, like
    the flag. A checkpoint may also be a model on the hub, ORGANISATION/MODEL, if there
    is no folder ORGANISATION beside the file. In a recipe written for mergekit paths
    start at the current folder, as they do there.

    Args:
      path: A YAML file with the fields of `Recipe` as keys, or one for mergekit.

    Returns:
      The recipe, and notes on what is different here than where it was written for.

    Raises:
      CheckpointError: The file cannot be read.
      ParameterError: Listing everything that is wrong with it, each with its line.
    """
    document = read_yaml(path)
    if is_mergekit(document):
        return from_mergekit(document)
    return _own_recipe(document, Path(path).parent), []


def _own_recipe(document: Marked, folder: Path) -> Recipe:
    problems = Problems()
    entries = document.entries()
    readers = _readers(folder, _tasks(entries.get("experts")), problems)
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        with problems.gathered():
            if key not in readers:
                raise entry.unknown("key", key, readers)
            values[key] = readers[key](entry)
    with problems.gathered():
        if "experts" not in entries:
            raise document.wrong("key 'experts': missing; which models are merged?")
    problems.check()
    return Recipe(**values)


def _tasks(experts: Marked | None) -> tuple[str, ...] | None:
    """The names of the tasks, where the file says them."""
    if experts is not None and isinstance(experts.value, dict):
        return tuple(experts.value)
    return None


def _readers(
    folder: Path, tasks: tuple[str, ...] | None, problems: Problems
) -> Mapping[str, Callable[[Marked], Any]]:
    """For every key, what makes the field of a recipe from it."""
    return {
        "method": lambda entry: _choice(entry, METHODS),
        "base": lambda entry: _place(entry.text(), folder),
        "experts": lambda entry: _experts(entry, folder),
        "rank": _rank,
        "scale": lambda entry: _scale(entry, tasks),
        "weights": lambda entry: _by_task(entry, tasks),
        "overrides": lambda entry: _overrides(entry, tasks, problems),
        "density": lambda entry: float(entry.number()),
        "set": _set,
        "rest": lambda entry: _choice(entry, RESTS),
        "views": lambda entry: _views(entry.text(), folder),
        "solver": lambda entry: _choice(entry, SOLVERS),
        "dtype": lambda entry: _choice(entry, DTYPES),
        "path": Marked.text,
        "names": lambda entry: _names(entry, tasks, folder),
        "statistics": lambda entry: _files(entry, tasks, folder),
        "exclude": _patterns,
        "keep": _patterns,
        "keep_from": Marked.text,
        "memory": _memory,
        "output": Marked.text,
        "format": lambda entry: _choice(entry, _FORMATS),
    }


def _set(entry: Marked) -> tuple[str, ...]:
    """`NAME=VALUE` for each further hyperparameter, as on the command line."""
    found = []
    for name, item in entry.entries().items():
        if not isinstance(item.value, str | int | float):
            raise item.wrong(f"{name} is a number or a word")
        found.append(f"{name}={item.value}")
    return tuple(found)


def _choice(entry: Marked, choices: Iterable[str]) -> str:
    value = entry.text()
    if value not in choices:
        raise entry.unknown(f"choice as {value!r}", value, choices)
    return value


def _place(given: str, folder: Path) -> str:
    """The path as seen from the current folder, or the name of a model on a hub."""
    if given.startswith("hf:"):
        return given
    path = folder / Path(given).expanduser()
    if _HUB.fullmatch(given) and not (given.endswith(_FILES) or path.parent.exists()):
        # Said outright: from the current folder the name could be a path.
        return f"hf:{given}"
    return str(path)


def _views(given: str, folder: Path) -> str:
    """A file of rules beside the recipe, or the name of a preset."""
    return str(folder / given) if given.endswith(".toml") else given


def _experts(entry: Marked, folder: Path) -> tuple[str, ...]:
    """`NAME=PATH` or `PATH` for each, as on the command line."""
    if not isinstance(entry.value, dict):
        paths = [(item, item.text()) for item in entry.items()]
        for item, path in paths:
            if "=" in path:
                raise item.wrong(f"{path!r} has a '=': give it a name, NAME: {path}")
        return tuple(_place(path, folder) for _, path in paths)
    experts = entry.entries()
    for name, item in experts.items():
        if not name or name == "base" or set("/=") & set(name):
            raise item.wrong("a name is not 'base' or empty and has no '/' and no '='")
    return tuple(f"{n}={_place(item.text(), folder)}" for n, item in experts.items())


def _rank(entry: Marked) -> int | float | tuple[int | float, ...]:
    several = isinstance(entry.value, list)
    numbers = [item.number() for item in (entry.items() if several else [entry])]
    try:
        return rank_gradient(numbers) if several else check_rank(numbers[0])
    except ParameterError as error:
        raise entry.wrong(str(error)) from None


def _scale(
    entry: Marked, tasks: tuple[str, ...] | None
) -> float | Mapping[str, float] | tuple[float, ...]:
    if isinstance(entry.value, dict):
        return _by_task(entry, tasks)
    if isinstance(entry.value, list):
        return tuple(float(item.number()) for item in entry.items())
    return float(entry.number())


def _by_task(entry: Marked, tasks: tuple[str, ...] | None) -> dict[str, float]:
    """One number for each task."""
    entries = entry.entries()
    if tasks is not None:
        for name, item in entries.items():
            if name not in tasks:
                raise item.unknown("expert", name, tasks)
        if missing := [task for task in tasks if task not in entries]:
            raise entry.wrong(f"has no number for {', '.join(missing)}")
    return {name: float(item.number()) for name, item in entries.items()}


def _overrides(
    entry: Marked, tasks: tuple[str, ...] | None, problems: Problems
) -> tuple[Override, ...]:
    overrides = []
    for item in entry.items():
        with problems.gathered():
            overrides.append(_override(item, tasks))
    return tuple(overrides)


def _override(item: Marked, tasks: tuple[str, ...] | None) -> Override:
    readers = {
        "match": Marked.text,
        "rank": _rank,
        "scale": lambda entry: _scale(entry, tasks),
    }
    values: dict[str, Any] = {}
    for key, entry in item.entries().items():
        if key not in readers:
            raise entry.unknown("key", key, readers)
        values[key] = readers[key](entry)
    if "match" not in values:
        raise item.wrong("an override needs a 'match', a pattern for names of leaves")
    try:
        return Override(**values)
    except ParameterError as error:
        raise item.wrong(str(error)) from None


def _names(
    entry: Marked, tasks: tuple[str, ...] | None, folder: Path
) -> tuple[str, ...]:
    """`MODEL=FILE` for each, as on the command line."""
    return _files(entry, None if tasks is None else (*tasks, "base"), folder)


def _files(
    entry: Marked, known: tuple[str, ...] | None, folder: Path
) -> tuple[str, ...]:
    """`NAME=FILE` for each of the models that are known."""
    for model, item in entry.entries().items():
        if known is not None and model not in known:
            raise item.unknown("model", model, known)
    return tuple(
        f"{model}={folder / Path(item.text()).expanduser()}"
        for model, item in entry.entries().items()
    )


def _patterns(entry: Marked) -> tuple[str, ...]:
    for item in entry.items():
        try:
            re.compile(item.text())
        except re.error as error:
            raise item.wrong(f"{item.text()!r}: {error}") from None
    return tuple(item.text() for item in entry.items())


def _memory(entry: Marked) -> str:
    said = str(entry.value) if type(entry.value) is int else entry.text()
    try:
        parse_size(said)
    except ParameterError as error:
        raise entry.wrong(str(error)) from None
    return said
