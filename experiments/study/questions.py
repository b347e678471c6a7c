"""Questions that the paper leaves open, each with numbers of one seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import centermerge_jax as cm
from centermerge_jax.progress import Report
from experiments.study.experts import Experts
from experiments.study.material import Material
from experiments.study.notebook import Notebook
from experiments.study.search import Grids, both, chosen, searched, test_once

SHARES = (0.02, 0.04, 0.08, 0.16, 0.32)
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
ENERGIES = (0.7, 0.8, 0.9, 0.95)

RULES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "8 %, by length": ("cart_data_free", {"match": "length"}),
    "8 %, one scale for all": ("cart_data_free_whole", {}),
    "above the edge of noise": ("cart_data_free", {"noise": 1.0}),
    "60 % of energy": ("cart_data_free", {"energy": 0.6}),
}
"""Choices of rank and scale without data, beside the defaults of `cart_data_free`."""

SHIFTS = {"left pretrained": 0.0, "mean": 1.0, "twice the mean": 2.0}
"""By how many mean task vectors leaves that are no matrices move, beside the sum."""


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
    experts: Experts,
    notebook: Notebook,
    *,
    progress: Report,
) -> None:
    """Answers all of them, as far as that is not done."""
    counts = [n for n in (3, 4, 6) if n < len(experts)]
    for count in counts:
        searched(
            f"cart of {count} tasks",
            "cart",
            own,
            {task: experts[task] for task in some(tuple(experts), count, seed)},
            notebook,
            grid={"rank": SHARES, "scale": SCALES},
            progress=progress,
        )
    for way, (told, grid) in ways(grids).items():
        name, fixed = f"cart {way}", dict(told)
        if "views" in told:
            fixed["views"] = cm.views.load(told["views"])
        points = searched(
            name, "cart", own, experts, notebook, grid=grid, progress=progress, **fixed
        )
        test_once(name, "cart", chosen(points), own, experts, notebook, **fixed)
    for rule, (method, setting) in RULES.items():
        test_once(rule, method, setting, own, experts, notebook)
    setting = notebook.known("test of cart")["setting"]
    if notebook.known("rest", {}).get("setting") != setting:
        notebook.note("rest", _rest(own, experts, setting))


def some(tasks: tuple[str, ...], count: int, seed: int) -> tuple[str, ...]:
    """The first so many tasks of a random order, by name."""
    order = np.random.default_rng(seed).permutation(len(tasks))
    return tuple(sorted(tasks[i] for i in order[:count]))


def _rest(
    own: Material, experts: Experts, setting: Mapping[str, Any]
) -> dict[str, Any]:
    """What is done with biases and norms, all else being as CART has it."""
    merged = cm.cart(experts, **setting)
    others = [name for name, view in cm.views.resolve(own.base).items() if view is None]
    return {"setting": setting, "ways": shifted(own, merged, others, len(experts))}


def shifted(
    own: Material, merged: Mapping[str, Any], names: Sequence[str], tasks: int
) -> dict[str, dict[str, dict[str, str]]]:
    """Outcomes with some leaves moved by the mean task vector (CART), by less, by more.

    Args:
      own: With the pretrained leaves.
      merged: A merge that has the experts' mean in these leaves.
      names: Of the leaves.
      tasks: How many mean task vectors their sum is.
    """
    found = {}
    for way, shift in {**SHIFTS, "sum": tasks}.items():
        moved = {
            name: own.base[name] + shift * (np.asarray(merged[name]) - own.base[name])
            for name in names
        }
        found[way] = both(own, {**merged, **moved})
    return found


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
