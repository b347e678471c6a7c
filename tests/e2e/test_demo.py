"""The demo's whole course on real data, with so little of it that it takes seconds."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import centermerge_jax as cm
from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.demo import QUICK, run

TINY = dataclasses.replace(
    QUICK,
    tasks=("mnist", "fashion", "xray"),
    shots=4,
    train=64,
    validation=40,
    test=60,
    steps=3,
    frozen_blocks=10,
    ranks=(0.08, 1.0),
    centered_scales=(1.0, 2.0),
    uncentered_scales=(0.3,),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    # Optax's schedules promote their integer count.
    with jax.numpy_dtype_promotion("standard"):
        return folder, run(TINY, folder)


def test_results_are_on_disk_and_complete(demo):
    folder, results = demo
    assert json.loads((folder / "results.json").read_text()) == json.loads(
        json.dumps(results)
    )
    assert list(results["methods"]) == [
        "pretrained",
        "experts",
        "weight_average",
        "task_arithmetic",
        "truncated_task_arithmetic",
        "cart",
    ]
    for row in results["methods"].values():
        assert row["accuracy"].keys() == set(TINY.tasks)
        for task, share in row["accuracy"].items():
            low, high = row["interval"][task]
            assert low <= share <= high
        assert np.isclose(row["mean"], np.mean(list(row["accuracy"].values())))
    assert results["methods"]["experts"]["normalised"] == 1.0
    assert (folder / "rank-curve.png").stat().st_size > 10_000
    assert "| CART |" in (folder / "results.md").read_text()


def test_both_ends_of_the_centred_curve_are_the_average(demo):
    _, results = demo
    average = results["methods"]["weight_average"]["validation"]
    curve = results["curves"]["cart"]
    assert curve[0] == average
    # At full rank the weights agree to rounding, which may tip one item of 120.
    assert abs(curve[-1] - average) <= 1 / 100


def test_the_merged_file_is_what_the_library_gives(demo):
    folder, results = demo
    experts = {
        name: open_checkpoint(folder / "experts" / f"{name}.safetensors").read_all()
        for name in TINY.tasks
    }
    chosen = results["methods"]["cart"]
    merged = cm.cart(experts, rank=chosen["rank"], scale=chosen["scale"])
    found = open_checkpoint(folder / "merged" / "cart.safetensors").read_all()
    for name, leaf in merged.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    assert (folder / "merged" / "cart.safetensors.manifest.json").is_file()


def test_only_the_open_blocks_were_tuned(demo):
    folder, _ = demo
    before = open_checkpoint(folder / "pretrained.safetensors").read_all()
    after = open_checkpoint(folder / "experts" / "mnist.safetensors").read_all()
    moved = {name for name, x in before.items() if np.any(after[name] != x)}
    assert moved == {
        n for n in before if n.startswith(("blocks/10/", "blocks/11/", "norm"))
    }


def test_foreign_folders_are_not_replaced(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(cm.CheckpointError, match="was not made by a demo"):
        run(TINY, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"
