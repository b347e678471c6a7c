"""Which leaves of several checkpoints a recipe merges, keeps, and leaves out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from centermerge_jax.checkpoints import Checkpoint, LeafInfo
from centermerge_jax.errors import CheckpointError, ParameterError, listing
from centermerge_jax.recipe import Recipe


@dataclass(frozen=True)
class Leaves:
    """What becomes of the leaves of all models.

    Attributes:
      merged: Names of those that are merged.
      kept: Names of those that are copied from the model of `keep_from`.
      left_out: Names of those that are not in the output.
    """

    merged: tuple[str, ...]
    kept: tuple[str, ...]
    left_out: tuple[str, ...]


def sort_leaves(
    recipe: Recipe,
    experts: Mapping[str, Checkpoint],
    base: Checkpoint | None,
    keeper: Checkpoint | None,
) -> Leaves:
    """Which leaves are merged, kept from one model, and left out.

    Args:
      recipe: Its `exclude`, `keep` and `keep_from` are looked at.
      experts: The experts' checkpoints by name.
      base: The base's checkpoint, if there is one.
      keeper: The one of them that `keep_from` names.

    Raises:
      ParameterError: A pattern is none or matches no leaf, or nothing is left to merge.
      CheckpointError: Leaves are tied in some models only.
    """
    if bool(recipe.keep) != (recipe.keep_from is not None):
        raise ParameterError(
            "--keep REGEX and --keep-from NAME go together: which leaves, and whose"
        )
    if recipe.keep_from is not None and keeper is None:
        names = ", ".join([*experts, *(["base"] if base else [])])
        raise ParameterError(
            f"--keep-from {recipe.keep_from}: no such model, there are {names}"
        )
    models = [*experts.values(), *([base] if base else [])]
    everywhere = list(dict.fromkeys(leaf for model in models for leaf in model.leaves))
    excluded = set(_matching("--exclude", recipe.exclude, everywhere))
    kept = _matching("--keep", recipe.keep, list(keeper.leaves) if keeper else [])
    # What is kept of one model is not merged, whoever else has leaves of that kind.
    out = excluded | {x for x in everywhere if _any_match(recipe.keep, x)}
    merged = dict.fromkeys(
        x for e in experts.values() for x in e.leaves if x not in out
    )
    if not any(
        _is_parameter(e.leaves.get(x)) for e in experts.values() for x in merged
    ):
        raise ParameterError(
            f"nothing to merge: no floating leaf among {', '.join(list(merged)[:5])}"
        )
    named = {**experts, **({"base": base} if base else {})}
    _refuse_tied(named, [name for name in everywhere if name not in out])
    if not merged:
        raise ParameterError("--exclude and --keep leave nothing to merge")
    kept = tuple(leaf for leaf in kept if leaf not in excluded)
    return Leaves(tuple(merged), kept, tuple(sorted(out - set(kept))))


def _is_parameter(info: LeafInfo | None) -> bool:
    return (
        info is not None
        and info.kind == "array"
        and jnp.issubdtype(info.dtype, jnp.floating)
    )


def _refuse_tied(models: Mapping[str, Checkpoint], names: Sequence[str]) -> None:
    """Refuses a tensor that one model stores under two names and another under one.

    Only the first of its names is a leaf here: without a word about it the other one
    would seem to be missing.
    """
    problems = []
    for name, model in models.items():
        for alias, leaf in model.tied.items():
            others = {x: m.leaves.keys() for x, m in models.items() if m is not model}
            if alias not in names or not any(alias in x for x in others.values()):
                continue
            where = ", ".join(x for x, leaves in others.items() if alias in leaves)
            if all(leaf not in leaves for leaves in others.values()):
                cure = (
                    f"a name map has it called {alias}, with from = "
                    f"'{re.escape(leaf)}': --names {name}=FILE"
                )
            else:
                cure = "save all models again in one way, with both tensors or with one"
            problems.append(
                f"{name}: {alias} is the same tensor as {leaf}, but in {where} a leaf "
                f"of its own; {cure}"
            )
    if problems:
        raise CheckpointError(
            listing("{n} tied name{s} that not all models have tied", problems)
        )


def _any_match(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _matching(
    flag: str, patterns: Sequence[str], names: Sequence[str]
) -> tuple[str, ...]:
    """The names that match any of the patterns; each pattern has to match one."""
    found: dict[str, None] = {}
    idle = []
    for pattern in patterns:
        try:
            matches = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise ParameterError(f"{flag} {pattern}: {error}") from None
        if not matches:
            idle.append(pattern)
        found.update(dict.fromkeys(matches))
    if idle:
        some = ", ".join(names[-5:])
        raise ParameterError(
            listing(
                f"{flag}: {{n}} pattern{{s}} without a matching leaf",
                idle,
                f"A pattern matches whole names, such as {some}",
            )
        )
    return tuple(found)
