"""Means over tasks, the table, and files that can be compared with later."""

import json

import numpy as np
import pytest
from rich.console import Console

from centermerge_jax import evaluation_files as files
from centermerge_jax import evaluation_report as report
from centermerge_jax.errors import CheckpointError, DataError, ParameterError
from centermerge_jax.evaluate import bootstrap, mean_accuracy, normalised
from centermerge_jax.evaluation_drafts import check_output, drafted
from centermerge_jax.task_results import TaskResult, Timing, task_result


def result(name, share, *, metric="accuracy", count=200, seed=0) -> TaskResult:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    right = rng.uniform(size=count) < share
    columns = {
        "index": rng.permutation(count).astype(np.int32),
        "label": labels,
        "prediction": np.where(right, labels, 1 - labels).astype(np.int32),
        "confidence": rng.uniform(0.5, 1, count).astype(np.float32),
        "loss": rng.uniform(size=count).astype(np.float32),
        "finite": np.ones(count, bool),
    }
    timing = Timing(2.0, 4.0, 0.5, 180)
    return task_result(name, columns, 2, metric, bins=15, timing=timing)


@pytest.fixture(scope="module")
def results():
    return {"dtd": result("dtd", 0.6), "mnist": result("mnist", 0.9)}


@pytest.fixture(scope="module")
def experts():
    made = {"dtd": result("dtd", 0.8), "mnist": result("mnist", 0.95)}
    return {name: one.answers for name, one in made.items()}


def test_items_come_in_the_order_of_the_source():
    found = result("dtd", 0.6)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    rng.uniform(size=200)
    order = np.argsort(rng.permutation(200))
    np.testing.assert_array_equal(found.answers.labels, labels[order])
    np.testing.assert_array_equal(found.index, np.arange(200))


def test_means_and_their_intervals(results, experts):
    found = report.summarise(results, experts, replicates=500, seed=3)
    answers = {name: one.answers for name, one in results.items()}
    outcomes = {name: one.correct for name, one in answers.items()}
    own = {name: one.correct for name, one in experts.items()}
    mean, half = mean_accuracy(outcomes)
    assert (found.score, found.half_width) == (pytest.approx(mean), half)
    assert found.normalised == pytest.approx(normalised(outcomes, own))
    settings = {"replicates": 500, "seed": 3}
    assert found.interval == bootstrap(answers, **settings)
    shares = bootstrap(answers, experts, statistic="normalised", **settings)
    assert found.normalised_interval == shares
    assert (found.seed, found.replicates) == (3, 500)
    alone = report.summarise(results, replicates=100)
    assert alone.normalised is alone.normalised_interval is None


def test_other_metrics_have_no_normal_approximation():
    glue = {
        "cola": result("cola", 0.8, metric="matthews"),
        "mrpc": result("mrpc", 0.8, metric="f1"),
        "rte": result("rte", 0.7),
    }
    found = report.summarise(glue, replicates=100)
    scores = [one.answers.score for one in glue.values()]
    assert scores[0] < scores[1]
    assert found.score == pytest.approx(np.mean(scores))
    assert found.half_width is None


def test_experts_of_other_items_are_an_error(results, experts):
    with pytest.raises(ParameterError, match="mnist: only one"):
        report.summarise(results, {"dtd": experts["dtd"]}, replicates=10)


def shown(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_the_table_has_a_row_for_each_task(results, experts):
    summary = report.summarise(results, experts, replicates=100)
    head, *rows = shown(report.table(results, summary, experts))
    assert head == [
        *("task", "items", "score", "95", "%", "interval", "expert", "share"),
        *("ECE", "NLL", "items/s"),
    ]
    dtd, mnist, mean = (row for row in rows if row)
    own = 100 * experts["dtd"].score
    score = 100 * results["dtd"].answers.score
    low, high = results["dtd"].interval
    assert dtd == [
        *("dtd", "200", f"{score:.1f}", f"{100 * low:.1f}", "to", f"{100 * high:.1f}"),
        *(f"{own:.1f}", f"{100 * score / own:.1f}"),
        f"{100 * results['dtd'].calibration.error:.1f}",
        f"{results['dtd'].negative_log_likelihood:.3f}",
        "45.0",
    ]
    assert mnist[0] == "mnist"
    assert mean[:2] == ["mean", f"{100 * summary.score:.1f}"]
    assert mean[-1] == f"{100 * summary.normalised:.1f}"
    glue = {"cola": result("cola", 0.8, metric="matthews")}
    _, cola, *_ = shown(report.table(glue, report.summarise(glue, replicates=10)))
    assert cola[:3] == ["cola", "(Matthews)", "200"]
    assert "to" not in cola


def test_a_file_can_be_compared_with_later(results, tmp_path):
    summary = report.summarise(results, replicates=100)
    settings = {"command": ["centermerge", "evaluate"], "heads_sha256": "ab"}
    path = tmp_path / "results.json"
    path.write_text("of an earlier run")
    found = files.document(results, summary, settings=settings)
    files.write_results(found, path)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    stored = json.loads(path.read_text())
    assert stored["settings"] == settings
    assert stored["versions"]["jax"]
    assert stored["summary"]["score"] == summary.score
    assert stored["tasks"]["dtd"]["timing"]["items_per_second"] == 45
    table = results["dtd"].answers.confusion
    assert stored["tasks"]["dtd"]["confusion"] == [
        f"0:{row[0]} 1:{row[1]}" for row in table
    ]
    for name, answers in files.read_answers(path).items():
        expected = results[name].answers
        np.testing.assert_array_equal(answers.labels, expected.labels)
        np.testing.assert_array_equal(answers.predictions, expected.predictions)
        assert (answers.classes, answers.metric) == (2, "accuracy")
    assert report.summarise(results, files.read_answers(path)).normalised == 1


def test_answers_can_be_left_out(results, tmp_path):
    summary = report.summarise(results, replicates=10)
    found = files.document(results, summary, settings={}, items=False)
    files.write_results(found, tmp_path / "r.json")
    with pytest.raises(CheckpointError, match=r"r.json was .* answers to dtd, mnist"):
        files.read_answers(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": {"a": {}}}'])
def test_other_files_are_errors(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="holds no results of an evaluation"):
        files.read_answers(path)


@pytest.mark.parametrize(
    "change", [{"metric": "bleu"}, {"answers": {"labels": "x", "predictions": ""}}]
)
def test_damaged_files_are_errors(results, tmp_path, change):
    path = tmp_path / "r.json"
    summary = report.summarise(results, replicates=10)
    found = files.document(results, summary, settings={})
    found["tasks"]["dtd"] |= change
    files.write_results(found, path)
    with pytest.raises(CheckpointError, match="holds no results of an evaluation"):
        files.read_answers(path)


def test_nothing_is_left_of_what_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file"):
        files.write_results({}, tmp_path / "nowhere" / "r.json")
    with pytest.raises(CheckpointError, match=r"r.json: No such file"):
        files.read_answers(tmp_path / "r.json")
    (tmp_path / "r.json").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*directory"):
        files.write_results({}, tmp_path / "r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_results({"loss": float("nan")}, tmp_path / "s.json")


# --- drafts

SETTINGS = {"command": ["centermerge", "evaluate"], "limit": None, "size": (2, 3)}


def test_a_continued_evaluation_ends_in_the_same_file(results, tmp_path):
    path, whole = tmp_path / "results.json", tmp_path / "whole.json"
    names = list(results)
    with drafted(path, names, SETTINGS) as draft:
        draft.keep({"mnist": results["mnist"]})
    stored = json.loads(path.read_text())
    assert (stored["summary"], stored["unfinished"]) == (None, ["dtd"])
    assert list(files.read_answers(path)) == ["mnist"]
    check_output(path, resume=True)
    with drafted(path, names, SETTINGS | {"command": ["again"]}) as draft:
        assert list(draft.results) == ["mnist"]
        draft.keep({"dtd": results["dtd"]})
        assert json.loads(path.read_text())["unfinished"] == []
        draft.finish(report.summarise(draft.results, replicates=50))
    summary = report.summarise(results, replicates=50)
    found = files.document(results, summary, settings=SETTINGS, date=stored["date"])
    files.write_results(found, whole)
    assert path.read_bytes() == whole.read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        check_output(path, resume=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("pcam: damaged")])
def test_what_is_finished_is_kept_and_said(results, tmp_path, error):
    path = tmp_path / "results.json"

    def fail_after(finished):
        with drafted(path, list(results), SETTINGS) as draft:
            if finished:
                draft.keep(finished)
            raise error

    with pytest.raises(type(error)) as caught:
        fail_after({})
    assert "kept" not in str(caught.value)
    assert not path.exists()
    with pytest.raises(type(error), match="kept: --resume continues"):
        fail_after({"dtd": results["dtd"]})
    assert list(files.read_answers(path)) == ["dtd"]


def test_only_the_same_evaluation_is_continued(results, tmp_path):
    path = tmp_path / "results.json"
    with drafted(path, list(results), SETTINGS) as draft:
        draft.keep({"dtd": results["dtd"]})
    with pytest.raises(CheckpointError, match="continue it with --resume, or remove"):
        check_output(path, resume=False)
    with (
        pytest.raises(CheckpointError) as caught,
        drafted(path, ["dtd", "svhn"], SETTINGS | {"limit": 5}),
    ):
        raise AssertionError
    assert "2 differences from the unfinished evaluation" in str(caught.value)
    assert "limit was None, now 5" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"tasks": {}}'])
def test_other_files_are_in_the_way(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="exists already"):
            check_output(path, resume=resume)
    damaged = '{"unfinished": ["dtd"], "tasks": {"dtd": {}}}'
    path.write_text(damaged)
    with (
        pytest.raises(CheckpointError, match="holds no results"),
        drafted(path, ["dtd"], {}),
    ):
        raise AssertionError
