"""Reference outputs in `tests/golden`: written once, compared with ever after.

`NAME.npz` holds inputs and outputs, `NAME.json` the public names and shapes of the
model's leaves (and its `config.json`, where it has one), from which
`tests/golden/weights.py` makes the same weights again.
"""

import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "golden"
# The only module of ours that reference programs see; it needs NumPy alone.
sys.path.insert(0, str(FOLDER))

# Two machines add in different orders; a changed formula differs by more.
SAME = 1e-5


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Norm of the difference as a share of the norm of `b`; infinite if shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def keep(
    name: str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    *,
    packages: Sequence[str],
    write: bool,
) -> list[str]:
    """Writes a golden, or compares with the one that is there.

    Args:
      name: Stem of the two files.
      arrays: Inputs and outputs.
      facts: What else a test needs; JSON.
      packages: Whose versions to note.
      write: Whether to write.

    Returns:
      What differs, as messages.
    """
    if write:
        made_by = {
            "command": f"make parity WRITE=1 ({Path(sys.argv[0]).name})",
            "versions": {p: importlib.metadata.version(p) for p in packages},
        }
        np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
        text = json.dumps({"made_by": made_by, **facts}, indent=1)
        (FOLDER / f"{name}.json").write_text(_short_lists(text) + "\n")
        print(f"{name}: written")
        return []
    faults = []
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    faults += [
        f"{name}: {key} is another than in {name}.json"
        for key, value in facts.items()
        if json.loads(json.dumps(value)) != kept.get(key)
    ]
    with np.load(FOLDER / f"{name}.npz") as golden:
        for key in sorted({*golden.files, *arrays}):
            if key not in golden or key not in arrays:
                faults.append(f"{name}: {key} is on one side only")
                continue
            off = difference(arrays[key], golden[key])
            print(f"{name}: {key} differs by {off:.1e} from the golden")
            # Not `off > SAME`, which a NaN would pass.
            if not off <= SAME:
                faults.append(f"{name}: {key} differs by {off:.1e}, allowed {SAME}")
    return faults


def finish(faults: Sequence[str]) -> None:
    """Ends the program: with status 1 if anything differs."""
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


def _short_lists(text: str) -> str:
    """Shapes in one line each."""
    return re.sub(
        r"\[\s+([^][{}]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text
    )
