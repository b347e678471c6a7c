r"""A whole merge against the paper's algorithm as its authors run it.

    python -m experiments.benchmarks.whole_merge            # about 10 minutes
    python -m experiments.benchmarks.whole_merge --quick    # one layer: a minute or two
    python -m experiments.benchmarks.whole_merge --full     # all of L/14 in PyTorch

`cart` at rank 8 % and scale 1.5 for eight experts with the shapes of the image encoders
of CLIP ViT-B/32 and ViT-L/14 (see `made_experts.py`), against the same formula in
PyTorch: for each matrix and task the full thin SVD in float32, the leading triplets
multiplied out, summed over the tasks and added to the mean; and against the floor of
`floor.py`. PyTorch has for each shape the number of threads that is faster there. It is
timed on a sample of the layers of ViT-L/14 and scaled up, unless `--full` is given.
Both results have to agree to 1e-4 of `sqrt(sum_t |D_t|^2)`, the norm of the centred
task vectors. A fresh process then measures the memory beyond inputs and output, first
without and then with the programs compiled already, under two budgets.

Expect several times less time than PyTorch, more so for ViT-L/14; agreement of some
3e-5; a peak below the budget plus a quarter of one expert.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import floor
from experiments.benchmarks.made_experts import (
    ARCHITECTURES,
    RANK,
    SCALE,
    Architecture,
    experts,
    merge,
    prefix,
)
from experiments.benchmarks.measuring import (
    RESULTS,
    once,
    product_rate,
    save,
    show,
    timed,
    torch_or_none,
    torch_threads,
)

MODULE = "experiments.benchmarks.whole_merge"
TASKS = 8
SAMPLE = 2
"""Layers of a large model that PyTorch does; the others are alike."""
BUDGETS = (2**30, 2**28)

Part = Literal["all", "time", "memory"]


def main(
    *,
    quick: bool = False,
    full: bool = False,
    output: Path = RESULTS,
    models: tuple[str, ...] = tuple(ARCHITECTURES),
    repeats: int = 3,
    seed: int = 0,
    part: Part = "all",
) -> None:
    """Merges, and measures.

    Args:
      quick: One layer of each model, one round.
      full: PyTorch does all layers.
      output: Folder for `whole_merge.json` and `whole_merge.png`.
      models: Of b32 and l14.
      repeats: Rounds of ours, of which the median is taken; PyTorch has one.
      seed: Of the experts.
      part: For the program's own use: what this process measures.
    """
    settings = {"quick": quick, "full": full, "repeats": 1 if quick else repeats}
    settings["seed"] = seed
    if part != "all":
        (model,) = models
        architecture = _shortened(ARCHITECTURES[model], 1 if quick else None)
        measure = {"time": _measure_time, "memory": _measure_memory}[part]
        print(json.dumps(measure(architecture, **settings)))
        return
    found = {}
    for model in models:
        # The memory of one measurement must not be there in the next.
        parts = ("time", "memory")
        found[model] = {part: _in_process(model, part, sys.argv[1:]) for part in parts}
        _show(model, found[model])
    record = {**settings, "tasks": TASKS, "rank": RANK, "scale": SCALE, "models": found}
    print("written:", save("whole_merge", record, output))
    draw(found, output / "whole_merge.png")


def _in_process(model: str, part: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", MODULE, *arguments]
    command += ["--models", model, "--part", part]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure_time(
    architecture: Architecture, *, quick: bool, full: bool, repeats: int, seed: int
) -> dict[str, Any]:
    named = _on_device(experts(architecture, tasks=TASKS, seed=seed))
    first, merged = once(lambda: merge(named))
    ours = timed({"ours": lambda: merge(named)}, repeats=repeats, warm_up=False)["ours"]
    rate = product_rate()
    base = _floor(architecture, named, repeats=1 if quick else 3)
    found = {
        "name": architecture.name,
        "layers": architecture.layers,
        "first_call": first,
        "seconds": ours,
        "floor": base.operations / rate,
        "products": base.seconds,
        "product_rate_gflops": rate / 1e9,
        "centred": _norms(architecture, named),
    }
    if torch_or_none() is not None:
        large = architecture.layers > 12 and not full
        found["torch"] = _measure_torch(
            architecture, named, merged, layers=SAMPLE if large else None
        )
    return found


def _measure_torch(
    architecture: Architecture, named: Any, merged: Any, *, layers: int | None
) -> dict[str, Any]:
    """Seconds of the formula in PyTorch, and its distance from our result."""
    import torch  # pyright: ignore[reportMissingImports]  no dependency

    layers = min(layers or architecture.layers, architecture.layers)
    trees = {
        task: {name: torch.from_dlpack(leaf) for name, leaf in tree.items()}
        for task, tree in named.items()
    }
    sample = set(_matrix_names(architecture, range(layers)))
    every = set(_matrix_names(architecture, range(architecture.layers)))
    _paper([tree[min(sample)] for tree in trees.values()])  # threads and pages
    threads = _fastest_threads(
        {
            name: [tree[name] for tree in trees.values()]
            for name in _matrix_names(architecture, [0])
        }
    )
    seconds = {"matrices": 0.0, "others": 0.0}
    squares, norm = 0.0, 0.0
    for name in merged:
        if name in every - sample:
            continue
        leaves = [tree[name] for tree in trees.values()]
        kind = "matrices" if name in sample else "others"
        torch.set_num_threads(threads[tuple(leaves[0].shape)] if name in sample else 1)
        rule: Callable[..., Any] = _paper if name in sample else _mean
        spent, theirs = once(partial(rule, leaves))
        seconds[kind] += spent
        ours = np.float64(merged[name])
        squares += float(np.sum((ours - theirs.double().numpy()) ** 2))
        if name in sample:
            stacked = np.stack([leaf.numpy() for leaf in leaves]).astype(np.float64)
            norm += float(np.sum((stacked - stacked.mean(axis=0)) ** 2))
    scaled = seconds["matrices"] * architecture.layers / layers
    return {
        "layers": layers,
        "seconds": scaled + seconds["others"],
        "difference": (squares / norm) ** 0.5,
        "threads": {"x".join(map(str, shape)): t for shape, t in threads.items()},
    }


def _fastest_threads(first: dict[str, list[Any]]) -> dict[tuple[int, ...], int]:
    """For each shape the number of threads with which PyTorch is faster."""
    import torch  # pyright: ignore[reportMissingImports]  no dependency

    fastest = {}
    for leaves in first.values():

        def solve(threads: int, x: Any = leaves[1] - leaves[0]) -> Any:
            torch.set_num_threads(threads)
            return torch.linalg.svd(x, full_matrices=False)

        calls = {str(t): partial(solve, t) for t in torch_threads()}
        seconds = timed(calls, repeats=2)
        fastest[tuple(leaves[0].shape)] = int(min(seconds, key=lambda t: seconds[t]))
    return fastest


def _paper(leaves: list[Any]) -> Any:
    """`mean + scale * sum_t SVD_k(theta_t - mean)`, with full decompositions."""
    import torch  # pyright: ignore[reportMissingImports]  no dependency

    mean = _mean(leaves)
    total = torch.zeros_like(mean)
    for leaf in leaves:
        u, s, vh = torch.linalg.svd(leaf - mean, full_matrices=False)
        k = max(1, int(RANK * len(s)))
        total += u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
    return mean + SCALE * total


def _mean(leaves: list[Any]) -> Any:
    import torch  # pyright: ignore[reportMissingImports]  no dependency

    return torch.mean(torch.stack(leaves), dim=0)


def _measure_memory(
    architecture: Architecture, *, quick: bool, full: bool, repeats: int, seed: int
) -> dict[str, Any]:
    """Bytes beyond inputs and output, for each budget."""
    del quick, full, repeats
    named = _on_device(experts(architecture, tasks=TASKS, seed=seed))
    one = _bytes(next(iter(named.values())))
    peaks = []
    for budget in BUDGETS:
        for compiled in (False, True):
            call = partial(merge, named, memory=budget)
            extra, seconds = _peak(call)
            allowed = budget + one // 4
            peaks.append(
                {
                    "budget": budget,
                    "compiled_before": compiled,
                    "extra": extra,
                    "allowed": allowed,
                    "seconds": seconds,
                }
            )
    return {"expert": one, "experts": TASKS * one, "peaks": peaks}


def _peak(call: Callable[[], Any]) -> tuple[int, float]:
    """Bytes that a call takes at most beyond what it returns, and its seconds."""
    gc.collect()
    # What was freed goes back to the system, or the call could hide in it.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    seconds, result = once(call)
    return _status("VmHWM") - before - _bytes(result), seconds


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _on_device(named: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """JAX arrays; each NumPy array is let go once it is copied."""
    for tree in named.values():
        for name in tree:
            tree[name] = jnp.asarray(tree[name])
    return named


def _matrix_names(architecture: Architecture, layers: Iterable[int]) -> list[str]:
    leaves = architecture.matrices()
    return [f"{prefix(layer)}.{leaf}" for layer in layers for leaf in leaves]


def _floor(architecture: Architecture, named: Any, *, repeats: int) -> floor.Floor:
    """The products of all matrices, timed on those of one layer."""
    operations = seconds = 0.0
    for name, (_, shape) in zip(
        _matrix_names(architecture, [0]), architecture.matrices().values(), strict=True
    ):
        x = np.stack([tree[name] for tree in named.values()])
        k = max(1, int(RANK * min(shape)))
        base = floor.products(x, k, combine=True, repeats=repeats)
        operations += base.operations
        seconds += base.seconds
    return floor.Floor(operations, seconds).times(architecture.layers)


def _norms(architecture: Architecture, named: Any) -> dict[str, list[float]]:
    """Some singular values of centred task vectors, relative to the largest."""
    shares, found = (0.01, 0.08, 0.16, 0.5), {}
    for name, (kind, _) in zip(
        _matrix_names(architecture, [0]), architecture.matrices().values(), strict=True
    ):
        x = np.stack([tree[name] for tree in named.values()])
        s = np.linalg.svd(x[0] - x.mean(axis=0), compute_uv=False)
        found[kind] = [
            round(float(s[int(share * len(s))] / s[0]), 4) for share in shares
        ]
    return found


def _shortened(architecture: Architecture, layers: int | None) -> Architecture:
    if layers is None:
        return architecture
    return Architecture(**{**vars(architecture), "layers": layers})


def _show(model: str, found: dict[str, Any]) -> None:
    time, memory = found["time"], found["memory"]
    rows = [("ours", time["seconds"]), ("ours, first call", time["first_call"])]
    if "torch" in time:
        sample = time["torch"]["layers"]
        note = "" if sample == time["layers"] else f" (from {sample} layers)"
        rows.append((f"torch full SVD{note}", time["torch"]["seconds"]))
    rows += [
        ("floor: products timed", time["products"]),
        ("floor: at the rate of a large product", time["floor"]),
    ]
    title = f"{time['name']} x {TASKS}, {time['layers']} layers, rank {100 * RANK:g} %"
    ours = time["seconds"]
    table = [(name, value, value / ours, ours / value) for name, value in rows]
    show(title, ("", "seconds", "this / ours", "ours / this"), table)
    if "torch" in time:
        print(f"difference from torch: {time['torch']['difference']:.1e} (target 1e-4)")
    columns = ("budget MiB", "extra MiB", "allowed MiB", "extra / allowed", "compiled")
    lines = [
        (
            peak["budget"] // 2**20,
            peak["extra"] // 2**20,
            peak["allowed"] // 2**20,
            peak["extra"] / peak["allowed"],
            "before" if peak["compiled_before"] else "in this call",
        )
        for peak in memory["peaks"]
    ]
    title = f"{model}: peak beyond inputs and output; experts: "
    show(title + f"{memory['experts'] // 2**20} MiB", columns, lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Seconds of ours, PyTorch and the floor, for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found) + 1, 2.6), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, model in zip(axes, found.values(), strict=True):
        time = model["time"]
        bars = {"torch, full SVDs": time.get("torch", {}).get("seconds", 0)}
        bars |= {"centermerge_jax": time["seconds"]}
        bars |= {"the products alone": time["products"]}
        colours = ("#c8501e", "#1f5fa8", "0.6")
        drawn = axis.barh(list(bars), list(bars.values()), color=colours)
        axis.bar_label(drawn, fmt="%.3g s", padding=3, fontsize=8)
        axis.set_xlim(0, 1.2 * max(bars.values()))
        axis.invert_yaxis()
        axis.set_xlabel("seconds")
        axis.set_title(
            f"{time['name']} x {TASKS}, {time['layers']} layers", fontsize=10
        )
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
