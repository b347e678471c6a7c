"""Bad results: one line that names the file and the key, status 2, and no output."""

import json

import numpy as np
import pytest
from study_results import analysis, comparison, sweep

from centermerge_jax import atomic_files
from centermerge_jax.cli import main
from centermerge_jax.report import read_results, writing


def told(capsys, *arguments):
    """The one line on stderr of a command that fails."""
    with pytest.raises(SystemExit) as done:
        main(["report", *map(str, arguments)])
    assert done.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    (line,) = said.err.splitlines()
    return line


def at(content, path):
    *above, last = path
    for key in above:
        content = content[key]
    return content, last


def changed(make, path, value):
    content = make()
    inner, last = at(content, path)
    inner[last] = value
    return content


def without(make, path):
    content = make()
    inner, last = at(content, path)
    del inner[last]
    return content


KERNEL = "blocks/10/attn/q/kernel"
CASES = {
    "tasks is missing": without(comparison, ["tasks"]),
    "methods is missing": without(comparison, ["methods"]),
    "methods is empty": changed(comparison, ["methods"], {}),
    "tasks has 0 items, expected 1 or more": changed(comparison, ["tasks"], []),
    "methods.cart.mean is missing": without(comparison, ["methods", "cart", "mean"]),
    "methods.cart.accuracy.xray is missing": without(
        comparison, ["methods", "cart", "accuracy", "xray"]
    ),
    "methods.cart.accuracy.xray is 92.7, expected in [0, 1]": changed(
        comparison, ["methods", "cart", "accuracy", "xray"], 92.7
    ),
    "methods.cart.mean is '0.9', expected a finite number": changed(
        comparison, ["methods", "cart", "mean"], "0.9"
    ),
    "methods.cart.mean is True, expected a finite number": changed(
        comparison, ["methods", "cart", "mean"], True
    ),
    "methods.cart.runs[1].items.mnist is -1, expected a whole number": changed(
        comparison, ["methods", "cart", "runs", 1, "items"], {"mnist": -1}
    ),
    "methods.cart.over_joint is -3.75, but the means differ by -0.0375": changed(
        comparison, ["methods", "cart", "over_joint"], -3.75
    ),
    "curves.cart.accuracy[0] has 1 items, expected 3": changed(
        comparison, ["curves", "cart", "accuracy", 0], [0.5]
    ),
    "curves.cart.accuracy has no number": changed(
        comparison, ["curves", "cart", "accuracy"], [[None] * 3] * 4
    ),
    "claims[0].verdict is 0, expected one of shown, contradicted, open, mixed": changed(
        comparison, ["claims", 0, "verdict"], 0
    ),
    "kind is 'story', expected one of comparison, analysis, sweep": changed(
        comparison, ["kind"], "story"
    ),
    "kind is ['sweep'], expected one of comparison, analysis, sweep": changed(
        comparison, ["kind"], ["sweep"]
    ),
    "kind is missing": without(comparison, ["kind"]),
    "the file is [], expected an object": [],
    "shares is missing": without(analysis, ["shares"]),
    "mean_over_matrices.base is missing": without(
        analysis, ["mean_over_matrices", "base"]
    ),
    "mean_over_matrices.mean.interference_top has 1 items, expected 4": changed(
        analysis, ["mean_over_matrices", "mean", "interference_top"], [1.0]
    ),
    "mean_over_matrices.mean.cosine[3] has 2 items, expected 4": changed(
        analysis, ["mean_over_matrices", "mean", "cosine", 3], [1.0, 1.0]
    ),
    f"matrices.{KERNEL}.layer is missing": without(
        analysis, ["matrices", KERNEL, "layer"]
    ),
    f"matrices.{KERNEL}.mean is missing": without(
        analysis, ["matrices", KERNEL, "mean"]
    ),
    f"matrices.{KERNEL}.mean.singular_values[1] has 1 items, expected 3": changed(
        analysis, ["matrices", KERNEL, "mean", "singular_values", 1], [1.0]
    ),
    f"matrices.{KERNEL}.shape has a side of 0": changed(
        analysis, ["matrices", KERNEL, "shape"], [0, 8]
    ),
    "points has 0 items, expected 1 or more": changed(sweep, ["points"], []),
    "points[2].validation is missing": without(sweep, ["points", 2, "validation"]),
    "chosen is missing": without(sweep, ["chosen"]),
    "chosen.setting is None, expected an object": changed(
        sweep, ["chosen", "setting"], None
    ),
    "versions is '1', expected an object": changed(sweep, ["versions"], "1"),
}


@pytest.mark.parametrize("message", CASES)
def test_what_a_result_lacks_is_named(tmp_path, capsys, message):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(CASES[message]))
    output = tmp_path / "report.html"
    assert told(capsys, path, "-o", output) == f"ERROR: {path}: {message}"
    assert not output.exists()


BROKEN = {
    "": "no JSON: Expecting value: line 1 column 1 (char 0)",
    '{"kind": "sweep",': "no JSON: Expecting property name",
    '{"kind": NaN}': "no JSON: NaN is not of JSON",
    "[" * 100_000: "no JSON: ",
    "\xff\xfe": "no JSON: ",
    '{"kind": "\\ud800"}': "no JSON: 'utf-8' codec can't encode",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_files_are_named_in_folders_too(tmp_path, capsys, text):
    path = tmp_path / "deep" / "result.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    for given in (path, tmp_path):
        line = told(capsys, given, "-o", tmp_path / "report.html")
        assert line.startswith(f"ERROR: {path} is {BROKEN[text]}")


def test_huge_numbers_are_refused(tmp_path, capsys):
    path = tmp_path / "result.json"
    text = json.dumps(sweep()).replace('"seconds": 1.9', f'"seconds": 1{"0" * 400}', 1)
    path.write_text(text)
    line = told(capsys, path, "-o", tmp_path / "report.html")
    assert line.startswith(f"ERROR: {path}: points[0].seconds is 1000")
    assert line.endswith("..., expected a finite number")


def test_files_that_are_not_there_and_folders_without_results(tmp_path, capsys):
    output = tmp_path / "report.html"
    missing = tmp_path / "none.json"
    line = told(capsys, missing, "-o", output)
    assert line == f"ERROR: {missing}: No such file or directory"
    line = told(capsys, tmp_path, "-o", output)
    assert line == f"ERROR: there are no results in {tmp_path}"


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(sweep()))
    return path


def test_outputs_that_exist_are_refused_before_any_work(tmp_path, capsys, result):
    output, figures = tmp_path / "report.html", tmp_path / "figures"
    output.write_text("mine")
    exists = "exists already; choose another output or remove it first"
    line = told(capsys, tmp_path / "none.json", "-o", output)
    assert line == f"ERROR: {output} {exists}"
    assert output.read_text() == "mine"
    figures.mkdir()
    other = tmp_path / "other.html"
    line = told(capsys, result, "-o", other, "--figures", figures)
    assert line == f"ERROR: {figures} {exists}"
    (tmp_path / "study-figures").mkdir()
    line = told(capsys, result, "-o", tmp_path / "study.md")
    assert line == f"ERROR: {tmp_path / 'study-figures'} {exists}"
    assert not other.exists()


def test_other_endings_are_refused(tmp_path, capsys, result):
    output = tmp_path / "report.pdf"
    line = told(capsys, result, "-o", output)
    assert line == f"ERROR: a report ends in .html or .md; got {output}"


def test_a_missing_folder_is_told(tmp_path, capsys, result):
    output = tmp_path / "new" / "report.html"
    line = told(capsys, result, "-o", output)
    assert line.endswith(
        f"there is no folder {tmp_path / 'new'}; create it: mkdir -p {tmp_path / 'new'}"
    )


def test_missing_matplotlib_is_told(tmp_path, capsys, result, monkeypatch):
    import sys

    for name in [name for name in sys.modules if "centermerge_jax.report" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if "centermerge_jax.plots" in name]:
        monkeypatch.delitem(sys.modules, name)
    line = told(capsys, result, "-o", tmp_path / "report.html")
    assert line == (
        "ERROR: figures take matplotlib: pip install 'centermerge_jax[plots]'"
    )


@pytest.mark.parametrize("failing", ["figure", "page"])
def test_an_interrupted_report_leaves_nothing(tmp_path, result, monkeypatch, failing):
    def stop(*_):
        raise KeyboardInterrupt

    if failing == "figure":
        monkeypatch.setattr(writing, "save", stop)
    else:
        monkeypatch.setattr(atomic_files.os, "fsync", stop)
    results, _ = read_results([result])
    with pytest.raises(KeyboardInterrupt):
        writing.write_report(results, tmp_path / "study.md")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_mutated_results_are_reported_or_refused_and_never_a_bug(tmp_path):
    """What is taken out or replaced anywhere gives a page, or an error of ours."""
    from centermerge_jax.errors import MergeError

    rng = np.random.default_rng(0)
    path = tmp_path / "result.json"
    refused = made = 0
    for i in range(24):
        content = (comparison, analysis, sweep)[i % 3]()
        inner = content
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key = keys[rng.integers(len(keys))]
            child = inner[key]
            if not isinstance(child, dict | list) or not child or rng.random() < 0.3:
                break
            inner = child
        if rng.random() < 0.5:
            del inner[key]
        else:
            values = (None, "", "x", -1, 0, 2, 1e9, [], {}, True)
            inner[key] = values[rng.integers(len(values))]
        path.write_text(json.dumps(content))
        output = tmp_path / f"{i}.html"
        try:
            results, _ = read_results([path])
            writing.write_report(results, output)
        except MergeError as error:
            refused += "\n" not in str(error)  # one line
        else:
            made += 1
    assert refused + made == 24
    assert min(refused, made) > 3
