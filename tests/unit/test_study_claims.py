"""Verdicts of the study, on answers that are made up so that the verdict is known."""

import numpy as np
import pytest

from experiments.study.claims import claims
from experiments.study.notebook import Notebook
from experiments.study.questions import RULES, SHARES, SHIFTS
from experiments.study.results import comparison
from experiments.study.search import GRIDS
from experiments.study.settings import TEXT

TASKS = TEXT.training.tasks
ITEMS = 400
PEAK = {0.01: 0.62, 0.02: 0.66, 0.04: 0.7, 0.08: 0.72, 0.16: 0.7, 0.32: 0.64, 0.64: 0.6}
METHODS = {"weight_average": 0.56, "cart": 0.72, "truncated_task_arithmetic": 0.6}


def answers(accuracy, seed=0):
    """Better models have all that worse ones have right, and more."""
    order = np.random.default_rng(1).permutation(ITEMS)  # of the same items always
    right = np.zeros(ITEMS, bool)
    right[order[: round((accuracy + 0.004 * (seed - 0.5)) * ITEMS)]] = True
    text = "".join("1" if x else "0" for x in right)
    return dict.fromkeys(TASKS, text)


def point(setting, accuracy):
    return (setting, dict.fromkeys(TASKS, accuracy), 0.1, 1.0)


def notebook(
    path,
    seed,
    *,
    methods,
    peak,
    ways,
    rest,
    embeddings,
    few,
    interference,
    flank,
):
    book = Notebook(path / f"{seed}.json", {"seed": seed})

    def test(name, accuracy, setting):
        value = {
            "setting": setting,
            "merge_seconds": 1.0,
            "outcomes": answers(accuracy, seed),
        }
        book.note(f"test of {name}", value)

    for name, accuracy in (("pretrained", 0.5), ("joint", 0.74), ("experts", 0.8)):
        both = {kind: answers(accuracy, seed) for kind in ("validation", "test")}
        book.note("references", {**book.known("references", {}), name: both})
    for name, grid in GRIDS["text"].items():
        accuracy = methods.get(name, 0.58)
        setting = {key: values[0] for key, values in grid.items()}
        book.note(f"points of {name}", [point(setting, accuracy)])
        test(name, accuracy, setting)
    for rule in RULES:
        test(rule, 0.7, {})
    for name in ("cart", "truncated_task_arithmetic"):
        scales = {
            "cart": TEXT.centered_scales,
            "truncated_task_arithmetic": TEXT.uncentered_scales,
        }
        whole = peak | {1.0: methods["weight_average"]}
        middle = scales[name][1:-1]
        rows = [
            ({"rank": r, "scale": s}, whole[r] - 0.1 * (s not in (flank or middle)))
            for r in whole
            for s in scales[name]
        ]
        book.note(f"points of curve of {name}", [point(*row) for row in rows])
        tested = [
            {"setting": {"rank": r, "scale": 1.0}, "outcomes": answers(x, seed)}
            for r, x in whole.items()
        ]
        book.note(f"tested curve of {name}", tested)
    for count, gain in few.items():
        some = {0.04: 0.6, 0.16: 0.6 + gain}
        rows = [({"rank": r, "scale": 1.0}, some.get(r, 0.5)) for r in SHARES]
        book.note(f"points of cart of {count} tasks", [point(*row) for row in rows])
    for way, accuracy in ways.items():
        book.note(f"points of cart {way}", [point({}, accuracy)])
        test(f"cart {way}", accuracy, {})
    kinds = {
        way: {"test": answers(rest.get(way, 0.6), seed)} for way in (*SHIFTS, "sum")
    }
    book.note("rest", {"setting": {}, "ways": kinds})
    if embeddings:
        tables = {
            way: {"test": answers(embeddings.get(way, 0.6), seed)}
            for way in (*SHIFTS, "sum", "truncated like matrices")
        }
        value = {"setting": {}, "tasks": TASKS[:3], "ways": tables}
        book.note("embeddings", value)
    book.note("average is its own centre", {"largest_sum_of_vectors": 1e-9})
    shares = [0.04, 0.08, 0.5, 1.0]
    rising = np.array([0.1, 0.2, 0.6, 1.0])
    means = {
        origin: {
            **dict.fromkeys(
                [f"interference_{x}" for x in ("top", "whole", "none")],
                (factor * rising).tolist(),
            ),
            "reconstruction_relative": [0.5, 0.4, 0.1, 0.0],
        }
        for origin, factor in (("mean", interference), ("base", 1.0))
    }
    book.note("analysis", {"shares": shares, "mean_over_matrices": means})
    return book


def verdicts(path, **changed):
    told = {
        "methods": METHODS,
        "peak": PEAK,
        "ways": {"fused": 0.75, "energy": 0.69},
        "rest": {"mean": 0.72},
        "embeddings": {"mean": 0.72},
        "few": {3: -0.05, 4: -0.02},
        "interference": 0.5,
        "flank": None,
        **changed,
    }
    books = {seed: notebook(path, seed, **told) for seed in (0, 1)}
    found = comparison(TEXT, books)
    return {claim["claim"]: claim["verdict"] for claim in claims(found, books)}


def of(found, beginning):
    (verdict,) = [v for claim, v in found.items() if claim.startswith(beginning)]
    return verdict


def test_all_that_is_so_is_shown(tmp_path):
    found = verdicts(tmp_path)
    assert len(found) == 15
    wrong = {
        claim: verdict
        for claim, verdict in found.items()
        if verdict != "shown"
        and not claim.startswith(("A rank for each", "The merged", "A rank and scale"))
    }
    assert not wrong
    assert of(found, "The merged model comes within 1 to 3 % of multi") == "shown"
    assert (
        of(found, "The merged model comes within 1 to 3 % of the ind") == "contradicted"
    )
    assert of(found, "A rank for each matrix") == "contradicted"
    assert of(found, "A rank and scale chosen without data") == "contradicted"


@pytest.mark.parametrize(
    ("beginning", "changed", "verdict"),
    [
        # A plateau to the left, no peak, a peak elsewhere.
        ("Accuracy against", {"peak": {**PEAK, 0.01: 0.719}}, "open"),
        ("Accuracy against", {"peak": dict.fromkeys(PEAK, 0.5)}, "contradicted"),
        ("Eight percent", {"peak": {**PEAK, 0.32: 0.8}}, "contradicted"),
        ("Accuracy against", {"peak": {**PEAK, 0.32: 0.8}}, "shown"),
        # With a smaller scale than any tried, a low rank may be better.
        ("Accuracy against", {"flank": TEXT.centered_scales[:1]}, "open"),
        ("Centred vectors", {"interference": 2.0}, "contradicted"),
        (
            "Centring matters",
            {"methods": METHODS | {"task_arithmetic": 0.8}},
            "contradicted",
        ),
        ("Centring matters", {"methods": METHODS | {"cart": 0.55}}, "contradicted"),
        (
            "Centring matters",
            {"methods": METHODS | {"truncated_task_arithmetic": 0.72}},
            "open",
        ),
        ("CART is better", {"methods": METHODS | {"tsv_m": 0.8}}, "contradicted"),
        # A variant of CART is no rival.
        ("CART is better", {"methods": METHODS | {"cart_tsv": 0.8}}, "shown"),
        ("The best rank grows", {"few": {3: 0.1, 4: 0.05}}, "contradicted"),
        ("The best rank grows", {"few": {3: 0.0, 4: 0.05}}, "open"),
        ("Queries, keys", {"ways": {"fused": 0.6, "energy": 0.7}}, "contradicted"),
        ("Biases and norms", {"rest": {"mean": 0.72, "sum": 0.8}}, "contradicted"),
        ("Biases and norms", {"rest": {"mean": 0.72, "sum": 0.72}}, "open"),
        ("Tables", {"embeddings": {"mean": 0.72, "sum": 0.8}}, "contradicted"),
    ],
)
def test_what_is_not_so_is_not_shown(beginning, changed, verdict, tmp_path):
    found = verdicts(tmp_path, **changed)
    told = {v for claim, v in found.items() if claim.startswith(beginning)}
    assert told == {verdict}


def test_of_embeddings_that_were_frozen_nothing_is_said(tmp_path):
    assert len(verdicts(tmp_path, embeddings=None)) == 14
