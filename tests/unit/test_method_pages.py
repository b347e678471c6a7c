"""What is made from the registry of methods: pages, help, and the recipe's values."""

import json
from pathlib import Path

import pytest

from centermerge_jax.cli import main
from centermerge_jax.errors import ParameterError
from centermerge_jax.method_pages import page
from centermerge_jax.methods import METHODS
from centermerge_jax.settings import read_value

ROOT = Path(__file__).parents[2]


def test_the_page_of_methods_is_up_to_date():
    wanted = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page(METHODS) == wanted, "python -m centermerge_jax.method_pages"


def test_every_grid_is_of_what_the_method_takes():
    for name, method in METHODS.items():
        assert set(method.grid) <= set(method.own), name
        assert method.summary, name


def test_the_command_lists_and_shows(capsys):
    main(["methods"])
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in METHODS)
    main(["methods", "iso_cts"])
    shown = capsys.readouterr().out
    assert "--set common=" in shown
    assert "arXiv:2502.04959" in shown
    main(["methods", "emr", "--json"])
    (found,) = json.loads(capsys.readouterr().out).values()
    assert found["needs"] == ["base", "task"]
    with pytest.raises(SystemExit) as stopped:
        main(["methods", "iso_ct"])
    assert stopped.value.code == 2
    assert "did you mean iso_cts?" in capsys.readouterr().err


def test_values_have_the_types_of_the_function():
    assert read_value("x", "2", int | None) == 2
    assert read_value("x", "1e-5", float) == 1e-5
    assert type(read_value("x", "1", float)) is float
    assert read_value("x", "mnist", str) == "mnist"
    for text, kind in (("2.5", int), ("x", float), ("", int | None)):
        with pytest.raises(ParameterError, match="x is a"):
            read_value("x", text, kind)
