"""What tables of embeddings should do, on experts in which nothing is frozen."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import centermerge_jax as cm
from centermerge_jax.progress import Report
from centermerge_jax.views import Rule
from experiments.study.experts import trained
from experiments.study.material import material
from experiments.study.notebook import Notebook
from experiments.study.questions import shifted, some
from experiments.study.search import GRIDS, both, chosen, searched
from experiments.study.settings import Study

TASKS = 3
"""Of which there are such experts, at most."""


def answer(
    study: Study, seed: int, folder: Path, notebook: Notebook, *, progress: Report
) -> None:
    """Makes the experts, and merges them with tables averaged, left, or truncated."""
    if notebook.known("embeddings"):
        return
    tasks = some(study.training.tasks, TASKS, seed)
    few = replace(study, training=replace(study.training, tasks=tasks))
    own = material(few, seed, frozen=False)
    experts = trained(few, seed, folder, lambda: own, joint=False)
    points = searched(
        "cart of whole experts",
        "cart",
        own,
        experts,
        notebook,
        grid=GRIDS[study.kind]["cart"],
        progress=progress,
    )
    setting = chosen(points)
    tables = tables_as_matrices(own.base)
    found = shifted(own, cm.cart(experts, **setting), list(tables), len(tasks))
    every = {**cm.views.auto(own.base), **tables}
    truncated = cm.cart(experts, views=every, **setting)
    found["truncated like matrices"] = both(own, truncated)
    notebook.note("embeddings", {"tasks": tasks, "setting": setting, "ways": found})


def tables_as_matrices(base: Mapping[str, Any]) -> dict[str, cm.views.MatrixView]:
    """The leaves that have the shape of matrices and are none, seen as matrices."""
    whole = Rule(".*", rows=(0,), cols=(1,))
    return {
        name: view
        for name, seen in cm.views.auto(base).items()
        if seen is None and base[name].ndim == 2
        for view in [whole.view(name, base[name].shape)]
        if view is not None
    }
