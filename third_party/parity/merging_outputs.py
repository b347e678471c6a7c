"""What other tools make of the same models with the same merging methods.

Run by `make parity` in each peer's environment:

  merging_outputs.py --peer PEER          compares with tests/golden
  merging_outputs.py --peer PEER --write  writes tests/golden

Models are given as float64, so that what is left to differ is the formula. Each result
is kept as its difference from the base. Where a peer draws random numbers,
it is given those of `tests/golden/merging.py`, or a density of 1 at which they do not
matter; a case says so.
"""

import argparse
import contextlib
import importlib
import os

import goldens
from merging_cases import inputs

PEERS = {
    "mergekit": ("mergekit", "torch", "numpy"),
    "fusionbench": ("fusion-bench", "torch", "numpy"),
}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--write", action="store_true", help="write tests/golden")
    chosen = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with (
        open(os.devnull, "w") as nowhere,  # bars and tables of the peers
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        cases = importlib.import_module(f"merging_{chosen.peer}").CASES
        results = {name: case.result() for name, case in cases.items()}
    arrays = inputs() | results
    facts = {"cases": {name: case.facts() for name, case in cases.items()}}
    goldens.finish(
        goldens.keep(
            f"merging_{chosen.peer}",
            arrays,
            facts,
            packages=PEERS[chosen.peer],
            write=chosen.write,
        )
    )


if __name__ == "__main__":
    main()
