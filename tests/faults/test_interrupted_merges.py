"""Merges that are cut off, and what may have happened before they go on."""

import json
import re

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import centermerge_jax as cm
from centermerge_jax import host_memory, needs
from centermerge_jax.checkpoints import (
    hub_names,
    manifest_path,
    open_checkpoint,
    stage_path,
)
from centermerge_jax.recipe import Override, Recipe
from centermerge_jax.recipe_files import load_recipe

# The separator of lines is one to Python's text methods, but not to a file.
NAMES = [
    "caf\u00e9/kernel",
    "two\u2028lines/kernel",
    "w0/kernel",
    "w1/kernel",
    "w2/kernel",
]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(needs, "LEAST", 64)
    monkeypatch.setattr(needs, "AT_ONCE", 64 * 4 * 3)


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = {}
    for task in "abc":
        leaves = {n: rng.normal(size=(8, 8)).astype(np.float32) for n in NAMES}
        found[task] = tmp_path / f"{task}.safetensors"
        save_file(leaves, found[task])
    return found


def cut_off(paths, output, after=3):
    """Interrupts a merge after some parts."""
    seen = []

    def progress(text, share):
        seen.append(text)
        if len(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cm.stream.merge(paths, output, "weight_average", progress=progress)
    assert not output.exists()
    return stage_path(output)


def resumed(paths, output):
    cm.stream.merge(paths, output, "weight_average", resume=True)
    return output.read_bytes()


@pytest.fixture
def whole(paths, tmp_path):
    output = tmp_path / "whole.safetensors"
    cm.stream.merge(paths, output, "weight_average")
    return output.read_bytes()


def test_a_header_that_was_lost_is_written_again(paths, tmp_path, whole):
    output = tmp_path / "out.safetensors"
    (staged,) = cut_off(paths, output).glob("*.safetensors")
    with staged.open("r+b") as stream:
        stream.write(bytes(100))
    assert resumed(paths, output) == whole


def test_a_file_that_was_lost_is_made_again(paths, tmp_path, whole):
    output = tmp_path / "out.safetensors"
    (staged,) = cut_off(paths, output).glob("*.safetensors")
    staged.unlink()
    assert resumed(paths, output) == whole


def test_a_journal_cut_inside_a_letter(paths, tmp_path, whole):
    output = tmp_path / "out.safetensors"
    journal = cut_off(paths, output, after=5) / "journal.jsonl"
    content = journal.read_bytes()
    assert content.isascii()
    lines = content.count(b"\n")
    assert lines > 3
    journal.write_bytes(content[:-7])
    started = []
    cm.stream.merge(
        paths,
        output,
        "weight_average",
        resume=True,
        progress=lambda text, share: started.append(share),
    )
    assert started[0] > 2 / 5  # what was whole was not done again
    assert output.read_bytes() == whole


def test_a_kill_between_the_two_renames(paths, tmp_path, whole):
    output = tmp_path / "out.safetensors"
    cut_off(paths, output)
    manifest_path(output).write_text("{}")
    assert resumed(paths, output) == whole
    assert json.loads(manifest_path(output).read_text())["method"] == "weight_average"
    assert not stage_path(output).exists()


def test_a_manifest_without_a_merge_is_not_overwritten(paths, tmp_path):
    output = tmp_path / "out.safetensors"
    manifest_path(output).write_text("{}")
    with pytest.raises(cm.CheckpointError, match="exists already"):
        cm.stream.merge(paths, output, "weight_average")


def test_a_folder_of_somebody_else_is_left_alone(paths, tmp_path):
    output = tmp_path / "out.safetensors"
    stage_path(output).mkdir()
    mine = stage_path(output) / "thesis.tex"
    mine.write_text("all of it")
    with pytest.raises(cm.CheckpointError, match="in the way"):
        cm.stream.merge(paths, output, "weight_average", resume=True)
    assert mine.read_text() == "all of it"


def test_an_input_that_is_replaced_meanwhile(paths, tmp_path):
    output = tmp_path / "out.safetensors"
    other = tmp_path / "other"
    save_file({n: np.full((8, 8), 9, np.float32) for n in NAMES}, other)
    assert other.stat().st_size == paths["b"].stat().st_size

    def progress(text, share):
        if other.exists():
            other.replace(paths["b"])

    with pytest.raises(cm.CheckpointError, match=r"1 input changed .*") as caught:
        cm.stream.merge(paths, output, "weight_average", progress=progress)
    assert "b.safetensors" in str(caught.value)
    assert not output.exists()
    assert not stage_path(output).exists()


def test_memory_may_be_asked_about_while_it_is_replaced(monkeypatch):
    arena = host_memory.Arena()
    arena.clear(10)
    x = arena.allocate(10)
    real = host_memory.empty

    def empty(*arguments):
        assert not arena.holds(x)
        return real(*arguments)

    monkeypatch.setattr(host_memory, "empty", empty)
    arena.clear(100)
    assert arena.holds(arena.allocate(100))


def test_a_recipe_says_everything_itself(paths, tmp_path):
    experts = tuple(f"{n}={p}" for n, p in paths.items())
    recipe = Recipe(experts=experts, method="weight_average", format="orbax")
    with pytest.raises(cm.ParameterError, match="rank, method cannot be given"):
        cm.stream.merge(recipe, tmp_path / "out", "cart", rank=3)
    cm.stream.merge(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "_METADATA").exists()


def test_experts_that_are_called_like_layers(tmp_path):
    rng = np.random.default_rng(1)
    trees = []
    for i in range(3):
        leaves = {
            f"blocks/{j}": rng.normal(size=6).astype(np.float32) for j in range(3)
        }
        trees.append(leaves)
        save_file(leaves, tmp_path / f"{i}.safetensors")
    base = {name: np.zeros(6, np.float32) for name in trees[0]}
    save_file(base, tmp_path / "base.safetensors")
    output = tmp_path / "out.safetensors"
    cm.stream.merge(
        {str(i): tmp_path / f"{i}.safetensors" for i in range(3)},
        output,
        "task_arithmetic",
        base=str(tmp_path / "base.safetensors"),
        scale={"2": 4.0, "0": 1.0, "1": 2.0},
    )
    for name, leaf in load_file(output).items():
        wanted = trees[0][name] + 2 * trees[1][name] + 4 * trees[2][name]
        np.testing.assert_allclose(leaf, wanted, atol=1e-6)


def test_one_direction_and_all_of_them_in_one_joined_matrix(tmp_path):
    rng = np.random.default_rng(2)
    for task in "abc":
        leaves = {
            f"attn/{n}/kernel": rng.normal(size=(8, 8)).astype(np.float32)
            for n in ("query", "key", "value")
        }
        save_file(leaves, tmp_path / f"{task}.safetensors")
    recipe = Recipe(
        experts=tuple(str(tmp_path / f"{task}.safetensors") for task in "abc"),
        rank=1.0,
        scale=1.0,
        views="fused",
        overrides=(Override(".*key.*", rank=1),),
    )
    with pytest.raises(cm.ViewError, match="are one matrix, but have different"):
        cm.stream.merge(recipe, tmp_path / "out.safetensors")


def test_adapters_by_their_names_on_a_hub(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    save_file({"layer.weight": weight}, tmp_path / "base.safetensors")
    changes = []
    for name in ("one", "two"):
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        a, b = (rng.normal(size=s).astype(np.float32) for s in ((1, 4), (4, 1)))
        prefix = "base_model.model.layer"
        factors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        save_file(factors, folder / "adapter_model.safetensors")
        changes.append(b @ a)
        with pytest.raises(cm.CheckpointError, match="is an adapter, no whole model"):
            open_checkpoint(folder)
    monkeypatch.setattr(
        hub_names, "fetch", lambda name, _: tmp_path / "hub" / name.repository[4:]
    )
    output = tmp_path / "out.safetensors"
    cm.stream.merge(
        ["hf:org/one", "hf:org/two"],
        output,
        "weight_average",
        base=str(tmp_path / "base.safetensors"),
    )
    wanted = weight + (changes[0] + changes[1]) / 2
    np.testing.assert_allclose(load_file(output)["layer.weight"], wanted, atol=1e-6)


def test_the_recipe_of_a_model_card_can_be_run(paths, tmp_path):
    (tmp_path / "map.toml").write_text(
        'rest = "keep"\n[[leaf]]\nfrom = "w0/kernel"\nto = "w0/kernel"\n'
    )
    recipe = Recipe(
        experts=tuple(f"{n}={p}" for n, p in paths.items()),
        rank=2,
        scale=1.5,
        overrides=(Override("w1/.*", scale=0.5),),
        names=(f"a={tmp_path / 'map.toml'}",),
    )
    cm.stream.merge(recipe, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    found = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert found is not None
    assert yaml.safe_load(found[1])["overrides"] == [{"match": "w1/.*", "scale": 0.5}]
    (tmp_path / "again.yaml").write_text(found[1])
    again, _ = load_recipe(tmp_path / "again.yaml")
    cm.stream.merge(again, tmp_path / "again")
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")
    )
    for name, leaf in first.items():
        np.testing.assert_array_equal(second[name], leaf)
