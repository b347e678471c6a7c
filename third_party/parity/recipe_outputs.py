"""What mergekit makes of the recipes of `tests/golden/mergekit_recipes.py`.

Run by `make parity` in mergekit's environment:

  recipe_outputs.py          compares with tests/golden
  recipe_outputs.py --write  writes tests/golden

Each recipe is given as its file, through the planner and executor that `mergekit-yaml`
runs. Of recipes with random masks the mean and the variance over seeds are kept.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import goldens
import numpy as np
import yaml

sys.path.insert(0, str(goldens.FOLDER.parent))

from golden import mergekit_recipes as given


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tests/golden")
    chosen = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    arrays = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with (
            open(os.devnull, "w") as nowhere,  # bars
            contextlib.redirect_stderr(nowhere),
        ):
            write_models()
            for name, text in (given.RECIPES | given.EXPLAINED).items():
                arrays[name] = merged(text, seed=0)
            for name, text in given.RANDOM.items():
                draws = np.stack([merged(text, seed=i) for i in range(given.SEEDS)])
                arrays[f"{name}/mean"] = draws.mean(0)
                arrays[f"{name}/variance"] = draws.var(0)
    goldens.finish(
        goldens.keep(
            "mergekit_recipes",
            arrays,
            {"recipes": given.ALL},
            packages=("mergekit", "torch", "numpy"),
            write=chosen.write,
        )
    )


def write_models() -> None:
    """The models as hub folders, in the current folder."""
    from safetensors.numpy import save_file

    for name, leaves in given.models().items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(given.CONFIG))
        save_file(leaves, f"{name}/model.safetensors", metadata={"format": "pt"})


def merged(text: str, *, seed: int) -> np.ndarray:
    """All numbers of the merged model, leaf after leaf, less those of the base."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.numpy import load_file

    logging.disable(logging.CRITICAL)
    configuration = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(
        random_seed=seed, write_model_card=False, copy_tokenizer=False
    )
    with tempfile.TemporaryDirectory() as out:
        run_merge(configuration, out, options)
        found = {}
        for file in Path(out).glob("*.safetensors"):
            found |= load_file(file)
    base = given.models()["base"]
    far = [np.float64(found[x]) - np.float64(base[x]) for x in given.shapes()]
    return np.concatenate([x.ravel() for x in far]).astype(np.float32)


if __name__ == "__main__":
    main()
