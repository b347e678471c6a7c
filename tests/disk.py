"""Checkpoints of the small models, on disk in the formats that users have."""

import json

import numpy as np
from models import expert
from safetensors.numpy import save_file

from centermerge_jax.trees import named_leaves

NAMES = ("cars", "dtd", "mnist", "svhn")


def flat(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def write_safetensors(folder, names=NAMES, **changes):
    """One file an expert; `changes` gives leaves that are other or None for some."""
    paths = []
    for seed, name in enumerate(names):
        leaves = flat(expert(seed)) | changes.get(name, {})
        leaves = {
            k: np.asarray(v, order="C") for k, v in leaves.items() if v is not None
        }
        save_file(leaves, folder / f"{name}.safetensors")
        paths.append(str(folder / f"{name}.safetensors"))
    return paths


def write_orbax(folder, names=NAMES):
    import orbax.checkpoint as ocp

    paths = []
    for seed, name in enumerate(names):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / name, {"params": expert(seed), "step": 3})
        paths.append(str(folder / name))
    return paths


def write_hub(folder, leaves, *, shards=1, config=None):
    """A hub folder: config.json, tokenizer files, and safetensors with their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "vit"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the card of the expert")
    if shards == 1:
        save_file(leaves, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)
    names = sorted(leaves)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: leaves[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(x.nbytes for x in leaves.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)
