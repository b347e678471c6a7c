"""How the benchmarks measure and record: timing, the machine, tables, JSON.

Every program times its peers in turn, round by round, so that a slow minute of the
machine falls on all of them, never two at once, and takes medians.
"""

import datetime as dt
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import threadpoolctl
from rich.console import Console
from rich.table import Table

from centermerge_jax.packages import versions

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "benchmarks"

QUIET = 0.03
"""Share of the cores that others may use before a run is called busy."""

_PACKAGES = ("centermerge_jax", "jax", "jaxlib", "numpy", "scipy", "torch")


def timed(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    warm_up: bool = True,
) -> dict[str, float]:
    """Median seconds of each candidate; all of them take turns.

    Args:
      candidates: What to call, by name; JAX results are waited for.
      repeats: Rounds.
      warm_up: Whether each is called once before, for compilation and first touches.
    """
    if warm_up:
        for call in candidates.values():
            jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            seconds[name].append(once(call)[0])
    return {name: statistics.median(times) for name, times in seconds.items()}


def once(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it returned."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def side_by_side(calls: Sequence[Callable[[], Any]]) -> None:
    """Calls all, as many at a time as there are cores, each with one BLAS thread."""
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(cores()) as pool,
    ):
        for future in [pool.submit(call) for call in calls]:
            future.result()


def product_rate(size: int = 2048, *, repeats: int = 5) -> float:
    """Operations a second of a float32 matrix product on all cores, the best seen.

    The best, not the median: this is what floors are computed from.
    """
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((size, size), np.float32) for _ in "xy")
    best = min(once(lambda: x @ y)[0] for _ in range(repeats + 1))
    return 2 * size**3 / best


def machine() -> dict[str, Any]:
    """Versions, processor and threads, for the record."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": versions(*_PACKAGES),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "blas": [
            {key: pool.get(key) for key in ("internal_api", "version", "num_threads")}
            for pool in threadpoolctl.threadpool_info()
        ],
        "devices": [str(device) for device in jax.devices()],
    }


def used_by_others() -> float | None:
    """Share of all cores that other processes used since this program began.

    None where the system does not tell. Subprocesses count as this program.
    """
    if _BEGAN is None or (now := _clocks()) is None:
        return None
    wall, busy, own = (
        after - before for after, before in zip(now, _BEGAN, strict=True)
    )
    return max(0.0, (busy - own) / (wall * (os.cpu_count() or 1)))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def save(name: str, record: Mapping[str, Any], output: Path) -> Path:
    """Writes `record` with the machine's data to `output/name.json`."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name}.json"
    others = used_by_others()
    if others is None or others > QUIET:
        share = "an unknown share" if others is None else f"{100 * others:.0f} %"
        print(
            f"NOT QUIET: other processes used {share} of the cores. Do not quote this."
        )
    whole = {"machine": machine(), "used_by_others": others, **record}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; numbers are rounded to three digits."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(_cell, row))
    # Into a file nothing should be folded to the width of no terminal.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


@functools.cache
def torch_or_none() -> Any:
    """The `torch` module, or None with a word to the reader if it is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  no dependency
    except ImportError:
        print("torch is not installed: its peers are left out (pip install torch)")
        return None
    return torch


def torch_threads() -> tuple[int, ...]:
    """Numbers of threads that PyTorch is timed with; the faster one is the peer."""
    return tuple(sorted({1, cores()}))


def _clocks() -> tuple[float, float, float] | None:
    """Seconds on the wall, of all cores at work, and of this program at work."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    # Stolen time is another machine's, on the same processor.
    busy = user + nice + system + irq + softirq + steal
    own = sum(os.times()[:4])
    return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own


_BEGAN = _clocks()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.processor())
    where = ", ".join(
        f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts
    )
    return f"{name} ({where})"
