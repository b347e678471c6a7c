"""The models that a recipe names, opened."""

from collections.abc import Iterator
from pathlib import Path

from centermerge_jax.checkpoints import (
    Checkpoint,
    is_adapter,
    load_name_map,
    locate,
    open_adapter,
    open_checkpoint,
    refuse_quantised,
    rename,
)
from centermerge_jax.errors import ParameterError
from centermerge_jax.methods import METHODS
from centermerge_jax.recipe import Recipe


def open_experts(recipe: Recipe, base: Checkpoint | None) -> dict[str, Checkpoint]:
    """The experts by name, in the order of the tasks.

    Raises:
      CheckpointError: One cannot be opened.
      ParameterError: Two have one name, a name map is for nobody, or their order
        matters and is not that of their names.
    """
    if not recipe.experts:
        raise ParameterError("what is to be merged? Give the experts' checkpoints")
    experts: dict[str, Checkpoint] = {}
    for given in recipe.experts:
        name, path = _name_and_path(given)
        checkpoint = open_model(recipe, name, path, base)
        name = name or checkpoint.name
        if name in experts or name == "base":
            other = experts[name].path if name in experts else "that of the base"
            raise ParameterError(
                f"{path}: the name {name!r} is taken ({other}); call it otherwise with "
                "NAME=PATH"
            )
        experts[name] = checkpoint
    renamed = {given.partition("=")[0] for given in recipe.names}
    if unknown := renamed - {*experts, "base"}:
        raise ParameterError(
            f"--names {', '.join(sorted(unknown))}: no such model, there are "
            f"{', '.join([*experts, 'base'])}"
        )
    in_order = dict(sorted(experts.items()))
    if METHODS[recipe.method].ordered and list(in_order) != list(experts):
        raise ParameterError(
            f"the result of {recipe.method} depends on the order of the experts, which "
            f"is that of their names, {', '.join(in_order)}; they are given as "
            f"{', '.join(experts)}. Give them so, or name them in the order that is "
            "meant, such as 1=PATH 2=PATH"
        )
    return in_order


def _name_and_path(given: str) -> tuple[str, str]:
    """Of `NAME=PATH`, or of a path alone, whose name is then empty."""
    # A path may hold a '='; a name holds no '/'.
    before, equals, after = given.partition("=")
    called = equals and "/" not in before and not Path(given).exists()
    name, path = (before, after) if called else ("", given)
    if not path or (called and not name):
        raise ParameterError(f"expert {given!r}: give a PATH or NAME=PATH")
    return name, path


def adapters(recipe: Recipe) -> Iterator[bool]:
    """For each expert, whether it is an adapter."""
    places = (_name_and_path(given)[1] for given in recipe.experts)
    return (is_adapter(locate(place)) for place in places)


def open_model(
    recipe: Recipe, name: str, path: str, base: Checkpoint | None = None
) -> Checkpoint:
    """Opens a model: an adapter on its base, under other names if they are given.

    Args:
      recipe: Its `path` and `names` are looked at.
      name: What the model is called; empty if by its path.
      path: Where it lies.
      base: What adapters change.

    Raises:
      CheckpointError: It cannot be opened, or its numbers are codes and no weights.
      ParameterError: It is an adapter without a base, or a name map is no MODEL=FILE.
    """
    place = locate(path)
    if is_adapter(place) and name == "base":
        raise ParameterError(f"--base {path} is an adapter; the base is a whole model")
    if is_adapter(place):
        if base is None:
            raise ParameterError(f"{path} is an adapter: --base PATH says of what")
        opened = open_adapter(place, base)
    else:
        opened = open_checkpoint(path, subtree=recipe.path)
        refuse_quantised(opened)
    for given in recipe.names:
        model, _, file = given.partition("=")
        if not file:
            raise ParameterError(f"--names {given}: give MODEL=FILE")
        if model == (name or opened.name):
            opened = rename(opened, load_name_map(Path(file)))
    return opened
