"""The paper's claims one by one, with the numbers of a study and a verdict."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.study.intervals import Run, difference
from experiments.study.notebook import Notebook
from experiments.study.questions import best_share
from experiments.study.results import right_answers
from experiments.study.search import unpacked

Claim = Mapping[str, Any]

_EIGHT = 0.08  # of full rank: where the paper's analysis has the peak


def claims(
    found: Mapping[str, Any],
    notebooks: Mapping[int, Notebook],
) -> list[Claim]:
    """All of them, in the order in which the paper makes them.

    Args:
      found: From `results.comparison`.
      notebooks: Of all seeds.
    """
    books = list(notebooks.values())
    right = right_answers(books)
    told = [
        _own_centre(books),
        _bell(found),
        *_interference([book.known("analysis") for book in books]),
        _centring(found, right),
        _gap(found, "joint"),
        _gap(found, "experts"),
        _place(found, right),
        *_data_free(found),
        _growth(books),
        _eight(books),
        _fused(books),
        _energy(books),
        _rest(books),
    ]
    return [claim for claim in told if claim]


def _claim(text: str, numbers: str, verdict: str, figure: str | None = None) -> Claim:
    return {"claim": text, "numbers": numbers, "verdict": verdict, "figure": figure}


def _points(value: float, half: float) -> str:
    """A difference of accuracies, in points."""
    return f"{100 * value:+.1f} ± {100 * half:.1f} points"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(value: float, half: float) -> str:
    """Of a difference that is claimed to be positive."""
    if abs(value) <= half:
        return "mixed"
    return "shown" if value > 0 else "not shown"


def _own_centre(books: Sequence[Notebook]) -> Claim:
    worst = max(
        book.known("average is its own centre")["largest_sum_of_vectors"]
        for book in books
    )
    return _claim(
        "Weight averaging is task arithmetic around its own centre: vectors around the "
        "mean sum to zero, so any scale gives the mean.",
        f"largest entry of the sum of the stored float32 vectors: {worst:.1e}",
        "shown" if worst < 1e-6 else "not shown",
    )


def _bell(found: Mapping[str, Any]) -> Claim:
    curve = found["curves"]["cart"]
    tested, shares = curve["tested"], curve["shares"]
    top = int(np.argmax(tested))
    average = found["methods"]["weight_average"]["mean"]
    inside = 0 < top < len(shares) - 1 and abs(tested[-1] - average) < 0.005
    return _claim(
        "Accuracy against rank is a bell: both ends are the weight average, the peak "
        "is in between, near 8 % of full rank.",
        f"test accuracy with the scale chosen at each rank: {_percent(tested[0])} at "
        f"{100 * shares[0]:g} %, {_percent(tested[top])} at {100 * shares[top]:g} % "
        f"(best), {_percent(tested[-1])} at full rank; the average has "
        f"{_percent(average)}",
        "shown" if inside else "mixed",
        "rank-curve",
    )


def _interference(analyses: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of the means over matrices and seeds."""
    shares = np.array(analyses[0]["shares"])
    at = int(np.argmin(np.abs(shares - _EIGHT)))

    def over(origin: str, key: str) -> np.ndarray:
        rows = [one["mean_over_matrices"][origin][key] for one in analyses]
        return np.mean(rows, axis=0)

    told = []
    for key, name in (
        ("interference_top", "singular values normalised over the top k"),
        ("interference_whole", "singular values normalised over the whole spectrum"),
        ("interference_none", "singular values as they are"),
    ):
        centred, base = over("mean", key), over("base", key)
        below = int(np.sum(centred < base))
        verdict = "mixed" if below else "not shown"
        told.append(
            _claim(
                "Centred vectors interfere less than uncentred ones: I(k) is lower at "
                f"all ranks ({name}).",
                f"lower at {below} of {len(shares)} ranks; at {100 * shares[at]:g} %: "
                f"{centred[at]:.3g} centred, {base[at]:.3g} not; at full rank "
                f"{centred[-1]:.3g} and {base[-1]:.3g}",
                "shown" if below == len(shares) else verdict,
                "interference",
            )
        )
    error, whole = over("mean", "reconstruction_relative"), over("mean", _WHOLE)
    kept, conflict = 1 - error[at], whole[at] / whole[-1]
    told.append(
        _claim(
            "R(k) falls steeply at low rank while I(k) rises gradually, so that a low "
            "rank has most of the tasks and little of their conflict.",
            f"at {100 * shares[at]:g} % of rank {_percent(kept)} of the squared norms "
            f"are there, and {_percent(conflict)} of the I(k) of full rank",
            "shown" if kept > conflict else "not shown",
            "interference",
        )
    )
    return told


_WHOLE = "interference_whole"


def _centring(found: Mapping[str, Any], right: Mapping[str, Sequence[Run]]) -> Claim:
    """Both searched with as many points."""
    value, half = difference(right["cart"], right["truncated_task_arithmetic"])
    return _claim(
        "Centring matters: truncating vectors around the mean is better than "
        "truncating them around the pretrained weights.",
        f"CART against the same without centring: {_points(value, half)}; against the "
        f"average {_points(*_over(found['methods']['cart'], 'weight_average'))}",
        _verdict(value, half),
        "rank-curve",
    )


def _over(row: Mapping[str, Any], other: str) -> tuple[float, float]:
    return row[f"over_{other}"], row[f"over_{other}_half_width"]


def _gap(found: Mapping[str, Any], other: str) -> Claim:
    value, half = _over(found["methods"]["cart"], other)
    names = {"joint": "multi-task learning", "experts": "the individual experts"}
    return _claim(
        f"The merged model comes within 1 to 3 % of {names[other]}.",
        f"CART minus {other}: {_points(value, half)}",
        _verdict(value + 0.03, half),
        "gaps",
    )


def _place(found: Mapping[str, Any], right: Mapping[str, Sequence[Run]]) -> Claim:
    rows = {
        name: row["mean"]
        for name, row in found["methods"].items()
        if row["group"] != "reference"
    }
    order = sorted(rows, key=lambda name: -rows[name])
    other = next(name for name in order if name != "cart")
    value, half = difference(right["cart"], right[other])
    labels = {name: found["methods"][name]["label"] for name in rows}
    best = ", ".join(f"{labels[n]} {_percent(rows[n])}" for n in order[:4])
    return _claim(
        "CART is better than all other static merging methods.",
        f"place {1 + order.index('cart')} of {len(order)}: {best}; CART "
        f"{_percent(rows['cart'])}; CART minus {labels[other]}: {_points(value, half)}",
        _verdict(value, half),
        "accuracy",
    )


def _data_free(found: Mapping[str, Any]) -> list[Claim]:
    row = found["methods"].get("cart_data_free")
    if row is None:
        return []
    value, half = _over(row, "cart")
    return [
        _claim(
            "A rank and scale chosen without data are within a point of searched ones "
            "(the paper has no rule).",
            f"without data minus searched: {_points(value, half)}",
            _verdict(value + 0.01, half),
        )
    ]


def _growth(books: Sequence[Notebook]) -> Claim | None:
    rows: dict[int, list[float]] = {}
    for book in books:
        for count in (3, 4, 6):
            if some := book.known(f"points of cart of {count} tasks"):
                rows.setdefault(count, []).append(best_share(some)[0])
        whole = book.known("points of cart split")
        rows.setdefault(10**6, []).append(best_share(whole)[0])
    if len(rows) < 2:
        return None
    told = "; ".join(
        f"{'all' if count == 10**6 else count} tasks: "
        + ", ".join(f"{100 * share:g} %" for share in shares)
        for count, shares in sorted(rows.items())
    )
    means = [float(np.mean(np.log(shares))) for _, shares in sorted(rows.items())]
    grows = all(a < b for a, b in itertools.pairwise(means))
    return _claim(
        "The best rank grows with the number of tasks (as the published settings do: "
        "12, 16, 32 % for 8, 14, 20 tasks).",
        f"best rank on validation, by seed: {told}",
        "shown" if grows else "not shown" if means[-1] <= means[0] else "mixed",
    )


def _eight(books: Sequence[Notebook]) -> Claim:
    """The best rank is chosen on validation items, so that 8 % can also be better."""
    eight, best, ranks = [], [], []
    for book in books:
        share, _ = best_share(book.known("points of curve of cart"))
        tested = {
            row["setting"]["rank"]: unpacked(row["outcomes"])
            for row in book.known("tested curve")
        }
        eight.append(tested[_EIGHT])
        best.append(tested[share])
        ranks.append(f"{100 * share:g} %")
    value, half = difference(eight, best)
    return _claim(
        "Eight percent of full rank is a good rule: within a point of the rank that "
        "validation chooses.",
        f"test accuracy at 8 % minus that at the chosen rank ({', '.join(ranks)} by "
        f"seed), each with its best scale: {_points(value, half)}",
        _verdict(value + 0.01, half),
        "rank-curve",
    )


def _tests(books: Sequence[Notebook], name: str) -> list[Run]:
    return [unpacked(book.known(f"test of {name}")["outcomes"]) for book in books]


def _fused(books: Sequence[Notebook]) -> Claim:
    split = _tests(books, "cart split")
    value, half = difference(_tests(books, "cart fused"), split)
    return _claim(
        "Queries, keys and values as one matrix (the published code) are better than "
        "as three.",
        f"fused minus split, each with its best rank and scale: {_points(value, half)}",
        _verdict(value, half),
    )


def _energy(books: Sequence[Notebook]) -> Claim:
    split = _tests(books, "cart split")
    value, half = difference(_tests(books, "cart energy"), split)
    return _claim(
        "A rank for each matrix (by a share of its energy) is better than one share "
        "of rank for all.",
        f"by energy minus by share, each with its best scale: {_points(value, half)}",
        _verdict(value, half),
    )


def _rest(books: Sequence[Notebook]) -> Claim:
    mean, base, added = (
        [unpacked(book.known("rest")["ways"][way]["test"]) for book in books]
        for way in ("mean", "base", "sum")
    )
    rows = [difference(mean, other) for other in (base, added)]
    return _claim(
        "Biases and norms are best averaged, as CART does.",
        f"their mean against leaving them pretrained: {_points(*rows[0])}; against "
        f"adding all their task vectors: {_points(*rows[1])}",
        _all(_verdict(*row) for row in rows),
    )


def _all(verdicts: Iterable[str]) -> str:
    """Of a claim that needs all of several things."""
    found = set(verdicts)
    if found == {"shown"}:
        return "shown"
    return "not shown" if "not shown" in found else "mixed"
