"""What becomes of leaves that not all models have."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from centermerge_jax.checkpoints import load_name_map, open_checkpoint, rename
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.leaf_selection import sort_leaves
from centermerge_jax.recipe import Recipe

HEAD, TABLE = "lm_head.weight", "wte.weight"


def models(folder, *, tied, other):
    """One as PyTorch ties it, under the first of the names, and another one."""
    opened = {}
    for name, leaves in {"tied": [HEAD], "other": other}.items():
        file = folder / f"{name}.safetensors"
        save_file({leaf: np.ones((2, 2), np.float32) for leaf in leaves}, file)
        opened[name] = open_checkpoint(file)
    return opened | {"tied": replace(opened["tied"], tied=tied)}


def sort(experts, **recipe):
    return sort_leaves(Recipe(experts=tuple(experts), **recipe), experts, None, None)


def test_the_advice_about_a_tied_leaf_works(tmp_path):
    experts = models(tmp_path, tied={TABLE: HEAD}, other=[TABLE])
    with pytest.raises(CheckpointError) as refused:
        sort(experts)
    assert str(refused.value) == (
        "1 tied name that not all models have tied: tied: wte.weight is the same "
        "tensor as lm_head.weight, but in other a leaf of its own; a name map has it "
        r"called wte.weight, with from = 'lm_head\.weight': --names tied=FILE"
    )
    file = tmp_path / "names.toml"
    file.write_text(f"[[leaf]]\nfrom = 'lm_head\\.weight'\nto = '{TABLE}'\n")
    experts["tied"] = rename(experts["tied"], load_name_map(file))
    assert sort(experts).merged == (TABLE,)


def test_one_tensor_against_two(tmp_path):
    experts = models(tmp_path, tied={TABLE: HEAD}, other=[HEAD, TABLE])
    with pytest.raises(CheckpointError, match="save all models again in one way"):
        sort(experts)
    # Whoever leaves out the second name knows what it was.
    assert sort(experts, exclude=(TABLE,)).merged == (HEAD,)


def test_tied_alike(tmp_path):
    experts = models(tmp_path, tied={TABLE: HEAD}, other=[HEAD])
    assert sort(experts).merged == (HEAD,)


def test_integers_alone_are_no_model(tmp_path):
    experts = {}
    for name in ("a", "b"):
        file = tmp_path / f"{name}.safetensors"
        save_file({"step": np.ones(2, np.int32), "flag": np.ones(1, bool)}, file)
        experts[name] = open_checkpoint(file)
    message = "nothing to merge: no floating leaf among flag, step"
    with pytest.raises(ParameterError, match=message):
        sort(experts)
