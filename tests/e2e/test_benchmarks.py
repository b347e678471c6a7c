"""The benchmarks run: their figures are for quiet machines, not for tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program, *arguments):
    command = [sys.executable, "-m", f"experiments.benchmarks.{program}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    "program",
    ["solvers", "whole_merge", "sweep", "spectrum", "streaming", "evaluation"],
)
def test_help(program):
    done = run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert program in done.stdout


def test_compilation_of_a_shallow_model(tmp_path):
    small = ("--quick", "--modes", "eager cart", "--depths", "2")
    done = run("compilation", *small, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads((tmp_path / "compilation.json").read_text())["lines"]
    assert measured["depth"] == 2
    assert 0 < measured["programs"] < 100


def test_streaming_of_a_tiny_model(tmp_path):
    small = ("--sizes", "5MiB", "--experts", "3", "--budgets", "1GiB")
    where = ("--folder", str(tmp_path), "--output", str(tmp_path), "--mergekit", "none")
    done = run("streaming", *small, *where, "--repeats", "1")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "streaming.json").read_text())
    assert {line["method"] for line in record["memory"]} == {
        "weight_average",
        "task_arithmetic",
        "cart",
    }
    for line in record["memory"]:
        # Of so small a model nearly all is Python and JAX; larger ones are nearer.
        assert 0.6 < line["peak"] / line["predicted"] < 1.4
    assert {line["program"] for line in record["rates"]} == {"copy", "ours"}
