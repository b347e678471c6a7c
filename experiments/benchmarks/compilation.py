r"""What compiling costs against the depth of the model.

    python -m experiments.benchmarks.compilation            # about 5 minutes
    python -m experiments.benchmarks.compilation --quick    # one minute, narrow layers

For models of 12, 24 and 48 layers with the shapes of CLIP ViT-B/32, each in a fresh
process without a compilation cache: the number of programs that XLA compiles, and the
seconds for tracing, lowering and compiling, as JAX itself reports them
(`jax.monitoring`), of
- `eager cart`: `cm.cart` as called outside of `jax.jit`, run once;
- `jit cart`: the whole of it under one `jax.jit`, compiled only;
- `jit truncate`: `cm.truncate` of dense task vectors under `jax.jit`, compiled only.

All layers share their arrays, as only shapes matter here. What is counted includes the
small programs that JAX compiles for single operations such as `jnp.asarray` or a random
start. The first call of `eager cart` is timed as a whole, too, and so is a second one.

Expect `eager cart` to compile 40 to 50 programs at every depth: the work is done part
by part, and equal parts share their programs. Under one `jax.jit` there is one program,
whose seconds grow with the number of its operands, less than in proportion.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

import centermerge_jax as cm
from experiments.benchmarks.made_experts import (
    RANK,
    VIEWS,
    VIT_B_32,
    Architecture,
    experts,
    merge,
    prefix,
)
from experiments.benchmarks.measuring import RESULTS, once, save, show

MODULE = "experiments.benchmarks.compilation"
DEPTHS = (12, 24, 48)
TASKS = 8

_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}

Mode = Literal["eager cart", "jit cart", "jit truncate"]
MODES: tuple[Mode, ...] = ("eager cart", "jit cart", "jit truncate")


def main(
    *,
    quick: bool = False,
    output: Path = RESULTS,
    modes: tuple[Mode, ...] = MODES,
    depths: tuple[int, ...] = DEPTHS,
    alone: bool = False,
) -> None:
    """Compiles, and counts.

    Args:
      quick: A third of the width.
      output: Folder for `compilation.json` and `compilation.png`.
      modes: Which of the three.
      depths: Numbers of layers.
      alone: For the program's own use: measure in this process.
    """
    width = VIT_B_32.width // (3 if quick else 1)  # wide enough for the same solver
    if alone:
        architecture = replace(VIT_B_32, layers=depths[0], width=width)
        print(json.dumps(_measure(architecture, modes[0])))
        return
    lines = [
        {"mode": mode, "depth": depth, **_in_process(mode, depth, sys.argv[1:])}
        for mode in modes
        for depth in depths
    ]
    columns = ("", "layers", "programs", "compiling s", "/ shallowest")
    columns += ("of which XLA", "1st call s", "2nd call s")
    show(f"Compilation, width {width}, {TASKS} experts", columns, _rows(lines))
    record = {"quick": quick, "width": width, "tasks": TASKS, "lines": lines}
    print("written:", save("compilation", record, output))
    draw(lines, output / "compilation.png")


class Compilations:
    """Counts programs and adds up seconds, from now on."""

    def __init__(self):
        """Listens to JAX."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.programs: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **about: Any) -> None:
        if event not in _STAGES:
            return
        self.seconds[_STAGES[event]] += duration_secs
        if _STAGES[event] == "compile":
            self.programs.append(str(about.get("fun_name", "")))

    def record(self) -> dict[str, Any]:
        """What was heard so far."""
        names = sorted(set(self.programs))
        return {
            "programs": len(self.programs),
            "by_name": {name: self.programs.count(name) for name in names},
            "seconds": dict(self.seconds),
        }


def _measure(architecture: Architecture, mode: Mode) -> dict[str, Any]:
    named = _repeated(architecture)
    heard = Compilations()
    start = time.perf_counter()
    if mode == "eager cart":
        jax.block_until_ready(merge(named))
        first = time.perf_counter() - start
        found = heard.record()
        return {
            **found,
            "first_call": first,
            "second_call": once(partial(merge, named))[0],
        }
    if mode == "jit cart":
        jax.jit(merge).lower(named).compile()
    else:
        tv = jax.eval_shape(cm.center, named)
        truncate = partial(cm.truncate, rank=RANK, views=VIEWS)
        jax.jit(truncate).lower(tv).compile()
    return {**heard.record(), "wall": time.perf_counter() - start}


def _repeated(architecture: Architecture) -> dict[str, dict[str, Any]]:
    """Experts whose layers are all the same arrays."""
    one = experts(replace(architecture, layers=1), tasks=TASKS, seed=0)
    first = prefix(0)
    named: dict[str, dict[str, Any]] = {}
    for task, tree in one.items():
        named[task] = {}
        for name, leaf in tree.items():
            array = jnp.asarray(leaf)
            if not name.startswith(first):
                named[task][name] = array
                continue
            for layer in range(architecture.layers):
                named[task][prefix(layer) + name.removeprefix(first)] = array
    return named


def _in_process(mode: Mode, depth: int, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", MODULE, *arguments, "--modes", mode]
    command += ["--depths", str(depth), "--alone"]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def _rows(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    shallow: dict[str, float] = {}
    rows = []
    for line in lines:
        total = sum(line["seconds"].values())
        least = shallow.setdefault(line["mode"], total)
        rows.append(
            (
                line["mode"],
                line["depth"],
                line["programs"],
                total,
                total / least,
                line["seconds"].get("compile", 0.0),
                line.get("first_call"),
                line.get("second_call"),
            )
        )
    return rows


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Seconds and programs against depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for mode, colour in zip(MODES, ("#1f5fa8", "#c8501e", "#3a8a4d"), strict=True):
        own = [line for line in lines if line["mode"] == mode]
        depths = [line["depth"] for line in own]
        seconds = [sum(line["seconds"].values()) for line in own]
        left.plot(depths, seconds, "o-", color=colour, label=mode, ms=4)
        programs = [line["programs"] for line in own]
        right.plot(depths, programs, "o-", color=colour, ms=4)
    for axes, label in ((left, "seconds compiling"), (right, "programs compiled")):
        axes.set_xlabel("layers")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    left.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
