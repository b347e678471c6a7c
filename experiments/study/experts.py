"""Experts of every task, and joint training: made once, kept as files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from centermerge_jax.checkpoints import manifest_path, open_checkpoint, save
from centermerge_jax.demo.experts import fine_tune
from centermerge_jax.demo.run import flat_leaves
from centermerge_jax.errors import CheckpointError, changes, listing
from centermerge_jax.progress import progress
from experiments.study.material import Material
from experiments.study.settings import Study

JOINT = "joint"
"""Name of the model that is trained on all tasks together."""

Experts = Mapping[str, Mapping[str, Any]]
"""By task, what fine-tuning made of the leaves that move."""


def trained(
    study: Study,
    seed: int,
    folder: Path,
    get: Callable[[], Material],
    *,
    joint: bool = True,
) -> dict[str, Mapping[str, Any]]:
    """The experts of a seed: those that are missing are made and written first.

    Args:
      study: With the tasks.
      seed: One of the study's.
      folder: Of their files.
      get: Called for what they are made of if one is missing.
      joint: Whether there is also `JOINT`.
    """
    settings = study.at(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = (*settings.tasks, *([JOINT] * joint))
    paths = {name: folder / f"{name}.safetensors" for name in names}
    record = {"made_by": "python -m experiments.study", "settings": asdict(settings)}
    missing = [name for name, path in paths.items() if not path.exists()]
    for path in paths.values():
        if path.exists():
            _check_made_with(path, record)
    with progress() as bar:
        for i, name in enumerate(missing):
            material = get()
            chosen = settings.tasks if name == JOINT else (name,)

            def show(share: float, i: int = i, name: str = name) -> None:
                bar(f"seed {seed}: fine-tuning {name}", (i + share) / len(missing))

            found = fine_tune(
                material.backbone,
                {task: material.splits[task]["train"] for task in chosen},
                {task: material.heads[task] for task in chosen},
                settings,
                progress=show,
            )
            save(flat_leaves(found), paths[name], manifest=record)
    return {name: open_checkpoint(path).read_all() for name, path in paths.items()}


def _check_made_with(path: Path, record: Mapping[str, Any]) -> None:
    """An expert of other settings would be taken for one of these."""
    stored = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    if problems := changes(stored["settings"], record["settings"]):
        header = f"{path}: {{n}} difference{{s}} from the settings it was made with"
        cure = "Remove its folder to make it anew, or choose another with --work."
        raise CheckpointError(listing(header, problems, cure))
