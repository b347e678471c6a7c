"""`centermerge sweep` on checkpoints and data of the real formats."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from centermerge_jax.cli import main
from experiments.configs.table import CONFIGS
from experiments.smoke import make

TASKS = {"mnist": "MNIST", "svhn": "SVHN", "dtd": "DTD"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    checkpoints, data_dir = make(folder, [CONFIGS["vit_b32_8_cart"]])
    own = checkpoints / "ViT-B-32"
    experts = [f"{task}={own / title}" for task, title in TASKS.items()]
    return {"own": own, "experts": experts, "data": data_dir, "folder": folder}


def words(made, output, *more, method="cart", base=False):
    told = ["sweep", *made["experts"], "--method", method, "--tasks", *TASKS]
    told += ["--heads", str(made["own"] / "heads.safetensors")]
    told += ["--data-dir", str(made["data"]), "--batch", "4", "-o", str(output)]
    if base:
        told += ["--base", str(made["own"] / "zeroshot")]
    return [*told, *map(str, more)]


def run(made, output, *more, **how):
    main(words(made, output, "--quiet", *more, **how))
    return json.loads((output / "sweep.json").read_text())


def refused(capsys, told):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in told])
    assert caught.value.code == 2
    return capsys.readouterr().err


GRID = ("--grid", "rank=0.1,0.5", "--grid", "scale=1,20,40")


def test_the_points_are_those_of_merge_and_evaluate(made, tmp_path):
    merged = tmp_path / "merged.safetensors"
    found = run(made, tmp_path / "found", *GRID, "--merged", merged)
    assert found["kind"] == "sweep"
    assert [p["setting"] for p in found["points"]] == [
        {"rank": rank, "scale": scale}
        for rank in (0.1, 0.5)
        for scale in (1.0, 20.0, 40.0)
    ]
    at = found["chosen"]["setting"]
    flags = ["--rank", str(at["rank"]), "--scale", str(at["scale"])]
    alone = tmp_path / "alone.safetensors"
    main(["merge", *made["experts"], *flags, "-o", str(alone), "--quiet"])
    for name, x in load_file(alone).items():
        np.testing.assert_array_equal(load_file(merged)[name], x)
    results = {}
    for split in ("validation", "test"):
        file = tmp_path / f"{split}.json"
        told = ["evaluate", str(alone), "--tasks", *TASKS, "--split", split]
        told += ["--heads", str(made["own"] / "heads.safetensors"), "--quiet"]
        told += ["--data-dir", str(made["data"]), "--batch", "4", "-o", str(file)]
        main(told)
        tasks = json.loads(file.read_text())["tasks"]
        results[split] = {name: task["score"] for name, task in tasks.items()}
    chosen = next(p for p in found["points"] if p["setting"] == at)
    assert chosen["per_task"] == pytest.approx(results["validation"])
    assert chosen["validation"] == max(p["validation"] for p in found["points"])
    assert found["test"]["accuracy"] == pytest.approx(results["test"])


def test_several_models_in_one_program(made, tmp_path):
    one = run(made, tmp_path / "one", *GRID, "--no-test")
    three = run(made, tmp_path / "three", *GRID, "--no-test", "--together", "3")
    assert one["test"] is None
    assert [p["per_task"] for p in one["points"]] == [
        p["per_task"] for p in three["points"]
    ]


def test_a_search_is_continued_with_more_points(made, tmp_path, capsys):
    output = tmp_path / "found"
    run(made, output, "--grid", "rank=0.5", "--grid", "scale=1,20", "--no-test")
    again = words(made, output, *GRID, "--no-test")
    assert "continue it with --resume" in refused(capsys, again)
    found = run(made, output, *GRID, "--no-test", "--resume")
    assert len(found["points"]) == 6
    other = [*again, "--resume", "--limit", "3"]
    assert "1 difference from the search" in refused(capsys, other)
    # Heads that were made anew in their place.
    heads = made["own"] / "heads.safetensors"
    changed = tmp_path / "heads.safetensors"
    with safe_open(heads, "numpy") as file:
        leaves = {name: file.get_tensor(name) + 1 for name in file.keys()}  # noqa: SIM118  no mapping
        save_file(leaves, changed, file.metadata())
    other = [str(changed) if word == str(heads) else word for word in again]
    assert "1 difference from the search" in refused(capsys, [*other, "--resume"])


def test_methods_of_every_kind(made, tmp_path):
    ties = ["--grid", "density=0.2,0.5", "--grid", "scale=1"]
    found = run(made, tmp_path / "ties", *ties, method="ties", base=True)
    assert len(found["points"]) == 2
    indexed = ["--grid", "rank=0.1,0.5"]
    found = run(made, tmp_path / "own", *indexed, method="cart_indexing")
    assert set(found["test"]["accuracy"]) == set(TASKS)
    found = run(made, tmp_path / "mean", method="weight_average")
    assert [p["setting"] for p in found["points"]] == [{}]


def test_a_greedy_soup(made, tmp_path, capsys):
    merged = tmp_path / "soup.safetensors"
    output = tmp_path / "found"
    found = run(made, output, "--merged", merged, method="greedy_soup")
    members = found["chosen"]["setting"]["members"]
    alone = {p["setting"]["members"][0]: p["validation"] for p in found["points"][:3]}
    assert set(alone) == set(TASKS)
    assert alone[members[0]] == max(alone.values())
    assert len(found["points"]) == 5
    leaves = [load_file(made["own"] / TASKS[x] / "model.safetensors") for x in members]
    for name, x in load_file(merged).items():
        wanted = np.mean([each[name] for each in leaves], axis=0)
        np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-6)
    told = ["--method", "greedy_soup", "-o", str(tmp_path / "out")]
    said = refused(capsys, ["merge", *made["experts"], *told])
    assert "centermerge sweep --method greedy_soup" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--grid", "rnk=1"], "--grid rnk=1: cart has no 'rnk'"),
        (["--grid", "rank"], "--grid rank: expected NAME=VALUE,VALUE"),
        (["--grid", "rank=2.5", "--grid", "scale=1"], "lies in (0, 1], got 2.5"),
        (["--grid", "rank=a"], "rank is a number; got 'a'"),
        ([*GRID, "--rank", "0.2"], "--rank is given, and the grid has it too"),
        ([*GRID, "--patience", "0"], "patience is at least 1; got 0"),
        ([*GRID, "--tasks", "nope"], "no task is called 'nope'"),
    ],
)
def test_what_is_refused_leaves_nothing(made, tmp_path, capsys, more, message):
    output = tmp_path / "found"
    assert message in refused(capsys, words(made, output, *more))
    assert not (output / "sweep.json").exists()
