"""Published numbers as data, and the configurations made of them."""

import inspect
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from centermerge_jax.data import registry
from centermerge_jax.methods.registry import METHODS
from centermerge_jax.models import clip
from experiments.configs import published, table
from experiments.configs.published import CELLS, FAMILIES, PER_TASK, SOURCES
from experiments.configs.table import CONFIGS


def value(model, suite, method, **fields):
    (found,) = published.cells(model=model, suite=suite, method=method, **fields)
    return found.value


def test_cells_say_where_they_are_from():
    assert {cell.source for cell in CELLS} <= set(SOURCES)
    assert {cell.family for cell in CELLS} <= {*FAMILIES, None}
    assert {source.trust for source in SOURCES.values()} == {"primary", "secondary"}
    assert all(source.where for source in SOURCES.values())
    keys = [(c.model, c.suite, c.method, c.metric, c.source) for c in CELLS]
    assert len(set(keys)) == len(keys)
    assert all(cell.suite in registry.SUITES for cell in CELLS)
    assert all(0 < cell.value < 100 for cell in CELLS)


def test_the_papers_own_row():
    # The README of JH-GEECS/CART, typed in again.
    row = {
        (model, suite): value(model, suite, "cart", source="cart-readme")
        for model, suite in product(("ViT-B-32", "ViT-L-14"), table.TASKS)
    }
    assert list(row.values()) == [84.7, 79.5, 76.3, 92.6, 88.7, 87.9]


def test_means_are_those_of_the_tasks():
    for known in PER_TASK:
        assert set(known.values) == set(registry.SUITES["clip20"])
        if known.split == "validation":
            continue
        for suite in table.TASKS:
            mean = np.mean([known.values[task] for task in registry.SUITES[suite]])
            stated = value(
                known.model,
                suite,
                "individual",
                family=known.family,
                metric="accuracy",
            )
            # One table cuts off where others round.
            assert mean == pytest.approx(stated, abs=0.1)


def test_published_accuracies_are_whole_numbers_of_test_images():
    # So the registry's numbers of test images are those that were used.
    for known in PER_TASK:
        if known.split == "validation" or known.family != "tall":
            continue
        for task, percent in known.values.items():
            count = registry.TASKS[task].tests
            assert count is not None
            right = round(percent / 100 * count)
            assert round(100 * right / count, 4) == percent, task


def test_the_leak_of_dtd_is_in_the_numbers():
    leaked, held_out = (
        next(
            known.values["dtd"]
            for known in PER_TASK
            if (known.model, known.split, known.family) == ("ViT-B-32", split, "tall")
        )
        for split in ("test", "validation")
    )
    assert leaked - held_out > 15


def test_mixed_checkpoints_are_what_they_are_said_to_be():
    # Eight experts of one family and the others of another give the mixed means.
    for model in ("ViT-B-32", "ViT-L-14"):
        eight = value(model, "clip8", "individual", family="mix")
        tall = value(model, "clip8", "individual", family="tall")
        for suite, count in (("clip14", 14), ("clip20", 20)):
            expected = value(model, suite, "individual", family="tall")
            expected += 8 * (eight - tall) / count
            stated = value(model, suite, "individual", family="mix")
            assert stated == pytest.approx(expected, abs=0.15)


def test_merging_lies_between_the_base_and_the_experts():
    for cell in CELLS:
        if cell.metric != "accuracy" or cell.method in ("individual", "pretrained"):
            continue
        bounds = [
            other.value
            for other in published.cells(
                model=cell.model,
                suite=cell.suite,
                metric="accuracy",
                family=cell.family,
            )
            if other.method in ("individual", "pretrained")
        ]
        if len(bounds) == 2:
            assert min(bounds) < cell.value < max(bounds)


# --- configurations


def test_every_cell_has_a_configuration():
    assert len(CONFIGS) == 3 * 3 * len(table.GRIDS)
    assert all(name == config.name for name, config in CONFIGS.items())
    assert {"vit_b32_8_cart", "vit_l14_20_weight_average"} <= set(CONFIGS)
    for model in table.MODELS:
        assert isinstance(
            getattr(clip, model.upper().replace("-", "_")), clip.CLIPConfig
        )
    for config in CONFIGS.values():
        assert len(registry.SUITES[config.suite]) == table.TASKS[config.suite]
        assert config.published is not None


def test_hyperparameters_are_those_of_the_methods():
    for config in CONFIGS.values():
        method = METHODS[config.method]
        parameters = method.hyperparameters
        assert set(config.hyperparameters) <= set(parameters)
        needed = {
            name
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty
        }
        assert needed <= set(config.hyperparameters)
        assert all(config.grid[name] for name in config.unknown)


def test_published_settings_are_used_and_others_are_not_invented():
    found = {
        name: tuple(config.hyperparameters.values())
        for name, config in CONFIGS.items()
        if config.method == "cart"
    }
    known = {
        "vit_b32_8_cart": (0.12, 2.0),
        "vit_b32_14_cart": (0.16, 1.5),
        "vit_b32_20_cart": (0.32, 1.9),
    }
    assert found == dict.fromkeys(found, (None, None)) | known
    for name, config in CONFIGS.items():
        assert (config.settings_source is not None) == (name in known)


def test_a_configuration_describes_itself():
    assert str(CONFIGS["vit_b32_8_cart"]) == (
        "python -m experiments.run vit_b32_8_cart --checkpoints DIR --data-dir DIR\n"
        "  cart of ViT-B-32, clip8: rank 0.12, scale 2 "
        "(configs/CART of JH-GEECS/CART at 964cfd7)\n"
        "  expected: 84.7 % on mix checkpoints "
        "(README of JH-GEECS/CART at 964cfd7, table of 2025-03-24; primary)"
    )
    unknown = str(CONFIGS["vit_b16_14_cart"])
    assert "rank unknown, scale unknown" in unknown
    assert "expected: 84.1 % on unknown checkpoints" in unknown
    assert "secondary" in unknown


def test_the_page_has_the_published_numbers():
    page = Path(__file__).parents[2] / "docs" / "benchmark.md"
    methods = {
        "pretrained": "pretrained",
        "experts": "individual",
        "weight average": "weight_average",
        "task arithmetic": "task_arithmetic",
        "TIES": "ties",
        "CART": "cart",
        "CART, quoted by others": "cart",
    }
    families = {"mix": "cart-readme", "tall": "esm-table", "not known": "ace-notes"}
    columns = [(model, suite) for model in table.MODELS for suite in table.TASKS]
    lines = page.read_text().split("## Expected numbers")[1].splitlines()
    seen = 0
    for line in lines:
        row = [cell.strip().strip("*`") for cell in line.split("|")[1:-1]]
        if not row or row[0] not in methods:
            continue
        for (model, suite), number in zip(columns, row[2:], strict=True):
            found = published.cells(
                model=model,
                suite=suite,
                method=methods[row[0]],
                source=families[row[1]],
                metric="accuracy",
            )
            assert [f"{cell.value:.1f}" for cell in found] == ([number] * bool(number))
            seen += bool(number)
    assert seen == 6 * 6 + 5 * 9 + 3
