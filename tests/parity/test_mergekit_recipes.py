"""Recipes for mergekit, merged from files by both programs.

`tests/golden/mergekit_recipes.json` says what mergekit was given. Where it draws random
numbers, mean and variance over seeds are compared.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from disk import write_hub
from golden import mergekit_recipes as given
from safetensors.numpy import load_file

import centermerge_jax as cm
from centermerge_jax.mergekit.recipes import METHODS as METHODS_THERE
from centermerge_jax.methods import METHODS
from centermerge_jax.recipe_files import load_recipe
from centermerge_jax.settings import hyperparameters

FOLDER = Path(__file__).parents[1] / "golden"
# Of the largest number of all task vectors. Measured 2e-6: both sides are float32.
TOLERANCE = 1e-5
# mergekit stops before it has reached the mean, measured 1.3e-5.
EARLY = {"karcher": 1e-4}


@functools.cache
def golden():
    with np.load(FOLDER / "mergekit_recipes.npz") as file:
        return dict(file)


@functools.cache
def models():
    return given.models()


def moved(leaves):
    """How far a model is from the base, leaf after leaf."""
    base = models()["base"]
    far = [np.float64(leaves[x]) - np.float64(base[x]) for x in given.shapes()]
    return np.concatenate([x.ravel() for x in far])


def largest():
    return max(abs(moved(models()[name])).max() for name in ("cars", "dtd", "mnist"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("models")
    for name, leaves in models().items():
        write_hub(found / name, leaves, config=given.CONFIG)
    return found


def read(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    Path(f"{name}.yaml").write_text(given.ALL[name])
    return load_recipe(f"{name}.yaml")


def test_recipes_are_those_of_the_golden():
    kept = json.loads((FOLDER / "mergekit_recipes.json").read_text())["recipes"]
    assert kept == given.ALL


def merge(recipe, folder):
    out = folder / "out.safetensors"
    cm.stream.merge(recipe, output=out)
    return moved(load_file(out))


def parts(vector):
    """The numbers of each leaf, in its shape."""
    found, start = {}, 0
    for name, shape in given.shapes().items():
        size = int(np.prod(shape))
        found[name] = vector[start : start + size].reshape(shape)
        start += size
    return found


@pytest.mark.parametrize("name", given.RECIPES)
def test_same_result_from_the_same_recipe(name, folder, tmp_path, monkeypatch):
    recipe, _ = read(folder, name, monkeypatch)
    ours, theirs = merge(recipe, tmp_path), golden()[name]
    assert abs(theirs).max() > 1e-3 * largest()  # it is not the base that both return
    assert abs(ours - theirs).max() <= EARLY.get(name, TOLERANCE) * largest()


def test_every_method_that_is_read_is_compared():
    compared = {yaml.safe_load(text)["merge_method"] for text in given.ALL.values()}
    assert compared == set(METHODS_THERE)


def test_zeros_on_the_arc(folder, tmp_path, monkeypatch):
    recipe, notes = read(folder, "slerp_zeros", monkeypatch)
    assert any("zero in one model" in note for note in notes)
    ours, theirs = parts(merge(recipe, tmp_path)), parts(golden()["slerp_zeros"])
    for name, base in models()["base"].items():
        if name == "model.norm.weight":
            cars = models()["cars"][name]
            there = np.sin(0.7 * np.pi / 2) * cars - base
            np.testing.assert_allclose(theirs[name], there, rtol=0, atol=1e-6)
            np.testing.assert_allclose(ours[name], 0.7 * cars - base, rtol=0, atol=1e-6)
        else:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_short_task_vectors_in_model_stock(folder, tmp_path, monkeypatch):
    recipe, notes = read(folder, "model_stock_short", monkeypatch)
    assert any("however short they are" in note for note in notes)
    ours, theirs = merge(recipe, tmp_path), parts(golden()["model_stock_short"])
    short, brief = (parts(moved(models()[name])) for name in ("short", "brief"))
    shorter = 0
    for name, own in parts(ours).items():
        a, b = short[name], brief[name]
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        c = np.vdot(a, b) / max(norms, 1e-6)
        there = 2 * c / (1 + c) * (a + b) / 2
        np.testing.assert_allclose(theirs[name], there, rtol=0, atol=5e-7)
        c = max(0, np.vdot(a, b) / norms)
        here = 2 * c / (1 + c) * (a + b) / 2
        np.testing.assert_allclose(own, here, rtol=0, atol=5e-7)
        shorter += norms < 0.5e-6
    assert 0 < shorter < len(theirs)


def draws(recipe):
    """What our method makes of each seed."""
    method = METHODS[recipe.method]
    told = hyperparameters(recipe, method) | {"scale": recipe.scale}
    paths = dict(expert.split("=") for expert in recipe.experts)
    experts = {task: models()[path] for task, path in paths.items()}
    base, seeds = models()["base"], range(given.SEEDS)
    found = [method.function(experts, base, **told, seed=seed) for seed in seeds]
    return np.stack([moved(leaves) for leaves in found])


def matrices():
    """Where the numbers of matrices lie: norms are too short for mean values."""
    parts = [np.full(s, len(s) > 1).ravel() for s in given.shapes().values()]
    return np.concatenate(parts)


def standard(ours, theirs, variance):
    """Differences of means over seeds, in units of their standard deviation."""
    spread = np.sqrt(variance / given.SEEDS)
    return ((ours - theirs) / np.maximum(spread, 1e-9))[matrices()]


@pytest.mark.parametrize("name", [name for name in given.RANDOM if name != "della"])
def test_random_masks_have_the_same_statistics(name, folder, monkeypatch):
    recipe, notes = read(folder, name, monkeypatch)
    assert any("random numbers are others" in note for note in notes)
    found = draws(recipe)
    mean, variance = golden()[f"{name}/mean"], golden()[f"{name}/variance"]
    off = standard(found.mean(0), mean, variance + found.var(0))
    assert (off**2).mean() < 1.2  # one, but for few draws and what the notes say
    assert abs(off).max() < 6
    ratio = found.var(0)[matrices()].mean() / variance[matrices()].mean()
    assert abs(ratio - 1) < 0.05


def test_della_has_other_means_as_it_says(folder, monkeypatch):
    recipe, notes = read(folder, "della", monkeypatch)
    assert any("makes small numbers smaller on average" in note for note in notes)
    found = draws(recipe)
    own, mean = moved(models()["mnist"]), golden()["della/mean"]
    theirs, share = [], []
    for x in parts(own).values():
        p = 0.3 + 0.6 * abs(x).argsort(-1).argsort(-1) / (x.shape[-1] - 1)
        theirs.append((p * x * abs(x).sum() / (p * abs(x)).sum()).ravel())
        share.append((1 / p - 1).ravel())
    theirs, share = np.concatenate(theirs), np.concatenate(share)
    off = standard(found.mean(0), own, share * own**2)
    assert (off**2).mean() < 1.2  # every number stays, on average
    off = standard(mean, theirs, share * theirs**2)
    assert (off**2).mean() < 1.2
    assert (standard(mean, own, share * own**2) ** 2).mean() > 2
