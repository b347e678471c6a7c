"""The flags that `merge`, `plan` and `sweep` share: see `commands`."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, Suppress, UseAppendAction, arg

from centermerge_jax.recipe import Override, Recipe


@dataclass(frozen=True, kw_only=True)
class Arguments(Recipe):
    """The flags that say what is merged, and how."""

    experts: Positional[tuple[str, ...]]
    """Checkpoints of the fine-tuned models: safetensors files, hub folders (single or
    sharded), Orbax directories, .msgpack, .npz or PyTorch files, LoRA folders, or names
    on the hub (org/model). Each is called by its file or folder name; NAME=PATH calls
    it otherwise. Or one recipe file, which ends in .yaml; flags go before what it
    says."""

    method: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """cart (the default), weight_average, task_arithmetic, ties, tsv_m, iso_c, or any
    other that `centermerge methods` lists."""

    rank: int | float | None = None
    """Directions kept of each matrix: 0.08 is 8 % of min(m, n), 1.0 is everything, and
    without a dot, 16, a number of directions."""

    scale: float | None = None
    """Factor on the sum of the task vectors."""

    weights: Suppress[Mapping[str, float] | None] = None
    overrides: Suppress[tuple[Override, ...]] = ()

    names: UseAppendAction[tuple[str, ...]] = ()
    """MODEL=FILE: the leaves of that model, an expert or 'base', are called as the TOML
    file says. Repeatable."""

    statistics: UseAppendAction[tuple[str, ...]] = ()
    """NAME=FILE: what `centermerge statistics` measured of that expert, for fisher,
    regmean, regmean_plus_plus and esm. Repeatable, once for each expert."""

    exclude: UseAppendAction[tuple[str, ...]] = ()
    """Regular expression; leaves whose whole name matches are left out. Repeatable."""

    keep: UseAppendAction[tuple[str, ...]] = ()
    """Regular expression; leaves whose whole name matches (a task head) are not merged
    but copied from the model that --keep-from names. Repeatable."""

    set: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: a further hyperparameter of the method, as `centermerge methods
    METHOD` shows them. Repeatable."""

    output: Annotated[str | None, arg(aliases=("-o",))] = None
    """The new checkpoint: a file if it ends in .safetensors, else a folder."""

    json: bool = False
    """Print JSON, for machines, instead of a summary."""


def read_recipe(command: Recipe) -> tuple[Recipe, Sequence[str]]:
    """What the flags say, and a recipe file where they say nothing; and remarks."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    flags = {name: getattr(command, name) for name in names}
    given = {name: x for name, x in flags.items() if x is not None and x != ()}
    given["experts"] = command.experts
    files = [path for path in command.experts if path.endswith((".yaml", ".yml"))]
    if not files:
        return Recipe(**given), ()
    from centermerge_jax.errors import ParameterError
    from centermerge_jax.recipe_files import load_recipe

    if len(command.experts) > 1:
        raise ParameterError(
            f"{files[0]}: a recipe file names all experts; give it alone"
        )
    recipe, notes = load_recipe(files[0])
    del given["experts"]
    return dataclasses.replace(recipe, **given), notes


def warn(warnings: Sequence[str]) -> None:
    """Says on stderr what is allowed but perhaps not meant."""
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)
