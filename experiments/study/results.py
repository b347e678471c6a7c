"""From the notebooks of all seeds to the files that reports are made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from centermerge_jax.evaluation_files import now, versions
from experiments.study.notebook import Notebook
from experiments.study.search import GRIDS, mean, unpacked
from experiments.study.settings import Study

LABELS = {
    "pretrained": ("pretrained", "reference"),
    "experts": ("experts, each on its task", "reference"),
    "joint": ("joint training", "reference"),
    "weight_average": ("weight average", "average"),
    "task_arithmetic": ("task arithmetic", "task vectors"),
    "ties": ("TIES", "task vectors"),
    "dare_ties": ("DARE + TIES", "task vectors"),
    "breadcrumbs": ("Breadcrumbs", "task vectors"),
    "magmax": ("MagMax", "task vectors"),
    "consensus": ("Consensus TA", "task vectors"),
    "lines": ("LiNeS", "task vectors"),
    "truncated_task_arithmetic": ("not centred, truncated", "spectral"),
    "cart": ("CART", "spectral"),
    "cart_tsv": ("CART + TSV", "spectral"),
    "tsv_m": ("TSV-M", "spectral"),
    "iso_c": ("Iso-C", "spectral"),
    "iso_cts": ("Iso-CTS", "spectral"),
    "star": ("STAR", "spectral"),
    "wudi_closed": ("WUDI, closed form", "spectral"),
    "cart_data_free": ("CART, no data", "data-free"),
}
"""What a method is called in tables, and of which family it is."""


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the half-width of its 95 % interval over seeds (Student's t).

    Example:
      >>> over_seeds([1.0, 2.0, 3.0])
      (2.0, 2.484...)
    """
    count = len(values)
    if count < 2:
        return float(np.mean(values)), None
    quantile = stats.t.ppf(0.975, count - 1)
    half = quantile * np.std(values, ddof=1) / np.sqrt(count)
    return float(np.mean(values)), float(half)


def comparison(study: Study, notebooks: Mapping[int, Notebook]) -> dict[str, Any]:
    """Methods x tasks x seeds, as a file of the kind "comparison"."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed, notebook in notebooks.items():
        for name, run in _runs(notebook).items():
            runs.setdefault(name, []).append({"seed": seed, **run})
    whole = {name: some for name, some in runs.items() if len(some) == len(notebooks)}
    return {
        "kind": "comparison",
        "title": _TITLES[study.kind],
        "command": f"python -m experiments.study {study.kind}",
        "date": now(),
        "versions": versions(),
        "tasks": list(study.training.tasks),
        "seeds": list(notebooks),
        "methods": {
            name: {
                "label": LABELS[name][0],
                "group": LABELS[name][1],
                "runs": some,
                **_summary(some, whole),
            }
            for name, some in whole.items()
        },
        "curves": _curves(study, notebooks),
        "claims": [],
    }


_TITLES = {
    "vision": "DINOv2-S fine-tuned on eight sets of images",
    "text": "MiniLM fine-tuned on six sets of texts",
}


def _runs(notebook: Notebook) -> dict[str, dict[str, Any]]:
    """A run of every method, and of what is not merged."""
    references = notebook.known("references")
    experts = references["experts"]["test"]
    found = {
        name: _run(one["test"], experts, validation=mean(one["validation"]))
        for name, one in references.items()
    }
    for name in GRIDS:
        tested = notebook.known(f"test of {name}")
        if tested is None:
            continue
        points = notebook.known(f"points of {name}", [])
        rows = [
            {
                "setting": setting,
                "validation": float(np.mean(list(scores.values()))),
                "per_task": scores,
                "seconds": merging + evaluating,
            }
            for setting, scores, merging, evaluating in points
        ]
        found[name] = {
            **_run(tested["outcomes"], experts),
            "setting": tested["setting"],
            "validation": max((row["validation"] for row in rows), default=None),
            "points": rows,
            "merge_seconds": tested["merge_seconds"],
            "search_seconds": sum(row[2] + row[3] for row in points),
        }
    return found


def _run(
    outcomes: Mapping[str, str],
    experts: Mapping[str, str],
    *,
    validation: float | None = None,
) -> dict[str, Any]:
    right, own = unpacked(outcomes), unpacked(experts)
    accuracy = {task: float(x.mean()) for task, x in right.items()}
    return {
        "setting": {},
        "validation": validation,
        "points": [],
        "accuracy": accuracy,
        "items": {task: len(x) for task, x in right.items()},
        "mean": float(np.mean(list(accuracy.values()))),
        "normalised": float(
            np.mean([x / own[task].mean() for task, x in accuracy.items()])
        ),
        "merge_seconds": None,
        "search_seconds": None,
    }


def _summary(
    runs: Sequence[Mapping[str, Any]], every: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Means over seeds with their intervals, and differences seed by seed."""
    found: dict[str, Any] = {}
    measures: dict[str, Callable[[int], float]] = {
        "mean": lambda i: runs[i]["mean"],
        "normalised": lambda i: runs[i]["normalised"],
    }
    for other in ("experts", "joint", "cart", "weight_average"):
        measures[f"over_{other}"] = lambda i, other=other: (
            runs[i]["mean"] - every[other][i]["mean"]
        )
    for name, measure in measures.items():
        value, half = over_seeds([measure(i) for i in range(len(runs))])
        found[name], found[f"{name}_half_width"] = value, half
    found["accuracy"], found["accuracy_half_width"] = {}, {}
    for task in runs[0]["accuracy"]:
        value, half = over_seeds([run["accuracy"][task] for run in runs])
        found["accuracy"][task], found["accuracy_half_width"][task] = value, half
    return found


def _curves(study: Study, notebooks: Mapping[int, Notebook]) -> dict[str, Any]:
    """Validation accuracy by rank and scale, and that on test at each rank's best."""
    found = {}
    scales = {
        "cart": study.centered_scales,
        "truncated_task_arithmetic": study.uncentered_scales,
    }
    for method, values in scales.items():
        tables = []
        for notebook in notebooks.values():
            by_setting = {
                (row[0]["rank"], row[0]["scale"]): float(np.mean(list(row[1].values())))
                for row in notebook.known(f"points of curve of {method}")
            }
            tables.append([[by_setting[r, s] for s in values] for r in study.shares])
        found[method] = {
            "shares": list(study.shares),
            "scales": list(values),
            "accuracy": np.mean(tables, axis=0).tolist(),
        }
    tests = [
        [mean(row["outcomes"]) for row in notebook.known("tested curve")]
        for notebook in notebooks.values()
    ]
    found["cart"] |= {
        "tested": np.mean(tests, axis=0).tolist(),
        "tested_by_seed": tests,
    }
    return found
