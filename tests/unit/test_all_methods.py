"""The table of all methods: what goes in as outcomes comes out as accuracies."""

import json
from pathlib import Path

import numpy as np
import pytest

from centermerge_jax.methods import METHODS
from experiments.all_methods import (
    LEFT_OUT,
    MOST,
    markdown,
    packed,
    settings_of,
    summary,
)


def row(*right):
    outcomes = packed({"a": np.array(right, bool), "b": np.array(right[::-1], bool)})
    return {
        "setting": {"scale": 0.5},
        "tried": [],
        "seconds": 1.0,
        "peak_bytes": 2**20,
        "outcomes": outcomes,
    }


def test_accuracies_are_those_of_the_outcomes():
    rows = {
        "experts": row(1, 1, 1, 1),
        "cart": row(1, 1, 1, 0),
        "ties": row(0, 0, 1, 0),
    }
    found = summary(rows)
    assert rows["cart"]["outcomes"] == {"a": "1110", "b": "0111"}
    assert [found[name]["mean"] for name in rows] == [1.0, 0.75, 0.25]
    assert found["ties"]["over_cart"] == pytest.approx(-0.5)
    assert found["cart"]["normalised"] == pytest.approx(0.75)
    lines = markdown(rows, found).splitlines()[2:5]
    assert [line.split(" | ")[0] for line in lines] == [
        "| experts",
        "| **cart**",
        "| ties",
    ]


def test_every_method_is_tried_with_few_settings_or_left_out_for_a_reason():
    assert set(LEFT_OUT) < set(METHODS)
    for name, method in METHODS.items():
        if name not in LEFT_OUT:
            assert 1 <= len(settings_of(method)) <= MOST, name


def test_the_committed_table_is_of_all_methods():
    file = Path(__file__).parents[2] / "experiments/results/all_methods"
    rows = json.loads((file / "all_methods.json").read_text())["rows"]
    references = {"pretrained", "experts", "greedy_soup"}
    assert set(rows) == {*METHODS, *references} - set(LEFT_OUT)
    for name in set(rows) - references:
        tried = [
            {key: x for key, x in trial.items() if key != "validation"}
            for trial in rows[name]["tried"]
        ]
        # Grids are told by lists in a file, by tuples in the registry.
        assert tried == json.loads(json.dumps(settings_of(METHODS[name]))), name
    table = (file / "all_methods.md").read_text()
    assert table == markdown(rows, summary(rows))
