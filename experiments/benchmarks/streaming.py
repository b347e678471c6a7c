"""How long do merges of checkpoints on disk take, and in how much memory?

Models with the shapes of Llama (0.3, 1.2 and 4 GiB in float32) are written once, and
merged by `centermerge merge` in a process of its own for each line. Printed are
seconds, peak resident memory against the budget and against what `centermerge plan`
said before, and bytes a second against a plain read of the inputs and a write of the
output.
mergekit, which `make mergekit` installs, does the same on the same folders, and what
comes out is compared.

Run: python -m experiments.benchmarks.streaming --folder FOLDER_WITH_ROOM
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from centermerge_jax.checkpoints import open_checkpoint
from experiments.benchmarks.made_llamas import SIZES, write_models
from experiments.benchmarks.measuring import RESULTS, save, show

METHODS = ("weight_average", "task_arithmetic", "cart")
SETTINGS = {
    "weight_average": [],
    "task_arithmetic": ["--scale", "0.3", "--base", "base"],
    "cart": ["--rank", "0.08", "--scale", "1.5"],
}
PROGRAM = (sys.executable, "-c", "from centermerge_jax.cli import main; main()")
MERGEKIT = Path("third_party/.venv-mergekit/bin/mergekit-yaml")
REFUSED = 2  # exit status of bad input, such as a budget that cannot be met
_COPY = 2**23  # bytes that a plain copy moves at a time


def main(
    *,
    folder: Path = Path("centermerge-bench"),
    sizes: tuple[str, ...] = ("0.3GiB", "1.2GiB"),
    experts: tuple[int, ...] = (2, 4, 8),
    methods: tuple[Literal["weight_average", "task_arithmetic", "cart"], ...] = METHODS,
    budgets: tuple[str, ...] = ("1GiB", "4GiB"),
    mergekit: Path = MERGEKIT,
    repeats: int = 3,
    quick: bool = False,
    output: Path = RESULTS,
) -> None:
    """Merges, and measures.

    Args:
      folder: Where models are written, and kept for the next time: 15 GB, and 40 GB
        more for 4GiB.
      sizes: Of 5MiB (to try it), 0.3GiB, 1.2GiB and 4GiB.
      experts: Numbers of experts.
      methods: Of weight_average, task_arithmetic and cart.
      budgets: What `--memory` says.
      mergekit: The program `mergekit-yaml`, left out if it is not there.
      repeats: Rounds of what is compared, of which the median is taken.
      quick: The smallest case only.
      output: Folder for `streaming.json` and `streaming.png`.
    """
    if quick:
        sizes, experts, budgets, repeats = ("0.3GiB",), (2,), ("1GiB",), 1
    kit = mergekit if mergekit.exists() else None
    lines: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    for size in sizes:
        models = folder / size
        write_models(SIZES[size], models, experts=max(experts))
        for method, count, budget in itertools.product(methods, experts, budgets):
            lines.append(_memory(models, size, method, count, budget))
            _show_memory(lines[-1:])
        for method in ("weight_average", "task_arithmetic"):
            rates += _rates(models, size, method, max(experts), kit, repeats)
    _show_memory(lines)
    _show_rates(rates)
    record = {"sizes": sizes, "repeats": repeats, "memory": lines, "rates": rates}
    print("written:", save("streaming", record, output))
    draw(rates, output / "streaming.png")


def _memory(
    models: Path, size: str, method: str, count: int, budget: str
) -> dict[str, Any]:
    """One merge: seconds and peak, and what was predicted; or why it is refused."""
    line = {"size": size, "method": method, "experts": count, "budget": budget}
    command = _command(models, method, count)
    plan = [*PROGRAM, "plan", *command, "--json", "--memory", budget]
    planned = subprocess.run(plan, text=True, capture_output=True, check=False)
    if planned.returncode == REFUSED:
        return line | {"refused": planned.stderr.strip()}
    planned.check_returncode()
    found = json.loads(planned.stdout)
    target = models / "merged"
    shutil.rmtree(target, ignore_errors=True)
    merge = ["merge", *command, "-o", str(target), "--memory", budget, "--quiet"]
    seconds, peak = _run([*PROGRAM, *merge])
    shutil.rmtree(target)
    line |= {"seconds": seconds, "peak": peak}
    return line | {"predicted": found["peak_bytes"], "parts": found["parts"]}


def _command(models: Path, method: str, count: int) -> list[str]:
    settings = [str(models / x) if x == "base" else x for x in SETTINGS[method]]
    named = [f"expert{i}={models / f'expert{i}'}" for i in range(count)]
    return [*named, "--method", method, *settings]


def _run(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} failed with status {status}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def _rates(
    models: Path,
    size: str,
    method: str,
    count: int,
    mergekit: Path | None,
    repeats: int,
) -> list[dict[str, Any]]:
    """Bytes a second of ours, of a plain copy and of mergekit, cold and warm."""
    target, other = models / "merged", models / "theirs"
    names = [f"expert{i}" for i in range(count)]
    names += ["base"] * (method == "task_arithmetic")
    files = [models / name / "model.safetensors" for name in names]
    one = files[0].stat().st_size
    moved = one * (len(files) + 1)
    merge = ["merge", *_command(models, method, count), "-o", str(target), "--quiet"]
    ours = [*PROGRAM, *merge]
    peers: dict[str, list[str] | None] = {"copy": None, "ours": ours}
    if mergekit is not None:
        recipe = models / f"{method}.yaml"
        recipe.write_text(_recipe(models, method, names))
        peers["mergekit"] = [
            str(mergekit), str(recipe), str(other), "--lazy-unpickle", "--quiet",
        ]  # fmt: skip
    found = []
    for cold in (True, False):
        seconds: dict[str, list[float]] = {name: [] for name in peers}
        peaks = dict.fromkeys(peers, 0)
        for _ in range(repeats):
            for name, command in peers.items():
                shutil.rmtree(
                    other if name == "mergekit" else target, ignore_errors=True
                )
                _prepare(files, cold=cold)
                if command is None:
                    took, peak = _plain_copy(files, target), 0
                else:
                    took, peak = _run(command)
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak)
        for name, times in seconds.items():
            line = {"size": size, "method": method, "experts": count, "cold": cold}
            took = float(np.median(times))
            line |= {"program": name, "seconds": took, "rate": moved / took}
            found.append(line | {"peak": peaks[name]})
    if mergekit is not None:
        if not (target / "model.safetensors").exists():
            _run(ours)
        difference = _difference(target, other)
        for line in found:
            line["difference"] = difference
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(other, ignore_errors=True)
    return found


def _prepare(files: Sequence[Path], *, cold: bool) -> None:
    """Has the files in the page cache, or out of it."""
    os.sync()
    for file in files:
        with file.open("rb") as stream:
            if cold:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while stream.read(_COPY):
                    pass


def _plain_copy(files: Sequence[Path], target: Path) -> float:
    """Seconds of reading all files and writing as many bytes as the first has."""
    buffer = bytearray(_COPY)
    began = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    target.mkdir()
    with (target / "copy").open("wb", buffering=0) as stream:
        left = files[0].stat().st_size
        while left > 0:
            left -= stream.write(memoryview(buffer)[: min(left, _COPY)])
        os.fsync(stream.fileno())
    return time.perf_counter() - began


def _recipe(models: Path, method: str, names: Sequence[str]) -> str:
    """The same merge as mergekit reads it."""
    parameters = {"weight": 1.0 if method == "weight_average" else 0.3}
    document: dict[str, Any] = {
        "merge_method": "linear" if method == "weight_average" else method,
        "models": [
            {"model": str(models / name), "parameters": parameters}
            for name in names
            if name != "base"
        ],
        "dtype": "float32",
    }
    if method == "task_arithmetic":
        document["base_model"] = str(models / "base")
    return json.dumps(document)  # which is YAML


def _difference(ours: Path, theirs: Path) -> float:
    """The largest of the differences relative to the leaf's largest number."""
    a, b = open_checkpoint(ours), open_checkpoint(theirs)
    worst = 0.0
    for name in a.leaves:
        x, y = np.asarray(a.read(name)), np.asarray(b.read(name))
        worst = max(worst, float(np.abs(x - y).max() / np.abs(x).max()))
    return worst


def _show_memory(lines: Sequence[dict[str, Any]]) -> None:
    columns = ("model", "method", "experts", "budget", "parts", "s", "peak MiB")
    columns += ("peak / budget", "peak / predicted")
    scale = {"1GiB": 2**30, "4GiB": 2**32}
    rows = [
        (
            line["size"], line["method"], line["experts"], line["budget"],
            line["parts"], line["seconds"], line["peak"] / 2**20,
            line["peak"] / scale.get(line["budget"], float("nan")),
            line["peak"] / line["predicted"],
        )
        for line in lines
        if "refused" not in line
    ]  # fmt: skip
    show("Memory", columns, rows)
    for line in lines:
        if "refused" in line:
            named = f"{line['method']}, {line['experts']} x {line['size']}"
            print(f"{named}, {line['budget']}: {line['refused']}")


def _show_rates(rates: Sequence[dict[str, Any]]) -> None:
    copies = {_key(line): line for line in rates if line["program"] == "copy"}
    kits = {_key(line): line for line in rates if line["program"] == "mergekit"}
    rows = []
    for line in rates:
        kit = kits.get(_key(line))
        rows.append(
            (
                line["size"], line["method"], "cold" if line["cold"] else "warm",
                line["program"], line["seconds"], line["rate"] / 1e9,
                line["rate"] / copies[_key(line)]["rate"],
                line["rate"] / kit["rate"] if kit else None,
                line["peak"] / 2**20, line.get("difference"),
            )
        )  # fmt: skip
    columns = ("model", "method", "files", "program", "s", "GB/s", "/ copy")
    show("Rates", (*columns, "/ mergekit", "peak MiB", "difference"), rows)


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["size"], line["method"], line["experts"], line["cold"]


def draw(rates: Sequence[dict[str, Any]], path: Path) -> None:
    """Bytes a second of all programs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.28 * len(rates)), layout="constrained")
    axes = figure.subplots()
    names = [
        f"{r['method']}, {r['size']}, {'cold' if r['cold'] else 'warm'}: {r['program']}"
        for r in rates
    ]
    colours = {"copy": "0.6", "ours": "#1f5fa8", "mergekit": "#c8501e"}
    bars = axes.barh(
        names,
        [line["rate"] / 1e9 for line in rates],
        color=[colours[line["program"]] for line in rates],
    )
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GB/s read and written")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
