"""CART with a rank and a scale found from the weights, against searched ones.

    centermerge demo -o centermerge-demo            # five minutes: the experts
    python -m experiments.data_free centermerge-demo

The searched setting is the best of the registry's grid on validation images; the others
have seen none. All are tested on the demo's test images. Writes `data_free.json` and
`.md` into the folder that `--output` names.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import centermerge_jax as cm
from centermerge_jax.demo import QUICK
from centermerge_jax.evaluate import mean_accuracy, mean_difference
from centermerge_jax.methods import METHODS
from centermerge_jax.packages import versions
from experiments.all_methods import Models, settings_of

RANKS: tuple[dict[str, float], ...] = (
    {"rank": 0.04},
    {"rank": 0.08},
    {"rank": 0.16},
    {"energy": 0.5},
    {"energy": 0.65},
    {"energy": 0.75},
    {"energy": 0.9},
    {"noise": 1.0},
    {"noise": 2.0},
)
SCALES = ("projection", "length")
OF = {"matrix": "of each matrix", "model": "of the model"}
METHOD = {"matrix": "cart_data_free", "model": "cart_data_free_whole"}


def choices() -> Iterator[tuple[dict[str, float], str, str]]:
    """Every rule for ranks, with every one for scales."""
    return itertools.product(RANKS, SCALES, METHOD)


def found(models: Models, rule: Mapping[str, float], match: Any, per: Any) -> Any:
    """Shares of directions and scales that the rules come to, of all matrices."""
    told: dict[str, Any] = {"rank": 1.0, **rule}
    whole = cm.center(models.experts)
    low = cm.truncate(whole, **told)
    matched = cm.rescale(low, match=match, per=per, whole=whole).flat()
    shares, scales = [], []
    for name, (_, delta) in low.flat().items():
        if isinstance(delta, cm.LowRank):
            s = np.asarray(delta.s)
            shares.append((s > 0).sum(-1) / delta.size)
            scales.append(np.max(matched[name][1].s) / max(np.max(s), 1e-30))
    return np.array(shares), np.array(scales)


def row(models: Models, leaves: Any, searched: Any = None) -> dict[str, Any]:
    """Accuracies of merged leaves."""
    outcomes = models.outcomes(leaves, "test")
    mean, half = mean_accuracy(outcomes)
    made: dict[str, Any] = {
        "validation": mean_accuracy(models.outcomes(leaves, "validation"))[0],
        "test": mean,
        "test_half_width": half,
        "accuracy": {task: float(right.mean()) for task, right in outcomes.items()},
    }
    if searched is not None:
        loss, half = mean_difference(outcomes, searched)
        made |= {"minus_searched": loss, "minus_searched_half_width": half}
    return made


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    head = ("ranks", "directions", "scale", "found", "validation", "test", "- searched")
    lines = [head, ("---", "---:", "---", *["---:"] * 4)]
    for each in rows:
        loss = ""
        if "minus_searched" in each:
            loss = (
                f"{100 * each['minus_searched']:+.1f} "
                f"±{100 * each['minus_searched_half_width']:.1f}"
            )
        lines.append(
            (
                each["ranks"],
                each.get("directions", ""),
                each["scale"],
                each.get("found", ""),
                f"{100 * each['validation']:.1f}",
                f"{100 * each['test']:.1f} ±{100 * each['test_half_width']:.1f}",
                loss,
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(
    demo: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    output: Path = Path("experiments/results/data_free"),
) -> None:
    """Compares choices of rank and scale on the experts of a demo.

    Args:
      demo: The folder that `centermerge demo` wrote.
      output: Where results go.
    """
    models = Models.of(demo, QUICK)
    tried = {}
    for setting in settings_of(METHODS["cart"]):
        leaves = cm.cart(models.experts, **setting)
        accuracy = mean_accuracy(models.outcomes(leaves, "validation"))[0]
        tried[accuracy] = setting
    best = tried[max(tried)]
    merged = cm.cart(models.experts, **best)
    searched = models.outcomes(merged, "test")
    average = cm.weight_average(models.experts)
    rows = [
        {"ranks": "all", "scale": "average", **row(models, average, searched)},
        {"ranks": f"{best['rank']:.0%}", "scale": "searched", **row(models, merged)}
        | {"found": str(best["scale"])},
    ]
    for rule, match, per in choices():
        shares, scales = found(models, rule, match, per)
        told: dict[str, Any] = {**rule, "match": match}
        leaves = METHODS[METHOD[per]].function(models.experts, **told)
        ((name, value),) = rule.items()
        rows.append(
            {
                "ranks": f"{name} {value}",
                "directions": f"{100 * shares.mean():.1f} % "
                f"({100 * shares.min():.0f} to {100 * shares.max():.0f})",
                "scale": f"{match}, {OF[per]}",
                "found": f"{np.median(scales):.2f} "
                f"({scales.min():.2f} to {scales.max():.2f})",
                **row(models, leaves, searched),
            }
        )
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "python -m experiments.data_free centermerge-demo",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions("centermerge_jax", "jax", "numpy"),
        "rows": rows,
    }
    (output / "data_free.json").write_text(json.dumps(content, indent=1) + "\n")
    (output / "data_free.md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
