"""Questions that the paper leaves open, each with numbers of one seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import centermerge_jax as cm
from centermerge_jax.progress import Report
from experiments.study.experts import Trained
from experiments.study.material import Material
from experiments.study.notebook import Notebook
from experiments.study.search import Grids, chosen, packed, searched, test_once

SHARES = (0.02, 0.04, 0.08, 0.16, 0.32)
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
ENERGIES = (0.5, 0.7)

RULES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "8 %, by length": ("cart_data_free", {"match": "length"}),
    "8 %, one scale for all": ("cart_data_free_whole", {}),
    "above the edge of noise": ("cart_data_free", {"noise": 1.0}),
    "60 % of energy": ("cart_data_free", {"energy": 0.6}),
}
"""Choices of rank and scale without data, beside the defaults of `cart_data_free`."""

SHIFTS = {"left pretrained": 0.0, "mean": 1.0, "twice the mean": 2.0}
"""By how many mean task vectors biases and norms move; all of them are the sum."""


def ways(
    grids: Grids,
) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]]:
    """What CART is told beside a grid; each way has as many points as CART itself."""
    cart = grids["cart"]
    energy = {"energy": ENERGIES, "scale": cart["scale"]}
    return {"fused": ({"views": "fused"}, cart), "energy": ({"rank": 1.0}, energy)}


def answer(
    seed: int,
    grids: Grids,
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
    for way, (told, grid) in ways(grids).items():
        name, fixed = f"cart {way}", dict(told)
        if "views" in told:
            fixed["views"] = cm.views.load(told["views"])
        points = searched(
            name, "cart", own, models, notebook, grid=grid, progress=progress, **fixed
        )
        test_once(name, "cart", chosen(points), own, models, notebook, **fixed)
    for rule, (method, setting) in RULES.items():
        test_once(rule, method, setting, own, models, notebook)
    setting = notebook.known("test of cart")["setting"]
    if notebook.known("rest", {}).get("setting") != setting:
        notebook.note("rest", _rest(own, models, setting))


def subsets(tasks: tuple[str, ...], seed: int) -> list[tuple[int, tuple[str, ...]]]:
    """Tasks in a random order, and the first 3, 4, ... of them."""
    order = np.random.default_rng(seed).permutation(len(tasks))
    counts = [n for n in (3, 4, 6) if n < len(tasks)]
    return [(n, tuple(sorted(tasks[i] for i in order[:n]))) for n in counts]


def _rest(own: Material, models: Trained, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Biases and norms moved by the mean task vector (CART), by less, and by more."""
    merged = cm.cart(models.experts, **setting)
    table = cm.views.resolve(own.base, None)
    others = [name for name, view in table.items() if view is None]
    found = {}
    for way, shift in {**SHIFTS, "sum": len(models.experts)}.items():
        moved = {
            name: own.base[name] + shift * (np.asarray(merged[name]) - own.base[name])
            for name in others
        }
        found[way] = {
            kind: packed(own.outcomes({**merged, **moved}, kind))
            for kind in ("validation", "test")
        }
    return {"setting": setting, "ways": found}


def by_share(rows: Any) -> dict[float, float]:
    """The validation accuracy at each rank with its best scale.

    Example:
      >>> row = {"rank": 0.04, "scale": 2.0}
      >>> by_share([(row, {"a": 0.5}, 0, 0), (row, {"a": 0.7}, 0, 0)])
      {0.04: 0.7}
    """
    found: dict[float, float] = {}
    for setting, scores, *_ in rows:
        accuracy = float(np.mean(list(scores.values())))
        found[setting["rank"]] = max(accuracy, found.get(setting["rank"], 0.0))
    return found
