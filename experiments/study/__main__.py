"""The paper's claims, one by one, on real experts that are fine-tuned here.

    python -m experiments.study vision      # DINOv2-S on eight sets of images
    python -m experiments.study text        # MiniLM on six sets of texts

For each seed: an expert for each task, joint training on all tasks with as many items
in all, every method searched with eight points at most on validation items and tested
once, curves over rank and scale, and the questions that the paper leaves open. Every
expert and every point is kept as soon as it is there: a second call goes on.

Writes to the folder that `--output` names: `comparison.json`, of the first seed
`analysis.json`, and of every seed all points and whether each test item was right,
`seed-N.json.gz`. `--smoke` does all of it on next to nothing, to see that it works.
"""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.progress import progress
from experiments.study.claims import claims
from experiments.study.results import comparison
from experiments.study.seed import run_seed
from experiments.study.settings import STUDIES, smoke


def main(
    study: Annotated[Literal["vision", "text"], Positional],
    /,
    *,
    output: Path | None = None,
    work: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    smoke_only: Annotated[bool, tyro.conf.arg(name="smoke")] = False,
) -> None:
    """Runs a study, or goes on with it.

    Args:
      study: What the network reads.
      output: Folder of the results; by default experiments/results/study-KIND, and with
        `--smoke` the folder `results` in that of the work.
      work: Folder of experts and notebooks; by default centermerge-study/KIND.
      seeds: Those of the study by default.
      smoke_only: Next to nothing of everything.
    """
    chosen = STUDIES[study]
    if smoke_only:
        chosen = smoke(chosen)
    if seeds is not None:
        chosen = replace(chosen, seeds=seeds)
    work = work or Path("centermerge-study") / study
    whole = Path("experiments/results") / f"study-{study}"
    output = output or (work / "results" if smoke_only else whole)
    with progress() as bar:
        notebooks = {
            seed: run_seed(chosen, seed, work / f"seed-{seed}", progress=bar)
            for seed in chosen.seeds
        }
    found = comparison(chosen, notebooks)
    found["claims"] = claims(found, notebooks)
    output.mkdir(parents=True, exist_ok=True)
    first = chosen.seeds[0]
    analysis = json.loads((work / f"seed-{first}" / "analysis.json").read_bytes())
    analysis["title"] = f"{found['title']}: task vectors of seed {first}"
    text = json.dumps(analysis) + "\n"
    write_whole(output / "analysis.json", text.encode())
    text = json.dumps(found, indent=1) + "\n"
    write_whole(output / "comparison.json", text.encode())
    for seed, notebook in notebooks.items():
        packed = gzip.compress(notebook.content(), mtime=0)
        write_whole(output / f"seed-{seed}.json.gz", packed)
    for claim in found["claims"]:
        print(f"[{claim['verdict']}] {claim['claim']}\n    {claim['numbers']}")
    minutes = found["seconds"] / 60
    print(f"written: {output / 'comparison.json'}, after {minutes:.0f} minutes in all")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
