"""Questions that the paper leaves open, each with numbers of one seed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import centermerge_jax as cm
from centermerge_jax.progress import Report
from experiments.study.experts import Trained
from experiments.study.material import Material
from experiments.study.notebook import Notebook
from experiments.study.search import chosen, packed, searched, test_once

SHARES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
SCALES = (1.0, 2.0, 3.0, 4.0)
ENERGIES = (0.2, 0.3, 0.5, 0.7, 0.8, 0.9)
WAYS = {
    "split": {"views": "auto"},
    "fused": {"views": "fused"},
    "energy": {"views": "auto", "rank": 1.0},
}
"""What CART is told beside its grid; each way has as many points, and one test."""


def answer(
    seed: int,
    own: Material,
    models: Trained,
    notebook: Notebook,
    *,
    progress: Report,
) -> None:
    """Answers all of them, as far as that is not done."""
    for count, tasks in subsets(tuple(models.experts), seed):
        some = replace(models, experts={t: models.experts[t] for t in tasks})
        searched(
            f"cart of {count} tasks",
            "cart",
            own,
            some,
            notebook,
            grid={"rank": SHARES, "scale": SCALES},
            progress=progress,
        )
    for way, told in WAYS.items():
        fixed = {**told, "views": cm.views.load(told["views"])}
        which = {"energy": ENERGIES} if way == "energy" else {"rank": SHARES}
        points = searched(
            f"cart {way}",
            "cart",
            own,
            models,
            notebook,
            grid={**which, "scale": SCALES},
            progress=progress,
            **fixed,
        )
        name = f"cart {way}"
        test_once(name, "cart", chosen(points), own, models, notebook, **fixed)
    setting = notebook.known("test of cart")["setting"]
    if notebook.known("rest", {}).get("setting") != setting:
        notebook.note("rest", _rest(own, models, setting))


def subsets(tasks: tuple[str, ...], seed: int) -> list[tuple[int, tuple[str, ...]]]:
    """Tasks in a random order, and the first 3, 4, ... of them."""
    order = np.random.default_rng(seed).permutation(len(tasks))
    counts = [n for n in (3, 4, 6) if n < len(tasks)]
    return [(n, tuple(sorted(tasks[i] for i in order[:n]))) for n in counts]


def _rest(own: Material, models: Trained, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Biases and norms from the mean (CART), the base, or all task vectors at once."""
    merged = cm.cart(models.experts, **setting)
    table = cm.views.resolve(own.base, None)
    others = [name for name, view in table.items() if view is None]
    added = {
        name: own.base[name]
        + sum(np.asarray(x[name]) - own.base[name] for x in models.experts.values())
        for name in others
    }
    ways: Mapping[str, Mapping[str, Any]] = {
        "mean": {},
        "base": {name: own.base[name] for name in others},
        "sum": added,
    }
    found = {
        way: {
            kind: packed(own.outcomes({**merged, **leaves}, kind))
            for kind in ("validation", "test")
        }
        for way, leaves in ways.items()
    }
    return {"setting": setting, "ways": found}


def best_share(rows: Any) -> tuple[float, float]:
    """The rank that is best, with its best scale, and its accuracy."""
    by_share: dict[float, float] = {}
    for setting, scores, *_ in rows:
        share = setting["rank"]
        accuracy = float(np.mean(list(scores.values())))
        by_share[share] = max(accuracy, by_share.get(share, 0.0))
    share = max(by_share, key=lambda share: by_share[share])
    return share, by_share[share]
