"""Causal masks, which hold -inf and nobody trained, go through merges unchanged."""

import dataclasses

import numpy as np
import pytest
from disk import NAMES, flat, write_safetensors
from models import expert

from centermerge_jax import merging
from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.cli import main
from centermerge_jax.division import divide
from centermerge_jax.errors import MergeError
from centermerge_jax.planning import plan
from centermerge_jax.recipe import Recipe

MASK = np.triu(np.full((5, 5), -np.inf, np.float32), 1)
KERNEL = "blocks/0/mlp/fc1/kernel"


def masked(folder, names=NAMES, name="text.attn_mask", **others):
    changes = {model: {name: others.get(model, MASK)} for model in names}
    return write_safetensors(folder, names, **changes)


def merge(paths, output, *flags):
    settings = flags or ("--rank", "0.25", "--scale", "1.5")
    main(["merge", *paths, "-o", str(output), "--quiet", *settings])
    return open_checkpoint(output).read_all()


METHODS = {
    "cart": ("--rank", "0.25", "--scale", "1.5"),
    "weight_average": (),
    "task_arithmetic": ("--scale", "0.3", "--base", "{base}"),
    # A pass over all leaves, before the merge, finds thresholds.
    "ties": ("--scale", "1", "--density", "0.2", "--base", "{base}"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_is_carried_and_changes_nothing_else(tmp_path, method):
    paths = masked(tmp_path)
    (tmp_path / "b").mkdir()
    (base,) = masked(tmp_path / "b", names=("base",))
    flags = [x.replace("{base}", base) for x in METHODS[method]]
    merged = merge(paths, tmp_path / "out", "--method", method, *flags)
    np.testing.assert_array_equal(merged.pop("text.attn_mask"), MASK)
    flags += ["--exclude", "text.*"]
    without = merge(paths, tmp_path / "without", "--method", method, *flags)
    assert merged.keys() == without.keys()
    for name, leaf in without.items():
        np.testing.assert_array_equal(merged[name], leaf)


def test_a_mask_alone_in_its_part(tmp_path):
    paths = masked(tmp_path)
    flags = ("--method", "weight_average", "--exclude", "(?!text).*")
    merged = merge(paths, tmp_path / "out", *flags)
    np.testing.assert_array_equal(merged["text.attn_mask"], MASK)


def test_a_mask_in_another_type(tmp_path):
    merged = merge(
        masked(tmp_path),
        tmp_path / "out",
        "--method",
        "weight_average",
        "--dtype",
        "bfloat16",
    )
    mask = merged["text.attn_mask"]
    assert mask.dtype == "bfloat16"
    np.testing.assert_array_equal(mask.astype(np.float32), MASK)


def test_a_mask_that_does_not_fit_into_a_part(tmp_path):
    # Whatever part of it is read, nobody knows there whether the rest is the same.
    paths = masked(tmp_path)
    recipe = Recipe(
        experts=tuple(paths), method="weight_average", exclude=("(?!text).*",)
    )
    todo = plan(recipe)
    infos = next(iter(todo.models.values())).leaves
    parts = divide(
        {"text.attn_mask": infos["text.attn_mask"]},
        views={},
        settings={"text.attn_mask": {}},
        scope="element",
        most=10,
    )
    assert len(parts) > 1
    todo = dataclasses.replace(todo, parts=tuple(parts))
    with pytest.raises(MergeError, match=r"read as a whole: more --memory"):
        merging.merge(todo, tmp_path / "out")


def test_inspect_tells_masks_from_faults(tmp_path, capsys):
    main(["inspect", masked(tmp_path, names=("cars",))[0]])
    shown = capsys.readouterr()
    assert shown.err == "note: -inf in text.attn_mask, which merges carry as it is\n"
    assert "all finite" not in shown.out


def test_a_kept_mask(tmp_path):
    paths = masked(tmp_path)
    keep = ("--keep", "text.*", "--keep-from", "dtd")
    merged = merge(paths, tmp_path / "out", "--method", "weight_average", *keep)
    np.testing.assert_array_equal(merged["text.attn_mask"], MASK)


def changed(value):
    mask = MASK.copy()
    mask[0, 0] = value
    return mask


BAD = {
    "one that differs": ({"dtd": changed(1.0)}, "attn_mask (0 NaN, 10 inf)"),
    "one that is finite": ({"dtd": np.zeros_like(MASK)}, "attn_mask (0 NaN, 10 inf)"),
    "NaN": (dict.fromkeys(NAMES, changed(np.nan)), "attn_mask (1 NaN, 10 inf)"),
    "+inf": (dict.fromkeys(NAMES, changed(np.inf)), "attn_mask (0 NaN, 11 inf)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_mask_is_refused(tmp_path, capsys, kind):
    others, message = BAD[kind]
    paths = masked(tmp_path, **others)
    with pytest.raises(SystemExit):
        merge(paths, tmp_path / "out")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_weight_with_minus_infinity_is_no_mask(tmp_path, capsys):
    kernel = flat(expert(0))[KERNEL].copy()
    kernel[0, 0] = -np.inf
    paths = masked(tmp_path, name=KERNEL, **dict.fromkeys(NAMES, kernel))
    with pytest.raises(SystemExit):
        merge(paths, tmp_path / "out")
    assert f"non-finite values in {KERNEL} (0 NaN, 1 inf)" in capsys.readouterr().err
