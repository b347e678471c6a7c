r"""Singular values of real fine-tuning, measured once for the other benchmarks.

    make demo
    python -m experiments.benchmarks.spectrum centermerge-demo

Reads the experts that `centermerge demo` fine-tunes (DINOv2-S, 384 wide, four tasks)
and takes, for each kind of matrix, the median over blocks and tasks of the singular
values relative to the largest one, at positions i / min(m, n). Writes `spectrum.json`
beside this file: for task vectors around the pretrained parameters and for centred
ones, with their norms relative to the pretrained matrices. Frozen blocks have no
task vectors and are left out, and so is the first block that is not frozen.

Expect values that fall quickly and have no gap: 0.7 of the largest at the third
direction, 0.2 at 4 % of the rank, 0.1 at 12 %, 0.01 to 0.03 at half of it. Queries,
keys and values joined, and the first layer of the MLP, fall most slowly.
"""

import json
import re
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from safetensors.numpy import load_file

from experiments.benchmarks.measuring import HERE, show

TABLE = HERE / "spectrum.json"

Which = Literal["raw", "centred"]

KINDS = {
    "qkv": ("attn/q", "attn/k", "attn/v"),
    "out": ("attn/out",),
    "fc1": ("mlp/fc1",),
    "fc2": ("mlp/fc2",),
}
"""Leaves of a block, by kind; several are joined along their outputs."""


def main(demo: Path, /, *, output: Path = TABLE) -> None:
    """Measures the spectra of the demo's experts.

    Args:
      demo: Folder that `centermerge demo` wrote.
      output: Where the table goes.
    """
    base = load_file(demo / "pretrained.safetensors")
    files = sorted((demo / "experts").glob("*.safetensors"))
    experts = [load_file(path) for path in files]
    blocks = _tuned_blocks(base, experts)
    kinds = {kind: _measure(base, experts, blocks, kind) for kind in KINDS}
    record = {
        "note": "Medians over blocks and tasks of s_i / s_1 at i / min(m, n), and of "
        "the norm relative to the pretrained matrix. Experts: DINOv2-S, 250 steps of "
        "AdamW each, by `centermerge demo`; made by `spectrum.py`.",
        "tasks": [path.stem for path in files],
        "blocks": blocks,
        "kinds": kinds,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    shares = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 1.0)
    rows = [
        (f"{kind} {which}", *map(float, _at(found["positions"], found[which], shares)))
        for kind, found in kinds.items()
        for which in ("raw", "centred")
    ]
    columns = ("s_i / s_1", *(f"{100 * share:g} %" for share in shares))
    show("Median spectra of task vectors", columns, rows)


def spectrum(kind: str, size: int, *, which: Which) -> np.ndarray:
    """Singular values, the first one 1, of a task vector of this kind of matrix.

    Args:
      kind: qkv, out, fc1 or fc2.
      size: min(m, n) of the matrix.
      which: Around the pretrained parameters (raw) or the mean (centred).
    """
    found = json.loads(TABLE.read_text())["kinds"][kind]
    return _at(found["positions"], found[which], np.arange(size) / size)


def relative_norm(kind: str) -> float:
    """Frobenius norm of a task vector of this kind, relative to the base's matrix."""
    return json.loads(TABLE.read_text())["kinds"][kind]["raw_norm"]


def _tuned_blocks(base: dict, experts: list[dict]) -> list[int]:
    """Blocks that fine-tuning changed, but for the first of them."""
    found = set()
    for name, origin in base.items():
        match = re.fullmatch(r"blocks/(\d+)/mlp/fc1/kernel", name)
        if match and any(np.any(expert[name] != origin) for expert in experts):
            found.add(int(match[1]))
    return sorted(found)[1:] or sorted(found)


def _measure(base: dict, experts: list[dict], blocks: list[int], kind: str) -> dict:
    raw, centred = [], []
    raw_norms, centred_norms = [], []
    for block in blocks:
        origin = _matrix(base, block, kind)
        tuned = np.stack([_matrix(expert, block, kind) for expert in experts])
        for deltas, values, norms in (
            (tuned - origin, raw, raw_norms),
            (tuned - tuned.mean(axis=0), centred, centred_norms),
        ):
            s = np.linalg.svd(deltas, compute_uv=False)
            values += list(s / s[:, :1])
            norms += list(np.linalg.norm(s, axis=1) / np.linalg.norm(origin))
    size = len(raw[0])
    # Close together where the values fall quickly, from one index to the next.
    indices = np.unique(np.geomspace(1, size, 40).round().astype(int)) - 1
    return {
        "size": size,
        "positions": [round(float(i) / size, 5) for i in indices],
        "raw": _rounded(np.median(raw, axis=0)[indices]),
        "centred": _rounded(np.median(centred, axis=0)[indices]),
        "raw_norm": round(float(np.median(raw_norms)), 5),
        "centred_norm": round(float(np.median(centred_norms)), 5),
    }


def _matrix(tree: dict, block: int, kind: str) -> np.ndarray:
    parts = [tree[f"blocks/{block}/{leaf}/kernel"] for leaf in KINDS[kind]]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _at(positions, values, shares) -> np.ndarray:
    """The curve at some shares, interpolated in its logarithm."""
    return np.exp(np.interp(shares, positions, np.log(values)))


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
