"""The same model given twice is merged, and said."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from centermerge_jax.cli import main
from centermerge_jax.planning import plan
from centermerge_jax.recipe import Recipe


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {"layers.0.mlp.weight": (6, 4), "norm.weight": (4,), "head.weight": (3, 4)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a, b and the base; `copy` holds what a holds; `link` leads to a."""
    for name, seed in (("a", 0), ("b", 1), ("base", 2), ("copy", 0)):
        save_file(tree(seed), tmp_path / f"{name}.safetensors")
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    other_head = tree(0) | {"head.weight": tree(3)["head.weight"]}
    save_file(other_head, tmp_path / "headed.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def warned(*names, **told):
    given = {"method": "weight_average"} | told
    experts = tuple(f"{name.replace('=', '-')}={name}.safetensors" for name in names)
    return plan(Recipe(experts=experts, **given)).warnings


def merged(capsys, *arguments):
    main(["merge", *arguments, "-o", "out.safetensors", "--json"])
    found = capsys.readouterr()
    notes = [line for line in found.err.splitlines() if line.startswith("note: ")]
    manifest = json.loads(found.out)
    assert [f"note: {text}" for text in manifest["warnings"]] == notes
    return manifest["warnings"]


def test_the_same_files(folder, capsys):
    said = "a is the same checkpoint as link: it counts 2 times"
    assert warned("a", "b", "link") == (said,)
    assert warned("a", "b") == ()
    files = [f"{name}.safetensors" for name in ("a", "link", "b")]
    assert merged(capsys, *files, "--method", "weight_average") == [said]


def test_the_base_as_an_expert(folder, capsys):
    told = {"method": "task_arithmetic", "scale": 1.0, "base": "base.safetensors"}
    said = "x is the same checkpoint as the base: no task vector"
    experts = ("a=a.safetensors", "x=base.safetensors")
    assert plan(Recipe(experts=experts, **told)).warnings == (said,)
    copied = folder / "y.safetensors"
    save_file(tree(2), copied)
    arguments = ("a.safetensors", "y.safetensors", "--method", "task_arithmetic")
    found = merged(capsys, *arguments, "--scale", "1", "--base", "base.safetensors")
    assert found == [
        "y holds the same merged leaves as the base: no task vector",
    ]


def test_copies_are_known_once_they_are_read(folder, capsys):
    files = [f"{name}.safetensors" for name in ("a", "b", "copy", "link")]
    assert warned("a", "b", "copy") == ()
    found = merged(capsys, *files, "--method", "weight_average")
    assert found == [
        "a is the same checkpoint as link: it counts 2 times",
        "a holds the same merged leaves as copy and link: it counts 3 times",
    ]


def test_leaves_that_are_kept_do_not_count(folder, capsys):
    files = [f"{name}.safetensors" for name in ("a", "b", "headed")]
    keep = ("--keep", r"head\..*", "--keep-from", "headed")
    assert merged(capsys, *files, "--method", "weight_average") == []
    (folder / "out.safetensors").unlink()
    for left in folder.glob("out*"):
        left.unlink()
    found = merged(capsys, *files, *keep, "--method", "weight_average")
    assert len(found) == 1
    assert "as headed: it counts 2 times" in found[0]
