"""The paper's claims one by one, with the numbers of a study and a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from centermerge_jax.demo import QUICK
from centermerge_jax.report.wording import at_an_edge, signed
from experiments.study.intervals import Run, difference, interval
from experiments.study.notebook import Notebook
from experiments.study.questions import RULES, SCALES, SHARES, by_share
from experiments.study.results import right_answers
from experiments.study.search import unpacked

Claim = Mapping[str, Any]

_EIGHT = 0.08  # of full rank: where the paper's analysis has the peak
_ROUNDING = 0.005  # accuracy by which two forms of one merge may differ


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
        _bell(books, right),
        *_interference([book.known("analysis") for book in books]),
        _centring(found, right),
        _gap(found, "joint"),
        _gap(found, "experts"),
        _place(found, right),
        *_data_free(books, right),
        _growth(books),
        _eight(books),
        _fused(books, right),
        _energy(books, right),
        _rest(books),
        _embeddings(books),
    ]
    return [claim for claim in told if claim]


def _claim(text: str, numbers: str, verdict: str, figure: str | None = None) -> Claim:
    return {"claim": text, "numbers": numbers, "verdict": verdict, "figure": figure}


def _points(value: float, half: float) -> str:
    """A difference of accuracies, in points."""
    return f"{signed(100 * value)} ± {100 * half:.1f} points"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(value: float, half: float) -> str:
    """Of a difference that is claimed to be positive."""
    if abs(value) <= half:
        return "open"
    return "shown" if value > 0 else "contradicted"


def _own_centre(books: Sequence[Notebook]) -> Claim:
    worst = max(
        book.known("average is its own centre")["largest_sum_of_vectors"]
        for book in books
    )
    return _claim(
        "Weight averaging is task arithmetic around its own centre: vectors around the "
        "mean sum to zero, so any scale gives the mean.",
        f"largest entry of the sum of the stored float32 vectors: {worst:.1e}",
        "shown" if worst < 1e-6 else "contradicted",
    )


def _bell(books: Sequence[Notebook], right: Mapping[str, Sequence[Run]]) -> Claim:
    """The peak is chosen on validation items; what is said of it is of test items."""
    shares, tested, chosen = _tested_curve(books)
    inner = shares[:-1]
    peak = max(inner, key=lambda share: chosen[share])
    gain = difference(tested[peak], right["weight_average"])
    left = difference(tested[peak], tested[shares[0]])
    end, _ = difference(tested[shares[-1]], right["weight_average"])
    means = {share: interval(runs)[0] for share, runs in tested.items()}
    wide = [share for share in shares if means[share] > means[peak] - 0.01]
    ends = "shown" if abs(end) < _ROUNDING else "contradicted"
    if any(_at_an_edge(book, shares[0]) for book in books):
        ends = "open"  # with other scales the flank may be higher
    listed = ", ".join(f"{_percent(means[x])} at {100 * x:g} %" for x in shares)
    return _claim(
        "Accuracy against rank is a bell: the weight average at no and at full rank, a "
        "peak between.",
        f"test accuracy with the best scale at each rank: {listed}. The peak that "
        f"validation chooses, {100 * peak:g} %, is {_points(*gain)} above the average "
        f"and {_points(*left)} above {100 * shares[0]:g} %; less than a point below it "
        f"are {', '.join(f'{100 * share:g}' for share in wide)} %",
        _all([_verdict(*gain), _verdict(*left), ends]),
        "rank-curve",
    )


def _at_an_edge(book: Notebook, share: float) -> bool:
    """Whether the best scale at a rank is an edge of those that were tried."""
    points = [
        (float(np.mean(list(row[1].values()))), row[0]["scale"])
        for row in book.known("points of curve of cart")
        if row[0]["rank"] == share
    ]
    return at_an_edge(max(points)[1], [scale for _, scale in points])


def _tested_curve(
    books: Sequence[Notebook],
) -> tuple[list[float], dict[float, list[Run]], dict[float, float]]:
    """Ranks of CART's curve; at each, test answers by seed and validation accuracy."""
    tested: dict[float, list[Run]] = {}
    chosen: dict[float, list[float]] = {}
    for book in books:
        for row in book.known("tested curve of cart"):
            share = row["setting"]["rank"]
            tested.setdefault(share, []).append(unpacked(row["outcomes"]))
        for share, best in by_share(book.known("points of curve of cart")).items():
            chosen.setdefault(share, []).append(best)
    means = {share: float(np.mean(found)) for share, found in chosen.items()}
    return sorted(tested), tested, means


def _interference(analyses: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of the means over matrices and seeds."""
    shares = np.array(analyses[0]["shares"])
    at = int(np.argmin(np.abs(shares - _EIGHT)))

    def over(origin: str, key: str) -> np.ndarray:
        rows = [one["mean_over_matrices"][origin][key] for one in analyses]
        return np.mean(rows, axis=0)

    told, lower = [], []
    for key, name in (
        ("interference_top", "normalised over the top k"),
        ("interference_whole", "over the whole spectrum"),
        ("interference_none", "not at all, so that shorter vectors count"),
    ):
        by_seed = [one["mean_over_matrices"] for one in analyses]
        below = sum(
            all(one["mean"][key][i] < one["base"][key][i] for one in by_seed)
            for i in range(len(shares))
        )
        centred, base = over("mean", key)[at], over("base", key)[at]
        lower.append(below)
        told.append(
            f"{name}: {below} of {len(shares)} ranks, {centred:.3g} centred and "
            f"{base:.3g} not at {100 * shares[at]:g} %"
        )
    verdict = "mixed" if any(lower) else "contradicted"
    interference = _claim(
        "Centred vectors interfere less than uncentred ones: I(k) is lower at all "
        "ranks.",
        f"lower with every seed (means over seeds), singular values {'; '.join(told)}",
        "shown" if min(lower) == len(shares) else verdict,
        "interference",
    )
    error, whole = over("mean", "reconstruction_relative"), over("mean", _WHOLE)
    kept, conflict = 1 - error[at], whole[at] / whole[-1]
    parts = int(kept >= 0.5) + int(conflict <= 0.5)
    trade_off = _claim(
        "R(k) falls steeply at low rank while I(k) rises gradually, so that a low "
        "rank has most of the tasks and little of their conflict.",
        f"at {100 * shares[at]:g} % of rank {_percent(kept)} of the squared norms "
        f"are there, and {_percent(conflict)} of the I(k) of full rank (over the whole "
        "spectrum, means over seeds)",
        ("contradicted", "mixed", "shown")[parts],
        "interference",
    )
    return [interference, trade_off]


_WHOLE = "interference_whole"


def _centring(found: Mapping[str, Any], right: Mapping[str, Sequence[Run]]) -> Claim:
    """All searched with as many points."""
    truncated = difference(right["cart"], right["truncated_task_arithmetic"])
    plain = difference(right["cart"], right["task_arithmetic"])
    return _claim(
        "Centring matters: truncating vectors around the mean is better than adding "
        "them to the pretrained weights, truncated or not.",
        f"CART against the same without centring: {_points(*truncated)}; against task "
        f"arithmetic {_points(*plain)}; against the average "
        f"{_points(*_over(found['methods']['cart'], 'weight_average'))}",
        _all([_verdict(*truncated), _verdict(*plain)]),
        "rank-curve",
    )


def _over(row: Mapping[str, Any], other: str) -> tuple[float, float]:
    return row[f"over_{other}"], row[f"over_{other}_half_width"]


_TRAINING = {
    "joint": ". Joint training saw as many items in all as the experts together, in as "
    "many steps of the same batch and learning rate",
    "experts": "",
}


def _gap(found: Mapping[str, Any], other: str) -> Claim:
    value, half = _over(found["methods"]["cart"], other)
    names = {"joint": "multi-task learning", "experts": "the individual experts"}
    return _claim(
        f"The merged model comes within 1 to 3 % of {names[other]} (here: is at most "
        "three points below).",
        f"CART minus {other}: {_points(value, half)}{_TRAINING[other]}",
        _verdict(value + 0.03, half),
        "gaps",
    )


def _place(found: Mapping[str, Any], right: Mapping[str, Sequence[Run]]) -> Claim:
    """Against the method that validation finds best of those that are not CART's."""
    rows = {
        name: row
        for name, row in found["methods"].items()
        if row["group"] != "reference"
    }
    order = sorted(rows, key=lambda name: -rows[name]["mean"])
    rival = max(
        (name for name in rows if not name.startswith("cart")),
        key=lambda name: np.mean([run["validation"] for run in rows[name]["runs"]]),
    )
    value, half = difference(right["cart"], right[rival])
    best = ", ".join(
        f"{rows[n]['label']} {_percent(rows[n]['mean'])}"
        for n in dict.fromkeys([*order[:3], "cart"])
    )
    return _claim(
        "CART is better than the other static merging methods that were tried.",
        f"place {1 + order.index('cart')} of {len(order)}, the best {best}; CART minus "
        f"{rows[rival]['label']}, the other that is best on validation: "
        f"{_points(value, half)}",
        _verdict(value, half),
        "accuracy",
    )


def _data_free(
    books: Sequence[Notebook], right: Mapping[str, Sequence[Run]]
) -> list[Claim]:
    if "cart_data_free" not in right:
        return []
    value, half = difference(right["cart_data_free"], right["cart"])
    others = "; ".join(
        f"{rule}: {_points(*difference(_tests(books, rule), right['cart']))}"
        for rule in RULES
    )
    seen = sorted(set(QUICK.tasks) & set(right["cart"][0]))
    chosen = f". The rule was chosen on experts of {', '.join(seen)}" if seen else ""
    return [
        _claim(
            "A rank and scale chosen without data are within a point of searched ones "
            "(the paper has no rule).",
            f"8 % of rank, scale by projection, minus searched: "
            f"{_points(value, half)}{chosen}. Other rules: {others}",
            _verdict(value + 0.01, half),
        )
    ]


def _growth(books: Sequence[Notebook]) -> Claim | None:
    """High against low rank at each number of tasks; single best ranks are noise."""
    low, high = _EIGHT / 2, 2 * _EIGHT
    gains: dict[str, list[float]] = {}
    best: dict[str, list[str]] = {}
    for book in books:
        searches = {
            f"{count} tasks": book.known(f"points of cart of {count} tasks")
            for count in (3, 4, 6)
        }
        searches["all tasks"] = [
            row
            for row in book.known("points of curve of cart")
            if row[0]["rank"] in SHARES and row[0]["scale"] in SCALES
        ]
        for name, points in searches.items():
            found = by_share(points or [])
            if {low, high} <= found.keys():
                gains.setdefault(name, []).append(found[high] - found[low])
                top = max(found, key=lambda share: found[share])
                best.setdefault(name, []).append(f"{100 * top:g} %")
    if len(gains) < 2:
        return None
    first, *_, last = gains.values()
    told = "; ".join(
        f"{name}: {signed(100 * float(np.mean(x)))} (best {', '.join(best[name])})"
        for name, x in gains.items()
    )
    change, half = _over_seeds(np.subtract(last, first))
    return _claim(
        "The best rank grows with the number of tasks (as the published settings do: "
        "12, 16, 32 % for 8, 14, 20 tasks).",
        f"{100 * high:g} % minus {100 * low:g} % of rank in points on validation, each "
        f"with its best scale: {told}; from {next(iter(gains))} to all tasks "
        f"{_points(change, half)}. Fewer tasks are also other tasks",
        _verdict(change, half),
    )


def _over_seeds(values: np.ndarray) -> tuple[float, float]:
    """The mean and the half-width of its 95 % interval, from their spread alone."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), np.inf
    error = np.std(values, ddof=1) / np.sqrt(count)
    return float(np.mean(values)), float(stats.t.ppf(0.975, count - 1) * error)


def _eight(books: Sequence[Notebook]) -> Claim:
    """The best rank is chosen on validation items, so that 8 % can also be better."""
    eight, best, ranks = [], [], []
    for book in books:
        found = by_share(book.known("points of curve of cart"))
        share = max(found, key=lambda share: found[share])
        tested = {
            row["setting"]["rank"]: unpacked(row["outcomes"])
            for row in book.known("tested curve of cart")
        }
        eight.append(tested[_EIGHT])
        best.append(tested[share])
        ranks.append(f"{100 * share:g} %")
    value, half = difference(eight, best)
    return _claim(
        "Eight percent of full rank, where the paper has the peak, is a good rule: "
        "within a point of the rank that validation chooses.",
        f"test accuracy at 8 % minus that at the chosen rank ({', '.join(ranks)} by "
        f"seed), each with its best scale: {_points(value, half)}",
        _verdict(value + 0.01, half),
        "rank-curve",
    )


def _tests(books: Sequence[Notebook], name: str) -> list[Run]:
    return [unpacked(book.known(f"test of {name}")["outcomes"]) for book in books]


def _fused(books: Sequence[Notebook], right: Mapping[str, Sequence[Run]]) -> Claim:
    """On test items as chosen, and on validation items at all settings tried."""
    value, half = difference(_tests(books, "cart fused"), right["cart"])
    means = [
        [np.mean(list(row[1].values())) for row in book.known(f"points of {name}")]
        for book in books
        for name in ("cart fused", "cart")
    ]
    everywhere = float(np.mean(means[::2]) - np.mean(means[1::2]))
    agreed = value * everywhere > 0
    return _claim(
        "Queries, keys and values as one matrix (the published code) are better than "
        "as three.",
        "fused minus split, each with its best rank and scale: "
        f"{_points(value, half)}; on validation at the same settings "
        f"{signed(100 * everywhere)} points on average",
        _verdict(value, half) if agreed else "open",
    )


def _energy(books: Sequence[Notebook], right: Mapping[str, Sequence[Run]]) -> Claim:
    value, half = difference(_tests(books, "cart energy"), right["cart"])
    return _claim(
        "A rank for each matrix (by a share of its energy) is better than one share "
        "of rank for all.",
        "by energy minus by share, both searched with as many points: "
        f"{_points(value, half)}",
        _verdict(value, half),
    )


def _rest(books: Sequence[Notebook]) -> Claim:
    told, verdict = _against_mean([book.known("rest")["ways"] for book in books])
    return _claim(
        "Biases and norms are best averaged, as CART does.",
        f"their mean {told}. Rank and scale are those chosen with the mean. Embeddings "
        "stayed as pretrained in these experts",
        verdict,
    )


def _embeddings(books: Sequence[Notebook]) -> Claim | None:
    """Where there are experts whose embeddings were fine-tuned."""
    found = [book.known("embeddings") for book in books]
    if not all(found):
        return None
    told, verdict = _against_mean([one["ways"] for one in found])
    return _claim(
        "Tables of embeddings are best averaged, as CART does.",
        f"their mean {told}. These are other experts, of {len(found[0]['tasks'])} "
        "tasks by seed, in which nothing was frozen; rank and scale are those chosen "
        "with the mean",
        verdict,
    )


def _against_mean(found: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """By seed, outcomes of ways to treat some leaves: the mean against the others."""
    tests = {way: [unpacked(ways[way]["test"]) for ways in found] for way in found[0]}
    rows = {
        way: difference(tests["mean"], runs)
        for way, runs in tests.items()
        if way != "mean"
    }
    told = "; ".join(f"against {way}: {_points(*row)}" for way, row in rows.items())
    return told, _all(_verdict(*row) for row in rows.values())


def _all(verdicts: Iterable[str]) -> str:
    """Of a claim that needs all of several things."""
    found = set(verdicts)
    if found == {"shown"}:
        return "shown"
    return "contradicted" if "contradicted" in found else "open"
