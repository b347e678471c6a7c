r"""Truncated SVD: seconds and error of our solvers and of named peers.

    python -m experiments.benchmarks.solvers            # about half an hour
    python -m experiments.benchmarks.solvers --quick    # one minute

For the matrices of ViT blocks (768 and 1024 wide) and of a 4096 wide language model,
with the spectrum of real centred task vectors, and for 1 to 32 % of the rank: seconds a
matrix of our solvers, outside of `jax.jit` and inside (`jit ...`, compiled before), of
full SVDs in NumPy (which computes in float64 whatever it is given), JAX and PyTorch,
and of `torch.svd_lowrank` (q = k + 8 columns, two power iterations), PyTorch with one
thread and with all (`@2`); and the floor, see `floor.py`. Ratios are to the fastest
full SVD of another library. Full SVDs do not depend on the rank and are timed once for
each shape, at 4096 on one matrix. Two errors, relative to the matrix, against a
decomposition in float64: the distance from the best matrix of that rank, which is large
wherever singular values nearly coincide at the cut, and the excess
`sqrt(|x - ours|^2 - |x - best|^2)`, which is what an approximation loses.

Expect `auto` at 8 % of the rank to be several times faster than the fastest full SVD,
more so for larger matrices, with an excess below 3e-5; and `svd_lowrank` to take about
as long with an excess above 1e-2, as such spectra have no gap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import centermerge_jax as cm
from centermerge_jax.linalg import choose_solver
from centermerge_jax.ranks import resolve_rank
from experiments.benchmarks import floor
from experiments.benchmarks.made_experts import stack
from experiments.benchmarks.measuring import (
    RESULTS,
    product_rate,
    save,
    show,
    timed,
    torch_or_none,
    torch_threads,
)

OVERSAMPLING, POWER_ITERATIONS = 8, 2
WIDE = 2048
"""Matrices of at least this size are few, and are timed once."""


@dataclass(frozen=True)
class Case:
    """Matrices of one shape.

    Attributes:
      model: Where they occur.
      kind: Of the spectrum.
      shape: Of one matrix.
    """

    model: str
    kind: str
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """`min(m, n)`."""
        return min(self.shape)

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.shape[0]} x {self.shape[1]}"


CASES = (
    Case("ViT-B", "out", (768, 768)),
    Case("ViT-B", "qkv", (2304, 768)),
    Case("ViT-B", "fc1", (3072, 768)),
    Case("ViT-B", "fc2", (768, 3072)),
    Case("ViT-L", "out", (1024, 1024)),
    Case("ViT-L", "qkv", (3072, 1024)),
    Case("ViT-L", "fc1", (4096, 1024)),
    Case("ViT-L", "fc2", (1024, 4096)),
    Case("LLM", "out", (4096, 4096)),
    Case("LLM", "fc1", (11008, 4096)),
)
RANKS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)

Factors = tuple[Any, Any, Any]
Solve = Callable[[], Factors]


@dataclass(frozen=True)
class Measured:
    """One line of the result; seconds are for one matrix.

    Attributes:
      model: Of the case.
      shape: Of the case.
      rank: Share of the rank kept.
      k: Directions kept.
      name: Solver or peer.
      seconds: For one matrix.
      distance: From the best matrix of that rank, relative; None if not looked at.
      excess: Relative; None if not looked at.
      products: Seconds of the floor's products for one matrix, timed.
      floor: The floor's operations for one matrix at the rate of a large product.
    """

    model: str
    shape: tuple[int, int]
    rank: float
    k: int
    name: str
    seconds: float
    distance: float | None
    excess: float | None
    products: float
    floor: float


def main(
    *,
    quick: bool = False,
    output: Path = RESULTS,
    shapes: tuple[str, ...] = (),
    repeats: int = 3,
    seed: int = 0,
) -> None:
    """Times solvers.

    Args:
      quick: Two small shapes, three ranks, one round.
      output: Folder for `solvers.json` and `solvers.png`.
      shapes: Only these, written as 3072x768.
      repeats: Rounds, of which the median is taken.
      seed: Of the matrices.
    """
    cases = [case for case in CASES if not shapes or _short(case) in shapes]
    ranks, count = RANKS, 8
    if quick:
        cases = cases if shapes else [cases[0], cases[2]]
        ranks, repeats, count = (0.02, 0.08, 0.32), 1, 4
    rate = product_rate()
    lines: list[Measured] = []
    for case in cases:
        found = measure(case, ranks, count=count, rate=rate, repeats=repeats, seed=seed)
        _show(case, found)
        lines += found
    record = {
        "quick": quick,
        "repeats": repeats,
        "seed": seed,
        "product_rate_gflops": rate / 1e9,
        "svd_lowrank": {"oversampling": OVERSAMPLING, "niter": POWER_ITERATIONS},
        "lines": [asdict(line) for line in lines],
    }
    print("written:", save("solvers", record, output))
    draw(lines, output / "solvers.png")


def measure(
    case: Case,
    ranks: Sequence[float],
    *,
    count: int,
    rate: float,
    repeats: int,
    seed: int,
) -> list[Measured]:
    """All solvers and peers on one shape."""
    wide = case.size >= WIDE
    repeats = 1 if wide else repeats
    x = stack(case.kind, case.shape, 2 if wide else count, seed=seed)
    truth = Truth(x[0])
    lines = []
    full = _timed_full(x[:1] if wide else x, repeats=repeats)
    for rank in ranks:
        k = resolve_rank(rank, case.size)
        ours = {**_ours(x, k), **_torch_lowrank(x, k)}
        seconds = timed(ours, repeats=repeats)
        errors = {
            name: truth.errors(_first(solve()), k) for name, solve in ours.items()
        }
        base = floor.products(x, k, combine=False, repeats=max(2, repeats))
        line = partial(
            Measured,
            model=case.model,
            shape=case.shape,
            rank=rank,
            k=k,
            products=base.seconds / len(x),
            floor=base.operations / rate / len(x),
        )
        for name, value in seconds.items():
            distance, excess = errors[name]
            each = value / len(x)
            lines.append(
                line(name=name, seconds=each, distance=distance, excess=excess)
            )
        for name, (each, factors) in full.items():
            distance, excess = truth.errors(_cut(factors, k), k)
            lines.append(
                line(name=name, seconds=each, distance=distance, excess=excess)
            )
    return lines


class Truth:
    """The best approximations of one matrix, from its Gram matrix in float64."""

    def __init__(self, x: np.ndarray):
        """Decomposes."""
        self._flip = x.shape[0] < x.shape[1]
        self._x = np.asarray(x.T if self._flip else x, np.float64)
        values, vectors = np.linalg.eigh(self._x.T @ self._x)
        self._squares, self._v = values[::-1], vectors[:, ::-1]
        self._norm = np.linalg.norm(self._x)

    def errors(self, factors: Factors, k: int) -> tuple[float, float]:
        """Distance from the best matrix of rank k, and excess, both relative."""
        u, s, vh = (np.asarray(factor, np.float64) for factor in factors)
        ours = (u * s) @ vh
        ours = ours.T if self._flip else ours
        v = self._v[:, :k]
        best = (self._x @ v) @ v.T
        excess = np.sum((self._x - ours) ** 2) - np.sum((self._x - best) ** 2)
        distance = np.linalg.norm(ours - best)
        relative = (distance / self._norm, np.sqrt(max(excess, 0)) / self._norm)
        return float(relative[0]), float(relative[1])


def _ours(x: np.ndarray, k: int) -> dict[str, Solve]:
    """Our solvers, outside of `jax.jit` and inside; `auto` with what it stands for."""
    y = jnp.asarray(x)

    def factors(solver: Any, y: Any) -> Factors:
        found = cm.truncated_svd(y, rank=k, solver=solver)
        return found.u, found.s, found.vh

    found: dict[str, Solve] = {}
    for solver in ("gram", "subspace", "auto"):
        found[solver] = partial(factors, solver, y)
    for solver in ("subspace", "auto"):
        found[f"jit {solver}"] = partial(jax.jit(partial(factors, solver)), y)
    return found


def _torch_lowrank(x: np.ndarray, k: int) -> dict[str, Solve]:
    torch = torch_or_none()
    if torch is None:
        return {}
    y, q = torch.from_numpy(x), min(k + OVERSAMPLING, *x.shape[-2:])

    def solve(threads: int) -> Factors:
        torch.set_num_threads(threads)
        u, s, v = torch.svd_lowrank(y, q=q, niter=POWER_ITERATIONS)
        return u[..., :k], s[..., :k], v.mT[..., :k, :]

    return {f"torch svd_lowrank @{t}": partial(solve, t) for t in torch_threads()}


def _full(x: np.ndarray) -> dict[str, Solve]:
    """Full decompositions of a stack."""
    y = jnp.asarray(x)
    jitted = jax.jit(partial(jnp.linalg.svd, full_matrices=False))

    def exact() -> Factors:
        found = cm.truncated_svd(y, rank=min(x.shape[-2:]), solver="exact")
        return found.u, found.s, found.vh

    found: dict[str, Solve] = {
        "exact": exact,
        "NumPy svd": lambda: np.linalg.svd(x, full_matrices=False),
        "JAX svd": lambda: tuple(jitted(y)),
    }
    if (torch := torch_or_none()) is not None:
        z = torch.from_numpy(x)

        def solve(threads: int) -> Factors:
            torch.set_num_threads(threads)
            return tuple(torch.linalg.svd(z, full_matrices=False))

        found |= {f"torch svd @{t}": partial(solve, t) for t in torch_threads()}
    return found


def _timed_full(x: np.ndarray, *, repeats: int) -> dict[str, tuple[float, Factors]]:
    """Seconds a matrix, and the factors of the first matrix."""
    solvers = _full(x)
    seconds = timed(solvers, repeats=repeats, warm_up=min(x.shape[-2:]) < WIDE)
    first = _full(x[:1])
    return {
        name: (seconds[name] / len(x), _first(first[name]()))
        for name in solvers
        if name in first
    }


def _first(factors: Factors) -> Factors:
    u, s, vh = (np.asarray(factor[0]) for factor in factors)
    return u, s, vh


def _cut(factors: Factors, k: int) -> Factors:
    u, s, vh = factors
    return u[:, :k], s[:k], vh[:k]


def _short(case: Case) -> str:
    return case.name.replace(" ", "")


def _show(case: Case, lines: Sequence[Measured]) -> None:
    columns = ("", "rank", "k", "ms", "full SVD /", "/ products", "/ floor")
    columns += ("distance", "excess")
    slowest = {
        line.rank: line.seconds for line in lines if line.name == _yardstick(lines)
    }
    rows = [
        (
            _labelled(line),
            f"{100 * line.rank:g} %",
            line.k,
            1e3 * line.seconds,
            slowest[line.rank] / line.seconds,
            line.seconds / line.products,
            line.seconds / line.floor,
            line.distance,
            line.excess,
        )
        for line in lines
    ]
    title = (
        f"{case.model} {case.name}, milliseconds a matrix; ratios: {_yardstick(lines)} "
        "/ this, this / products timed, this / products at the rate of a large one"
    )
    show(title, columns, rows)


def _yardstick(lines: Sequence[Measured]) -> str:
    """The fastest full SVD of another library: the peer that is hardest to beat."""
    peers = [line for line in lines if " svd" in line.name and "low" not in line.name]
    return min(peers, key=lambda line: line.seconds).name


def _labelled(line: Measured) -> str:
    if not line.name.endswith("auto"):
        return line.name
    return f"{line.name} ({choose_solver(line.k, min(line.shape))})"


STYLES: Mapping[str, tuple[str, str]] = {
    "auto": ("#1f5fa8", "o-"),
    "gram": ("#1f5fa8", "s:"),
    "jit auto": ("#3a8a4d", "o-"),
    "exact": ("#c8501e", "s:"),
    "NumPy svd": ("#8a6d3a", "--"),
    "JAX svd": ("#3a8a4d", "--"),
    **{
        f"torch svd @{t}": ("#c8501e", "--" if t == 1 else "-.")
        for t in torch_threads()
    },
    f"torch svd_lowrank @{max(torch_threads())}": ("#c8501e", "o-"),
}


def draw(lines: Sequence[Measured], path: Path) -> None:
    """Seconds and excess against the rank, a column for each shape."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(line.shape for line in lines))
    figure = Figure(figsize=(3.2 * len(shapes) + 1.5, 6.4), layout="constrained")
    axes = figure.subplots(2, len(shapes), squeeze=False, sharex=True)
    for column, shape in enumerate(shapes):
        here = [line for line in lines if line.shape == shape]
        above, below = axes[0][column], axes[1][column]
        for name, (colour, style) in STYLES.items():
            own = [line for line in here if line.name == name]
            x = [100 * line.rank for line in own]
            y = [1e3 * line.seconds for line in own]
            above.plot(x, y, style, color=colour, label=name, ms=4)
            excess = [max(line.excess or 0, 1e-9) for line in own]
            below.plot(x, excess, style, color=colour, ms=4)
        ranks = {line.rank: 1e3 * line.products for line in here}
        x = [100 * rank for rank in ranks]
        above.plot(x, list(ranks.values()), "-", color="0.5", label="products", lw=1)
        above.set_title(f"{here[0].model} {shape[0]} x {shape[1]}", fontsize=10)
        below.set_xlabel("rank kept (%)")
        for one in (above, below):
            one.set_xscale("log", base=2)
            one.set_yscale("log")
            one.set_xticks(x, [f"{value:g}" for value in x])
            one.grid(alpha=0.25)
    axes[0][0].set_ylabel("milliseconds a matrix")
    axes[1][0].set_ylabel("excess error, relative")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
