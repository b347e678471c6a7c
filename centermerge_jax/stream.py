"""Merging checkpoints on disk that do not fit into memory, as one function."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from centermerge_jax.errors import ParameterError
from centermerge_jax.merging import merge as merge_planned
from centermerge_jax.planning import plan
from centermerge_jax.progress import Report, silent
from centermerge_jax.recipe import Recipe


def merge(
    inputs: Mapping[str, str | Path] | Sequence[str | Path] | Recipe,
    output: str | Path,
    method: str | None = None,
    *,
    memory: str | None = None,
    resume: bool = False,
    progress: Report = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Merges checkpoints into a new one, within a budget of memory.

    What `centermerge merge` does: part by part, read, merged and written at the same
    time, and continued where it was interrupted.

    Args:
      inputs: Checkpoints of the experts, by task name or as a list; or a whole recipe,
        which then says method, memory and settings.
      output: A path ending in `.safetensors` for one file, else a folder.
      method: Name of a method of `cm.METHODS`; `cart` by default.
      memory: Resident memory that the process may take in all; `4GiB` by default.
      resume: Continue an unfinished merge into this output, if there is one.
      progress: Called with what is done and the share of it.
      **settings: Other fields of `centermerge_jax.recipe.Recipe`: base, rank, scale,
        views, dtype, format, ...; and further hyperparameters of the method.

    Returns:
      The manifest, as it is written beside the output.

    Raises:
      MergeError: Something is wrong with the files, the settings, or the memory is too
        little.

    Example:
      >>> import tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> folder = Path(tempfile.mkdtemp())
      >>> for i in range(3):
      ...     save_file({"w": np.full(2, i, np.float32)}, folder / f"{i}.safetensors")
      >>> paths = {f"task{i}": folder / f"{i}.safetensors" for i in range(3)}
      >>> manifest = merge(paths, folder / "mean.safetensors", "weight_average")
      >>> manifest["method"], (folder / "mean.safetensors").exists()
      ('weight_average', True)
    """
    if memory is not None:
        settings["memory"] = memory
    if method is not None:
        settings["method"] = method
    if isinstance(inputs, Recipe):
        if settings:
            raise ParameterError(
                f"a recipe says everything itself: {', '.join(settings)} cannot be "
                "given beside it; use dataclasses.replace"
            )
        recipe = inputs
    else:
        named = inputs.items() if isinstance(inputs, Mapping) else None
        experts = [f"{n}={p}" for n, p in named] if named else [str(p) for p in inputs]
        fields = {field.name for field in dataclasses.fields(Recipe)}
        own = [f"{n}={x}" for n, x in settings.items() if n not in fields]
        settings = {n: x for n, x in settings.items() if n in fields}
        settings["set"] = (*settings.get("set", ()), *own)
        recipe = Recipe(experts=tuple(experts), **settings)
    return merge_planned(
        plan(recipe),
        output,
        format=recipe.format,  # pyright: ignore[reportArgumentType]  checked there
        resume=resume,
        progress=progress,
    )
