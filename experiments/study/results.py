"""From the notebooks of all seeds to the files that reports are made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from centermerge_jax.data import sets, text_sets
from centermerge_jax.evaluate import normalised
from centermerge_jax.evaluation_files import now, versions
from experiments.study.intervals import Run, difference, interval
from experiments.study.notebook import Notebook, plain
from experiments.study.search import BUDGET, mean, unpacked
from experiments.study.settings import Study

LABELS = {
    "pretrained": ("pretrained", "reference"),
    "experts": ("experts, each on its task", "reference"),
    "joint": ("joint training", "reference"),
    "weight_average": ("weight average", "average"),
    "task_arithmetic": ("task arithmetic", "task vectors"),
    "ties": ("TIES", "task vectors"),
    "truncated_task_arithmetic": ("not centred, truncated", "spectral"),
    "cart": ("CART", "spectral"),
    "cart_tsv": ("CART + TSV", "spectral"),
    "tsv_m": ("TSV-M", "spectral"),
    "iso_c": ("Iso-C", "spectral"),
    "iso_cts": ("Iso-CTS", "spectral"),
    "dc_merge": ("DC-Merge", "spectral"),
    "subspace_boosting": ("subspace boosting", "spectral"),
    "svc": ("SVC", "spectral"),
    "wudi_closed": ("WUDI, closed form", "spectral"),
    "ace_merging": ("ACE-Merging", "spectral"),
    "cart_data_free": ("CART, no data", "data-free"),
}
"""What a method is called in tables, and of which family it is."""


def comparison(study: Study, notebooks: Mapping[int, Notebook]) -> dict[str, Any]:
    """Methods x tasks x seeds, as a file of the kind "comparison"."""
    right = right_answers(notebooks.values())
    return {
        "kind": "comparison",
        "title": _TITLES[study.kind].format(len(study.training.tasks)),
        "command": f"python -m experiments.study {study.kind} "
        f"--seeds {' '.join(map(str, notebooks))}{' --smoke' * study.smoke}",
        "date": now(),
        "versions": versions(),
        "settings": _settings(study),
        "setup": _setup(study),
        "tasks": list(study.training.tasks),
        "seeds": list(notebooks),
        "seconds": sum(notebook.seconds for notebook in notebooks.values()),
        "methods": {
            name: {
                "label": LABELS[name][0],
                "group": LABELS[name][1],
                "runs": [
                    {"seed": seed, **_run(book, name, one, experts)}
                    for (seed, book), one, experts in zip(
                        notebooks.items(), runs, right["experts"], strict=True
                    )
                ],
                **_summary(runs, right),
            }
            for name, runs in right.items()
        },
        "curves": _curves(study, notebooks),
        "claims": [],
    }


_TITLES = {
    "vision": "DINOv2-S fine-tuned on {} sets of images",
    "text": "MiniLM fine-tuned on {} sets of texts",
}

_NETWORKS = {
    "vision": (
        "DINOv2-S, 12 blocks, as a public package carries it, whose author has "
        "fine-tuned it for saliency; images have {pixels} x {pixels} pixels"
    ),
    "text": (
        "MiniLM (all-MiniLM-L6-v2), 6 blocks; of a text it reads the first {tokens} "
        "tokens, of posts in news groups from the subject on"
    ),
}


def _settings(study: Study) -> dict[str, Any]:
    """All numbers of a study, without what is the demo's alone."""
    found = plain(asdict(study))
    training = found.pop("training")
    others = ("ranks", "centered_scales", "uncentered_scales", "seed", "test")
    others += {"vision": (), "text": ("pixels",)}[study.kind]
    told = {key: x for key, x in training.items() if key not in others}
    return {key: x for key, x in {**told, **found}.items() if x != []}


def _setup(study: Study) -> list[str]:
    """What a reader has to know of how the numbers came about."""
    training = study.training
    sources: Mapping[str, Any] = {"vision": sets.SETS, "text": text_sets.SETS}
    tasks = [
        f"{task} ({len(classes)} classes: {', '.join(classes[:3])}{', ...' * more})"
        for task in training.tasks
        for classes in [sources[study.kind][task].classes]
        for more in [len(classes) > 3]
    ]
    network = _NETWORKS[study.kind].format(pixels=training.pixels, tokens=study.tokens)
    heads = (
        "Each task has a linear head, fitted on the pretrained network's features of "
        f"{training.shots} examples of each class and then frozen, as the first "
        f"{training.frozen_blocks} blocks and the embeddings are. Fine-tuning moves "
        f"all else: {training.steps} steps of {training.batch} examples, out of "
        f"{training.train} of the task. These are small experts; how far a merge is "
        "from them need not be what it is for others."
    )
    searches = (
        f"Each method has {BUDGET} settings at most. With every seed the one that is "
        f"best on {training.validation} validation examples of each task is tested "
        f"once, on at most {study.test} test examples of each. The ranges were moved "
        "in several rounds, by validation: outward where the first seed chose an edge "
        "of what was tried, and for CART and its uncentred form also knowing their "
        "curves over rank and scale, which the others lack. Rounds before the last "
        "had been tested too. "
        "The methods are the best and the best known of those that need no data. "
        "Intervals are over test examples and seeds; as seeds are few, 87 to 95 of a "
        "hundred hold the truth, the fewer the more seeds differ."
    )
    return [
        f"The network is {network}. The tasks are {'; '.join(tasks)}.",
        heads,
        searches,
    ]


def right_answers(notebooks: Iterable[Notebook]) -> dict[str, list[Run]]:
    """What is right on test items, of every method that all seeds have tested."""
    found: dict[str, list[Run]] = {}
    books = list(notebooks)
    for notebook in books:
        references = notebook.known("references")
        tests = {name: one["test"] for name, one in references.items()}
        for name in LABELS:
            if tested := notebook.known(f"test of {name}"):
                tests[name] = tested["outcomes"]
        for name, test in tests.items():
            found.setdefault(name, []).append(unpacked(test))
    return {name: runs for name, runs in found.items() if len(runs) == len(books)}


def _run(notebook: Notebook, name: str, right: Run, experts: Run) -> dict[str, Any]:
    """What one seed has found of a method, or of what is not merged."""
    accuracy = {task: float(x.mean()) for task, x in right.items()}
    run = {
        "setting": {},
        "validation": None,
        "accuracy": accuracy,
        "items": {task: len(x) for task, x in right.items()},
        "mean": float(np.mean(list(accuracy.values()))),
        "normalised": normalised(right, experts),
    }
    reference = notebook.known("references").get(name)
    if reference is not None:
        return run | {"validation": mean(reference["validation"])}
    points = notebook.known(f"points of {name}")
    rows = [
        {
            "setting": setting,
            "validation": float(np.mean(list(scores.values()))),
            "per_task": scores,
            "seconds": merging + evaluating,
        }
        for setting, scores, merging, evaluating in points
    ]
    tested = notebook.known(f"test of {name}")
    return run | {
        "setting": tested["setting"],
        "validation": max(row["validation"] for row in rows),
        "points": rows,
        "merge_seconds": tested["merge_seconds"],
        "search_seconds": sum(row["seconds"] for row in rows),
    }


def _summary(runs: Sequence[Run], every: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Means over seeds, and differences on the same items, with intervals."""
    found: dict[str, Any] = {}
    found["mean"], found["mean_half_width"] = interval(runs)
    for other in ("experts", "joint", "cart", "weight_average"):
        value, half = difference(runs, every[other])
        found[f"over_{other}"], found[f"over_{other}_half_width"] = value, half
    found["accuracy"], found["accuracy_half_width"] = {}, {}
    for task in runs[0]:
        value, half = interval([{task: run[task]} for run in runs])
        found["accuracy"][task], found["accuracy_half_width"][task] = value, half
    found["normalised"] = float(
        np.mean([normalised(*x) for x in zip(runs, every["experts"], strict=True)])
    )
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
        [mean(row["outcomes"]) for row in notebook.known("tested curve of cart")]
        for notebook in notebooks.values()
    ]
    found["cart"]["tested"] = np.mean(tests, axis=0).tolist()
    return found
