"""What is done with one seed: experts, searches, tests, curves, questions."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import centermerge_jax as cm
from centermerge_jax.analysis import analyse
from centermerge_jax.atomic_files import write_whole
from centermerge_jax.evaluation_files import now, versions
from centermerge_jax.progress import Report
from centermerge_jax.sweeping import Point
from experiments.study import embeddings, questions
from experiments.study.experts import JOINT, Experts, trained
from experiments.study.material import Material, material
from experiments.study.notebook import Notebook, plain
from experiments.study.search import (
    GRIDS,
    both,
    chosen,
    packed,
    searched,
    test_once,
    tested,
)
from experiments.study.settings import Study

CURVES = {"cart": "centered_scales", "truncated_task_arithmetic": "uncentered_scales"}
"""Of which methods accuracy is mapped over rank and scale."""


def run_seed(study: Study, seed: int, folder: Path, *, progress: Report) -> Notebook:
    """Does all that is not done yet for a seed."""
    about = {**asdict(study), "seed": seed}
    for more in ("seeds", "shares", "centered_scales", "uncentered_scales"):
        del about[more]  # which may be added to
    folder.mkdir(parents=True, exist_ok=True)
    notebook = Notebook(folder / "found.json", about)
    made: list[Material] = []

    def get() -> Material:
        if not made:
            made.append(material(study, seed))
        return made[0]

    grids = GRIDS[study.kind]
    # What was finished before this changed is to be gone on with.
    all_searched = plain(
        [
            [grids, questions.SHARES, questions.SCALES, questions.ways(grids)],
            [study.shares, study.centered_scales, study.uncentered_scales],
        ]
    )
    if notebook.known("finished") == all_searched:
        return notebook
    experts = trained(study, seed, folder, get)
    joint = experts.pop(JOINT)
    own = get()
    notebook.once("references", lambda: _references(own, experts, joint))
    methods = study.methods or tuple(grids)
    for i, method in enumerate(methods):
        progress(f"seed {seed}: {method}", i / len(methods))
        points = searched(
            method,
            method,
            own,
            experts,
            notebook,
            grid=grids[method],
            progress=progress,
        )
        test_once(method, method, chosen(points), own, experts, notebook)
    for method, scales in CURVES.items():
        searched(
            f"curve of {method}",
            method,
            own,
            experts,
            notebook,
            grid={"rank": study.shares, "scale": getattr(study, scales)},
            progress=progress,
        )
    _test_curve(study, own, experts, notebook)
    notebook.once("average is its own centre", lambda: _identity(experts))
    notebook.once("analysis", lambda: _analysis(study, own, experts, folder))
    questions.answer(seed, grids, own, experts, notebook, progress=progress)
    if study.kind == "text":
        place = folder / "nothing-frozen"
        embeddings.answer(study, seed, place, notebook, progress=progress)
    notebook.note("finished", all_searched)
    return notebook


def _references(
    own: Material, experts: Experts, joint: Mapping[str, Any]
) -> dict[str, Any]:
    """What is not merged: the base, the experts, and joint training."""
    alone = {
        kind: packed(
            {
                task: own.outcomes(leaves, kind, (task,))[task]
                for task, leaves in experts.items()
            }
        )
        for kind in ("validation", "test")
    }
    return {
        "pretrained": both(own, own.base),
        "joint": both(own, joint),
        "experts": alone,
    }


def _test_curve(
    study: Study, own: Material, experts: Experts, notebook: Notebook
) -> None:
    """Tests CART at each rank, with the scale that is best on validation items."""
    points = [Point(*row) for row in notebook.known("points of curve of cart")]
    rows = notebook.known("tested curve of cart", [])
    for share in study.shares:
        setting = chosen([p for p in points if p.setting["rank"] == share])
        if all(row["setting"] != setting for row in rows):
            rows = [row for row in rows if row["setting"]["rank"] != share]
            rows.append(tested("cart", setting, own, experts))
            rows.sort(key=lambda row: row["setting"]["rank"])
            notebook.note("tested curve of cart", rows)


def _analysis(
    study: Study, own: Material, experts: Experts, folder: Path
) -> dict[str, Any]:
    """The means over all matrices; everything else goes to a file."""
    found = {
        "kind": "analysis",
        "command": f"python -m experiments.study {study.kind}",
        "date": now(),
        "versions": versions(),
        **analyse(experts, own.base),
    }
    write_whole(folder / "analysis.json", (json.dumps(found) + "\n").encode())
    return {key: found[key] for key in ("shares", "mean_over_matrices")}


def _identity(experts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How far task arithmetic around the mean is from the mean, in float32 sums."""
    tv = cm.center(experts)
    flat = {name: np.asarray(x, np.float64) for name, x in tv.origin.items()}
    furthest = largest = 0.0
    for name, (_, delta) in tv.flat().items():
        total = np.asarray(delta, np.float64).sum(axis=0)
        furthest = max(furthest, float(np.abs(total).max()))
        largest = max(largest, float(np.abs(flat[name]).max()))
    return {"largest_sum_of_vectors": furthest, "largest_weight": largest}
