"""Every method under one budget: chosen on validation items, tested once."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from centermerge_jax.evaluate import Outcomes, mean_accuracy
from centermerge_jax.methods import METHODS
from centermerge_jax.progress import Report
from centermerge_jax.sweeping import Point, best, sweep
from experiments.study.experts import Experts
from experiments.study.material import Material
from experiments.study.notebook import Notebook

BUDGET = 8
"""Points of each method at most."""

_SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
_WIDE = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)
_SPECTRAL = (0.6, 1.0, 1.4, 1.8, 2.2, 2.8, 3.6, 4.6)
_LARGE = (1.4, 1.8, 2.2, 2.8, 3.6, 4.6, 6.0, 8.0)

Grids = Mapping[str, Mapping[str, Sequence[Any]]]
"""For each method the values of its hyperparameters that are tried."""

_TEXT: Grids = {
    "weight_average": {},
    "task_arithmetic": {"scale": _SCALES},
    "ties": {"density": (0.05, 0.1, 0.2, 0.4), "scale": (1.2, 1.8)},
    "truncated_task_arithmetic": {"rank": (0.01, 0.02), "scale": (0.4, 0.6, 0.8, 1.0)},
    "cart": {"rank": (0.04, 0.08, 0.16, 0.32), "scale": (8.0, 16.0)},
    "cart_data_free": {},
    "cart_tsv": {"rank": (0.01, 0.02, 0.04, 0.08), "scale": (2.0, 3.5)},
    "tsv_m": {"scale": _SPECTRAL},
    "iso_c": {"scale": _LARGE},
    "iso_cts": {"scale": _LARGE},
    "dc_merge": {"scale": _SPECTRAL},
    "subspace_boosting": {"scale": _SCALES},
    "svc": {"merger": ("task_arithmetic", "iso_c"), "scale": (0.15, 0.3, 1.5, 2.5)},
    "wudi_closed": {"scale": _WIDE},
    "ace_merging": {"ridge": (1e-7, 1e-6, 1e-5, 1e-4), "scale": (1.0, 1.5)},
}

_VISION: Grids = {
    **_TEXT,
    "task_arithmetic": {"scale": (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)},
    "ties": {"density": (0.05, 0.1, 0.2, 0.4), "scale": (0.1, 0.2)},
    "truncated_task_arithmetic": {
        "rank": (0.08, 0.32),
        "scale": (0.01, 0.02, 0.03, 0.05),
    },
    "cart": {"rank": (0.08, 0.16, 0.24, 0.32), "scale": (5.0, 10.0)},
    "cart_tsv": {"rank": (0.02, 0.04, 0.08, 0.16), "scale": (1.5, 2.5)},
    "iso_c": {"scale": _SPECTRAL},
    "svc": {"merger": ("task_arithmetic", "iso_c"), "scale": (0.1, 0.2, 0.3, 0.6)},
    "ace_merging": {"ridge": (1e-7, 1e-6, 1e-5, 1e-4), "scale": (1.0, 1.3)},
}

GRIDS: Mapping[str, Grids] = {"text": _TEXT, "vision": _VISION}
"""What is tried, by kind of study: the searched hyperparameters alone.

Of the methods of `experiments/all_methods.py` that make one model for all tasks without
data these are the best, and the best known. The ranges were moved in several rounds,
outward where validation had chosen an edge for the first seed; other seeds' validation
was known by the last one. Those of CART, alone with those of the uncentred form, could
be set knowing its curve: the text study's scale went inward, from 24 to 16. Test items
chose nothing, though earlier rounds had been tested.
"""


def evaluator(material: Material) -> Callable[..., list[dict[str, float]]]:
    """Accuracy on validation items, for `cm.sweep`."""

    def evaluate(models: Sequence[Any], tasks: Sequence[str]) -> list[dict[str, float]]:
        found = []
        for model in models:
            outcomes = material.outcomes(model, "validation", tuple(tasks))
            found.append({task: float(x.mean()) for task, x in outcomes.items()})
        return found

    return evaluate


def searched(
    name: str,
    method: str,
    material: Material,
    experts: Experts,
    notebook: Notebook,
    *,
    grid: Mapping[str, Sequence[Any]],
    progress: Report,
    **fixed: Any,
) -> list[Point]:
    """The points of a search, of which those that are known are not computed again."""
    key = f"points of {name}"
    known = [Point(*row) for row in notebook.known(key, [])]
    points = [p for p in known if all(p.setting[k] in x for k, x in grid.items())]

    def keep(point: Point) -> None:
        points.append(point)
        rows = [
            (p.setting, p.scores, p.merge_seconds, p.evaluate_seconds) for p in points
        ]
        notebook.note(key, rows)

    return sweep(
        method,
        experts,
        material.base if METHODS[method].needs_base else None,
        evaluate=evaluator(material),
        grid=grid,
        known=points,
        keep=keep,
        progress=progress,
        **fixed,
    )


def tested(
    method: str,
    setting: Mapping[str, Any],
    material: Material,
    experts: Experts,
    **fixed: Any,
) -> dict[str, Any]:
    """A merge by itself, with its seconds, and its outcomes on test items."""
    known = METHODS[method]
    base = (material.base,) if known.needs_base else ()
    start = time.perf_counter()
    merged = known.function(experts, *base, **setting, **fixed)
    jax.block_until_ready(merged)
    seconds = time.perf_counter() - start
    outcomes = material.outcomes(merged, "test", tuple(experts))
    return {
        "setting": dict(setting),
        "merge_seconds": seconds,
        "outcomes": packed(outcomes),
    }


def test_once(
    name: str,
    method: str,
    setting: Mapping[str, Any],
    material: Material,
    experts: Experts,
    notebook: Notebook,
    **fixed: Any,
) -> None:
    """Tests a setting, unless just this one was tested before."""
    key = f"test of {name}"
    if notebook.known(key, {}).get("setting") != dict(setting):
        notebook.note(key, tested(method, setting, material, experts, **fixed))


def chosen(points: Sequence[Point]) -> dict[str, Any]:
    """The setting of the best point."""
    return dict(best(points).setting)


def packed(outcomes: Outcomes) -> dict[str, str]:
    """Outcomes as text."""
    return {
        task: "".join("1" if right else "0" for right in found)
        for task, found in outcomes.items()
    }


def both(material: Material, leaves: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Outcomes of a model on the validation and on the test items of all tasks."""
    kinds = ("validation", "test")
    return {kind: packed(material.outcomes(leaves, kind)) for kind in kinds}


def unpacked(text: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Outcomes from text."""
    return {task: np.array(list(x)) == "1" for task, x in text.items()}


def mean(text: Mapping[str, str]) -> float:
    """Mean accuracy over tasks."""
    return mean_accuracy(unpacked(text))[0]
