r"""A grid of scales and ranks against one merge.

    python -m experiments.benchmarks.sweep            # about 15 minutes
    python -m experiments.benchmarks.sweep --quick    # one minute, one layer

31 scales times 6 ranks, 186 merges of eight experts with the shapes of CLIP ViT-B/32,
by one `cm.truncate` at the largest rank and then, without another factorisation,
- `keep`: `cm.truncate` of the factors (a slice) for each rank, `cm.combine` for each
  scale;
- `mask`: the same under one `jax.jit`, with rank and scale traced: `LowRank.mask`
  leaves the shapes as they are, so it compiles once, and multiplies with zeros for
  small ranks;
- `affine`: a merge is affine in the scale, so one `cm.combine` around an origin of
  zeros for each rank, and an addition for each scale.

Each is compared with what its parts cost by themselves: one factorisation and the
combines (for `affine`, its additions too), timed alone; that ratio should be at most
1.3. And with 186 merges from the start, estimated from one merge at each rank.

Expect the products that add factors up to dominate `keep` and `mask`, and `affine` to
cost no more than a few merges.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import centermerge_jax as cm
from experiments.benchmarks.made_experts import VIEWS, VIT_B_32, experts, merge
from experiments.benchmarks.measuring import RESULTS, once, save, show, timed

RANKS = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16)
SCALES = tuple(round(float(scale), 2) for scale in np.linspace(0, 3, 31))
TASKS = 8

Use = Callable[[Any], None]


def main(
    *,
    quick: bool = False,
    output: Path = RESULTS,
    layers: int | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> None:
    """Sweeps, and measures.

    Args:
      quick: One layer, one round.
      output: Folder for `sweep.json` and `sweep.png`.
      layers: Blocks of the model; all twelve by default.
      repeats: Rounds of the parts, of which the median is taken; sweeps have one.
      seed: Of the experts.
    """
    layers = layers or (1 if quick else VIT_B_32.layers)
    repeats = 1 if quick else repeats
    named = experts(replace(VIT_B_32, layers=layers), tasks=TASKS, seed=seed)
    named = jax.tree.map(jnp.asarray, named)
    tv = factorise(named)
    parts = timed(_parts(named, tv), repeats=repeats)
    sweeps = {"keep": keep_sweep, "mask": mask_sweep, "affine": affine_sweep}
    points = len(RANKS) * len(SCALES)
    lines = {}
    for name, sweep in sweeps.items():
        sweep(tv, RANKS, SCALES[:1], lambda _: None)  # compiles
        spent, _ = once(functools.partial(_whole, sweep, named))
        expected = _expected(name, parts)
        lines[name] = {"seconds": spent, "parts": expected, "ratio": spent / expected}
    afresh = sum(parts[f"merge {rank:g}"] for rank in RANKS) * len(SCALES)
    one = parts["merge 0.16"]
    record = {
        "quick": quick,
        "layers": layers,
        "ranks": RANKS,
        "scales": SCALES,
        "points": points,
        "parts": parts,
        "sweeps": lines,
        "afresh": afresh,
        "largest_difference": _difference(tv, named),
    }
    _show(record, one)
    print("written:", save("sweep", record, output))
    draw(record, output / "sweep.png")


def factorise(named: Any) -> cm.TaskVectors:
    """Once, at the largest rank."""
    return cm.truncate(cm.center(named), rank=max(RANKS), views=VIEWS)


def keep_sweep(tv: cm.TaskVectors, ranks: Any, scales: Any, use: Use) -> None:
    """Slices of the factors, combined."""
    for rank in ranks:
        kept = cm.truncate(tv, rank=rank)
        for scale in scales:
            use(cm.combine(kept, scale=scale))


def mask_sweep(tv: cm.TaskVectors, ranks: Any, scales: Any, use: Use) -> None:
    """Factors with some directions set to zero, combined in one compiled program."""
    for rank in ranks:
        for scale in scales:
            use(_masked(tv, jnp.float32(rank), jnp.float32(scale)))


def affine_sweep(tv: cm.TaskVectors, ranks: Any, scales: Any, use: Use) -> None:
    """The correction once for each rank, added for each scale."""
    for rank in ranks:
        total = correction(cm.truncate(tv, rank=rank))
        for scale in scales:
            use(_add(tv.origin, total, jnp.float32(scale)))


def correction(tv: cm.TaskVectors) -> Any:
    """What one unit of scale adds to the origin."""
    zeros = jax.tree.map(jnp.zeros_like, tv.origin)
    return cm.combine(replace(tv, origin=zeros), scale=1.0)


@jax.jit
def _masked(tv: cm.TaskVectors, rank: Any, scale: Any) -> Any:
    deltas = [
        # As `cm.truncate` counts; the small number makes up for a rounded share.
        delta.mask(jnp.maximum(1, jnp.floor(rank * delta.size + 1e-3)))
        if isinstance(delta, cm.LowRank)
        else delta
        for _, delta in tv.flat().values()
    ]
    return cm.combine(tv.with_deltas(deltas, zero_sum=tv.zero_sum), scale=scale)


@jax.jit
def _add(origin: Any, total: Any, scale: Any) -> Any:
    return jax.tree.map(lambda x, y: x + scale * y, origin, total)


def _whole(sweep: Callable[..., None], named: Any) -> None:
    """From experts to the last merged model, each waited for as its user would."""
    sweep(factorise(named), RANKS, SCALES, jax.block_until_ready)


def _parts(named: Any, tv: cm.TaskVectors) -> dict[str, Callable[[], Any]]:
    """What is timed by itself."""
    total = correction(tv)
    parts: dict[str, Callable[[], Any]] = {
        "factorise": lambda: factorise(named),
        "add": lambda: _add(tv.origin, total, jnp.float32(1.5)),
        "mask": lambda: _masked(tv, jnp.float32(0.04), jnp.float32(1.5)),
    }
    for rank in RANKS:
        kept = cm.truncate(tv, rank=rank)
        parts[f"combine {rank:g}"] = lambda kept=kept: cm.combine(kept, scale=1.5)
        parts[f"merge {rank:g}"] = lambda rank=rank: merge(named, rank=rank)
    return parts


def _expected(name: str, parts: dict[str, float]) -> float:
    """One factorisation and the combines."""
    combines = sum(parts[f"combine {rank:g}"] for rank in RANKS)
    points = len(RANKS) * len(SCALES)
    each = {
        "keep": len(SCALES) * combines,
        "mask": points * parts["mask"],
        "affine": combines + points * parts["add"],
    }
    return parts["factorise"] + each[name]


def _difference(tv: cm.TaskVectors, named: Any) -> float:
    """Of the three ways from `cm.cart`, at one point, relative to the deltas."""
    rank, scale = 0.08, 1.5
    found: list[Any] = []
    for sweep in (keep_sweep, mask_sweep, affine_sweep):
        sweep(tv, (rank,), (scale,), found.append)
    whole = merge(named, rank=rank, scale=scale)
    deltas = [delta for _, delta in cm.center(named).flat().values()]
    norm = float(jnp.sqrt(sum(jnp.sum(delta**2) for delta in deltas)))
    squares = [
        sum(jnp.sum((one[name] - whole[name]) ** 2) for name in whole) for one in found
    ]
    return max(float(jnp.sqrt(square)) for square in squares) / norm


def _show(record: dict[str, Any], one: float) -> None:
    parts, points = record["parts"], record["points"]
    rows: list[tuple[Any, ...]] = [
        (
            name,
            line["seconds"],
            line["parts"],
            line["ratio"],
            line["seconds"] / one,
            record["afresh"] / line["seconds"],
        )
        for name, line in record["sweeps"].items()
    ]
    rows.append((f"{points} merges afresh", record["afresh"], *4 * [None]))
    columns = ("", "seconds", "its parts alone", "/ parts", "/ one merge", "afresh /")
    title = f"{points} merges, ViT-B/32 x {TASKS}, blocks: {record['layers']}"
    show(title, columns, rows)
    show("Parts", ("", "seconds"), list(parts.items()))
    print(f"largest difference from cart: {record['largest_difference']:.1e}")


def draw(record: dict[str, Any], path: Path) -> None:
    """Seconds of the sweeps, of one merge, and of merging afresh."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    names = {
        "keep": "slices",
        "mask": "masks, one program",
        "affine": "affine in scale",
    }
    bars = {f"{record['points']} merges afresh": record["afresh"]}
    bars |= {
        f"sweep, {name}": record["sweeps"][key]["seconds"]
        for key, name in names.items()
    }
    bars["one merge"] = record["parts"]["merge 0.16"]
    colours = ["#c8501e", *3 * ["#1f5fa8"], "0.6"]
    drawn = axes.barh(list(bars), list(bars.values()), color=colours)
    axes.bar_label(drawn, fmt="%.3g s", padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max(bars.values()))
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
