"""The study on next to nothing: every step is made, kept, and not made twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import centermerge_jax as cm
from centermerge_jax.demo import Settings
from centermerge_jax.demo.experts import Backbone, Head, Tokens, fine_tune
from centermerge_jax.models import bert
from experiments.study import embeddings, intervals
from experiments.study.__main__ import main
from experiments.study.material import material, minilm, sampled
from experiments.study.notebook import Notebook
from experiments.study.questions import SHIFTS
from experiments.study.results import LABELS
from experiments.study.search import BUDGET, GRIDS
from experiments.study.settings import STUDIES, TEXT, VISION, smoke


def run(kind, folder):
    """By itself, as optax does not promote types as strictly as tests do."""
    work, output = folder / "work", folder / "results"
    command = [sys.executable, "-m", "experiments.study", kind, "--smoke"]
    command += ["--work", str(work), "--output", str(output)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    return work, output


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run("vision", tmp_path_factory.mktemp("study"))


def test_what_is_written(done):
    _, output = done
    found = json.loads((output / "comparison.json").read_text())
    small = smoke(VISION)
    assert found["kind"] == "comparison"
    assert found["tasks"] == list(small.training.tasks)
    assert found["seeds"] == list(small.seeds)
    names = {"pretrained", "experts", "joint", *small.methods}
    assert set(found["methods"]) == names
    for row in found["methods"].values():
        means = [run["mean"] for run in row["runs"]]
        assert row["mean"] == pytest.approx(np.mean(means))
        for run in row["runs"]:
            assert run["mean"] == pytest.approx(np.mean(list(run["accuracy"].values())))
            assert set(run["items"].values()) == {40}
    cart = found["methods"]["cart"]["runs"][0]
    best = max(point["validation"] for point in cart["points"])
    chosen = [p for p in cart["points"] if p["setting"] == cart["setting"]]
    assert chosen[0]["validation"] == best == cart["validation"]
    curve = found["curves"]["cart"]
    assert np.shape(curve["accuracy"]) == (2, 2)
    # At full rank every scale gives the average.
    average = found["methods"]["weight_average"]["runs"]
    mean = np.mean([run["mean"] for run in average])
    assert curve["tested"][-1] == pytest.approx(mean, abs=1 / 40)
    assert {claim["verdict"] for claim in found["claims"]} <= {
        "shown",
        "contradicted",
        "open",
        "mixed",
    }


def test_embeddings_are_merged_in_every_way(tmp_path):
    work, output = run("text", tmp_path)
    book = json.loads((work / "seed-0" / "found.json").read_text())
    ways = book["found"]["embeddings"]["ways"]
    assert set(ways) == {*SHIFTS, "sum", "truncated like matrices"}
    tasks = smoke(TEXT).training.tasks
    for found in ways.values():
        assert {task: len(x) for task, x in found["test"].items()} == dict.fromkeys(
            tasks, 40
        )
    experts = {
        task: cm.checkpoints.open_checkpoint(path).read_all()
        for task in tasks
        for path in [work / "seed-0" / "nothing-frozen" / f"{task}.safetensors"]
    }
    base = material(smoke(TEXT), 0, frozen=False).base
    tables = embeddings.tables_as_matrices(base)
    assert {view.shape[1] for view in tables.values()} == {384}
    assert len(tables) == 3
    for leaves in experts.values():
        assert set(leaves) == set(base)
        for name in tables:
            assert not np.array_equal(leaves[name], base[name]), name
    told = json.loads((output / "comparison.json").read_text())["claims"]
    assert any(claim["claim"].startswith("Tables of embeddings") for claim in told)


def test_a_second_run_computes_nothing(done, monkeypatch):
    work, output = done
    before = json.loads((output / "comparison.json").read_text())

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("experiments.study.seed.material", refuse)
    main("vision", smoke_only=True, work=work, output=output)
    again = json.loads((output / "comparison.json").read_text())
    assert again["methods"] == before["methods"]


def test_experts_of_other_settings_are_not_taken(done, tmp_path):
    work, _ = done
    with pytest.raises(cm.CheckpointError, match=r"training was .* now"):
        main("vision", work=work, output=tmp_path)
    other = tmp_path / "other" / "seed-0"
    other.mkdir(parents=True)
    for file in (work / "seed-0").glob("mnist.safetensors*"):
        shutil.copy(file, other)
    with pytest.raises(cm.CheckpointError, match=r"difference.* from the settings"):
        main("vision", work=other.parent, output=tmp_path)


class Counted(Tokens):
    """Items that count how often each of them is taken."""

    def __getitem__(self, index):
        seen = SEEN.setdefault(id(self.labels), np.zeros(len(self.labels), int))
        np.add.at(seen, index, 1)
        return super().__getitem__(index)


SEEN = {}


def test_joint_training_sees_as_many_items_as_the_experts_together():
    settings = Settings(tasks=("a", "b", "c"), steps=5, batch=6, seed=3)
    rng = np.random.default_rng(0)
    backbone = Backbone(
        {"blocks": {}},
        {"blocks": {"0": np.eye(4, dtype=np.float32)}},
        prefix=lambda whole, x: x,
        suffix=lambda whole, x: x @ whole["blocks"]["0"],
    )
    tokens = {
        task: Counted(rng.normal(size=(n, 4)).astype(np.float32), np.arange(n) % 2)
        for task, n in (("a", 7), ("b", 30), ("c", 90))
    }
    heads = {
        task: Head(rng.normal(size=(4, 2)).astype(np.float32), np.zeros(2, np.float32))
        for task in tokens
    }

    def seen(tasks):
        SEEN.clear()
        some = {task: tokens[task] for task in tasks}
        with jax.numpy_dtype_promotion("standard"):  # optax's
            fine_tune(backbone, some, heads, settings, progress=lambda _: None)
        return {task: SEEN[id(tokens[task].labels)] for task in tasks}

    together = seen(tokens)
    for task in tokens:
        alone = seen([task])[task]
        assert alone.sum() == together[task].sum() == settings.steps * settings.batch
        # Every item once before any comes again.
        for found in (alone, together[task]):
            assert found.max() - found.min() <= 1


@pytest.mark.parametrize("frozen", [True, False])
def test_texts_are_classified_as_by_the_whole_network(frozen):
    small = smoke(TEXT)
    with jax.numpy_dtype_promotion("standard"):  # optax's
        own = material(small, 0, frozen=frozen)
    assert set(own.heads) == set(own.splits) == set(small.training.tasks)
    assert {k: len(x.labels) for k, x in own.splits["humor"].items()} == {
        "train": 64,
        "validation": 16,
        "test": 40,
    }
    params, config, tokenizer = minilm(small.tokens)
    for task, head in own.heads.items():
        texts, labels = sampled(task, small.at(0))["validation"]
        read = tokenizer(texts)
        ids, mask = jnp.asarray(read.ids), jnp.asarray(read.mask)
        hidden = bert.apply(params, ids, mask, config=config)
        features = np.asarray(bert.mean_pool(hidden, mask))
        right = (features @ head.kernel + head.bias).argmax(axis=-1) == labels
        (found,) = own.outcomes(own.base, "validation", (task,)).values()
        np.testing.assert_array_equal(found, right)
        assert found.any()


def test_every_method_has_the_same_budget():
    for study in STUDIES.values():
        for method, grid in GRIDS[study.kind].items():
            assert np.prod([len(values) for values in grid.values()]) <= BUDGET, method
            assert set(grid) <= set(cm.METHODS[method].own)
        assert set(GRIDS[study.kind]) <= set(LABELS)
        assert study.training.batch % len(study.training.tasks) == 0
        assert len(study.seeds) >= 2
    assert len(VISION.training.tasks) >= 8
    assert len(TEXT.training.tasks) >= 5


def test_a_notebook_keeps_what_it_knows(tmp_path):
    path = tmp_path / "found.json"
    book = Notebook(path, {"seed": 0})
    assert book.once("a", lambda: (1, 2)) == [1, 2]
    again = Notebook(path, {"seed": 0})
    assert again.once("a", lambda: pytest.fail("computed again")) == [1, 2]
    with pytest.raises(cm.CheckpointError, match="seed was 0, now 1"):
        Notebook(path, {"seed": 1})


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_have_a_part_of_items_and_a_part_of_seeds(seeds, spread):
    rng = np.random.default_rng(0)
    items, draws = 200, 2000
    # Items differ in how hard they are, seeds in how good they are.
    hard = rng.normal(0, 0.2, (draws, 1, items))
    good = rng.normal(0, spread, (draws, seeds, 1))
    right = rng.random((draws, seeds, items)) < 0.7 + hard + good
    noise = rng.normal(0, 0.2, 10**6) + rng.normal(0, spread, 10**6)
    expected = np.mean(rng.random(10**6) < 0.7 + noise)
    inside = []
    for one in right:
        value, half = intervals.interval([{"a": run} for run in one])
        assert value == pytest.approx(one.mean())
        inside.append(abs(value - expected) < half)
    # 95 % would be exact; what the items make seeds differ by counts twice.
    assert (0.935 if spread < 0.1 else 0.87) < np.mean(inside) < 0.999


def test_a_difference_is_of_the_same_items():
    better = [{"a": np.array([True, True, False, True]), "b": np.array([True, True])}]
    worse = [{"a": np.array([True, False, False, True]), "b": np.array([False, True])}]
    value, half = intervals.difference(better, worse)
    assert value == pytest.approx((1 / 4 + 1 / 2) / 2)
    variances = [np.var([0, 1, 0, 0], ddof=1) / 4, np.var([1, 0], ddof=1) / 2]
    assert half == pytest.approx(1.959964 * np.sqrt(sum(variances)) / 2, rel=1e-6)


def test_an_interval_is_over_the_tasks_that_each_seed_has():
    a, b, c = np.array([1, 1, 0, 0.0]), np.array([1, 0.0]), np.array([1, 1, 0.0])
    value, half = intervals.interval([{"a": a, "b": b}, {"b": b, "c": c}])
    assert value == pytest.approx((0.5 + 0.5 + 0.5 + 2 / 3) / 4)
    # Each answer counts as much as it moves the mean: those of b, in both runs, twice.
    parts = [x.var(ddof=1) / len(x) for x in (a / 4, b / 2, c / 4)]
    of_items, of_seeds = sum(parts), np.var([0.5, (0.5 + 2 / 3) / 2], ddof=1) / 2
    freedom = ((of_items + of_seeds) / of_seeds) ** 2
    quantile = scipy.stats.t.ppf(0.975, freedom)
    assert half == pytest.approx(quantile * np.sqrt(of_items + of_seeds))
