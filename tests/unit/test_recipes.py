"""Recipe files, sizes, overrides, gradients, and recipes written for mergekit."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import experts

import centermerge_jax as cm
from centermerge_jax.overrides import leaf_settings
from centermerge_jax.recipe import Override, Recipe, parse_size
from centermerge_jax.recipe_files import _readers, load_recipe
from centermerge_jax.trees import named_leaves
from centermerge_jax.yaml_files import Problems

# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1", 1),
        ("7B", 7),
        ("2kB", 2000),
        ("500MB", 500_000_000),
        ("0.5 GB", 500_000_000),
        ("3TB", 3 * 10**12),
        ("1KiB", 1024),
        ("1.5GiB", 3 * 2**29),
        ("2MiB", 2**21),
        ("1TiB", 2**40),
        ("0.1KiB", 102),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "4gib", "4G", "-1", "1.5", "1.5B", "1e9", "0", "0.0001kB", "٤"]
)
def test_what_is_no_size(text):
    with pytest.raises(cm.ParameterError, match=f"such as 4GiB.*got {text!r}"):
        parse_size(text)


# Recipe files

FULL = """\
method: cart
base: models/base
experts:
  cars: models/cars
  dtd: org/dtd-vit
rank: 0.08
scale: {cars: 1, dtd: 0.5}
weights: {cars: 2, dtd: 1.5}
overrides:
  - {match: "blocks/0/.*", scale: 1}
  - match: "blocks/.*"
    rank: [4, 8]
    scale: {dtd: 2, cars: 1}
rest: sum
views: fused
solver: gram
dtype: bfloat16
path: params
names: {base: torch_names.toml}
exclude: ["head/.*"]
keep: [".*bias"]
keep_from: cars
memory: 4GiB
output: merged
format: hub
"""


def written(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_every_key(tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("base", "cars"):
        (tmp_path / "models" / name).touch()
    recipe, notes = load_recipe(written(tmp_path, FULL))
    assert notes == []
    assert recipe == Recipe(
        method="cart",
        base=str(tmp_path / "models/base"),
        experts=(f"cars={tmp_path}/models/cars", "dtd=hf:org/dtd-vit"),
        rank=0.08,
        scale={"cars": 1.0, "dtd": 0.5},
        weights={"cars": 2.0, "dtd": 1.5},
        overrides=(
            Override("blocks/0/.*", scale=1.0),
            Override("blocks/.*", rank=(4, 8), scale={"cars": 1.0, "dtd": 2.0}),
        ),
        rest="sum",
        views="fused",
        solver="gram",
        dtype="bfloat16",
        path="params",
        names=(f"base={tmp_path}/torch_names.toml",),
        exclude=("head/.*",),
        keep=(".*bias",),
        keep_from="cars",
        memory="4GiB",
        output="merged",
        format="hub",
    )


def test_every_field_of_a_recipe_is_a_key(tmp_path):
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert set(_readers(tmp_path, None, Problems())) == fields


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("rank: 1", "rank", 1),
        ("rank: 1.0", "rank", 1.0),
        ("rank: [0.04, 0.08]", "rank", (0.04, 0.08)),
        ("scale: 2", "scale", 2.0),
        ("scale: [1, 1.5]", "scale", (1.0, 1.5)),
        ("memory: 4000000", "memory", "4000000"),
        ("views: auto", "views", "auto"),
    ],
)
def test_values_keep_their_types(line, field, value, tmp_path):
    text = f"experts: [a/x.safetensors, b/y.safetensors]\n{line}\n"
    recipe, _ = load_recipe(written(tmp_path, text))
    found = getattr(recipe, field)
    assert found == value
    assert type(found) is type(value)
    assert recipe.experts == (
        f"{tmp_path}/a/x.safetensors",
        f"{tmp_path}/b/y.safetensors",
    )


def test_anchors(tmp_path):
    text = """\
experts: [a, b]
exclude: &patterns [x, y]
keep: *patterns
overrides:
  - &first {match: a, rank: 1, scale: 2}
  - {<<: *first, match: b, rank: 3}
"""
    recipe, _ = load_recipe(written(tmp_path, text))
    assert recipe.exclude == recipe.keep == ("x", "y")
    assert recipe.overrides == (
        Override("a", rank=1, scale=2.0),
        Override("b", rank=3, scale=2.0),
    )


def test_where_paths_start(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    for place in (folder / "here", tmp_path / "here", tmp_path / "org"):
        place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = """\
experts:
  [here/a, here, org/hub@v1, hf:org/hub, ./x/y, ../up, a/b/c, a/b.npz, /r/s, ~/t]
views: my/views.toml
"""
    recipe, _ = load_recipe(written(folder, text))
    assert recipe.experts == (
        f"{folder}/here/a",
        f"{folder}/here",
        # Said so that the folder of that name in the current one is not looked at.
        "hf:org/hub@v1",
        "hf:org/hub",
        f"{folder}/x/y",
        f"{folder}/../up",
        f"{folder}/a/b/c",
        f"{folder}/a/b.npz",
        "/r/s",
        str(Path.home() / "t"),
    )
    assert recipe.views == f"{folder}/my/views.toml"


TWO = "experts: {cars: a, dtd: b}\n"

WRONG = {
    # text of the file: what is said after its path
    TWO + "rnak: 1": ":2: key 'rnak': no such key; did you mean 'rank'?",
    TWO + "keep-from: x": ":2: key 'keep-from': no such key; did you mean 'keep_from'?",
    TWO + "zzz: x": ":2: key 'zzz': no such key; known: method, base, experts,",
    TWO + "\n# comment\nmethod: crat": (
        ":4: key 'method': no such choice as 'crat'; did you mean 'cart'?"
    ),
    TWO + "dtype: int8": ":2: key 'dtype': no such choice as 'int8'; known: float32",
    TWO + "format: zip": ":2: key 'format': no such choice as 'zip'; known: hub, orbax",
    TWO + "solver: fast": ":2: key 'solver': no such choice as 'fast'; known: ",
    TWO + "rest: all": ":2: key 'rest': no such choice as 'all'; known: sum, mean",
    "rank: 1": ":1: key 'experts': missing; which models are merged?",
    "experts: {}": ":1: key 'experts': is empty",
    "experts: []": ":1: key 'experts': is empty",
    "experts:": ":1: key 'experts': takes a list, not nothing",
    "experts: cars": ":1: key 'experts': takes a list, not 'cars'",
    "experts:\n- a\n- 7": ":3: key 'experts': takes a text, not 7; put it in quotes",
    "experts:\n- a\n- x=y": ":3: key 'experts': 'x=y' has a '=': give it a name, NAME:",
    "experts:\n  a: x\n  base: y": ":3: key 'base': a name is not 'base' or empty and",
    "experts:\n  a: x\n  b/c: y": ":3: key 'b/c': a name is not 'base' or empty and",
    "experts:\n  a: x\n  b=c: y": ":3: key 'b=c': a name is not 'base' or empty and",
    "experts:\n  a: x\n  b: ": ":3: key 'b': takes a text, not nothing",
    "experts:\n  a: x\n  b: ''": ":3: key 'b': is empty",
    "experts:\n  a: x\n  no: y": ":3: the key False is not a text; put it in quotes",
    "experts:\n  a: x\n  a: y": ":3: key 'a': given before, line 2",
    TWO + "rank: 1\nrank: 2": ":3: key 'rank': given before, line 2",
    TWO + "rank: x": ":2: key 'rank': takes a number, not 'x'",
    TWO + "rank: 1e-2": ":2: key 'rank': takes a number, not '1e-2'; in YAML 1e-3",
    TWO + "rank: true": ":2: key 'rank': takes a number, not True",
    TWO + "rank: .nan": ":2: key 'rank': takes a finite number, not nan",
    TWO + "rank: 0": ":2: key 'rank': rank is at least 1 direction, got 0",
    TWO + "rank: 1.5": ":2: key 'rank': rank as a share of min(m, n) lies in (0, 1]",
    TWO + "rank: [1, 0.5]": ":2: key 'rank': ranks over the layers are all shares or",
    TWO + "rank: {cars: 1}": ":2: key 'rank': takes a number, not a mapping",
    TWO + "rank: []": ":2: key 'rank': is empty",
    TWO + "scale: no": ":2: key 'scale': takes a number, not False",
    TWO + "scale: -.inf": ":2: key 'scale': takes a finite number, not -inf",
    TWO + "scale: 1" + "0" * 400: ":2: key 'scale': takes a finite number, not 1000",
    TWO + "scale:\n- 1.0\n- x": ":4: key 'scale': takes a number, not 'x'",
    TWO + "scale:\n  cars: 1\n  dt: 2": (
        ":4: key 'dt': no such expert; did you mean 'dtd'?"
    ),
    TWO + "weights: {cars: 1}": ":2: key 'weights': has no number for dtd",
    TWO + "weights: [1, 2]": ":2: key 'weights': takes a mapping, NAME: VALUE, not a",
    TWO + "weights: {cars: 1, dtd: x}": ":2: key 'dtd': takes a number, not 'x'",
    TWO + "overrides: {match: a}": ":2: key 'overrides': takes a list, not a mapping",
    TWO + "overrides:\n- {rank: 1}": ":3: key 'overrides': an override needs a 'match'",
    TWO + "overrides:\n- {match: a}": ":3: key 'overrides': override 'a' changes noth",
    TWO + "overrides:\n- match: (\n  rank: 1": ":3: key 'overrides': override '(': mis",
    TWO
    + "overrides:\n- match: a\n  rnk: 1": ":4: key 'rnk': no such key; did you mean",
    TWO + "overrides:\n- match: a\n  scale: {cars: 1}": ":4: key 'scale': has no numbe",
    TWO + "names: {care: x}": ":2: key 'care': no such model; did you mean 'cars'?",
    TWO + "exclude: head": ":2: key 'exclude': takes a list, not 'head'",
    TWO
    + "exclude: ['(']": ":2: key 'exclude': '(': missing ), unterminated subpattern",
    TWO + "memory: 4G": ":2: key 'memory': a size is a number and one of B, kB,",
    TWO + "output: 2001-99-99": ":2: key 'output': month must be in 1..12",
    TWO + "base: [a]": ":2: key 'base': takes a text, not a list",
    # not YAML, or not a recipe
    "": ":1: not a mapping of keys to values",
    "- a": ":1: not a mapping of keys to values",
    "experts: [a\nrank: 1": ":2: not YAML: ",
    TWO + "rank: !!python/name:os.system x": ":2: not YAML: could not determine a",
    TWO + "scale: !!set {a, b}": ":2: key 'scale': the tag tag:yaml.org,2002:set is",
    "a: 1\n---\nb: 2": ":2: not YAML: but found another document",
    "exclude: &a [*a]": ": nested too deeply, or in itself",
    "a: \x07": ": not YAML: unacceptable character",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_recipes_are_one_line_with_their_place(text, tmp_path):
    file = written(tmp_path, text)
    with pytest.raises(cm.ParameterError) as error:
        load_recipe(file)
    assert str(error.value).startswith(f"{file}{WRONG[text]}")
    assert "\n" not in str(error.value)


def test_everything_wrong_is_said_at_once(tmp_path):
    text = """\
method: crat
experts: {cars: a, dtd: b}
rank: x
overrides:
  - {rank: 1}
  - {match: a, scael: 1}
exclude: ["("]
"""
    file = written(tmp_path, text)
    with pytest.raises(cm.ParameterError) as error:
        load_recipe(file)
    first, *lines = str(error.value).splitlines()
    assert first == "5 problems in the recipe:"
    places = [line.removeprefix(f"  {file}:").split(":")[0] for line in lines]
    assert sorted(places) == ["1", "3", "5", "6", "7"]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(cm.CheckpointError, match=r"no\.yaml: cannot be read: No such"):
        load_recipe(tmp_path / "no.yaml")
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(cm.ParameterError, match="not a text file"):
        load_recipe(file)


# Overrides and gradients

LEAVES = [
    "embed/kernel",
    *(f"blocks/{i}/{part}" for i in range(5) for part in ("mlp/0/kernel", "norm")),
    "head/kernel",
]
OUTSIDE = Override("(embed|head)/.*", scale=9.0, rank=9)


def settings(leaves=LEAVES, matrices=None, **fields):
    return leaf_settings(Recipe(experts=(), **fields), leaves, matrices=matrices)


def test_without_overrides_every_leaf_has_the_values_of_the_recipe():
    by_task = {"cars": 1.0, "dtd": 2.0}
    assert settings(rank=0.1, scale=by_task) == {
        leaf: {"rank": 0.1, "scale": by_task} for leaf in LEAVES
    }
    assert settings() == {leaf: {"rank": None, "scale": None} for leaf in LEAVES}


def test_the_first_matching_override_wins_and_the_rest_is_the_recipe():
    found = settings(
        rank=0.5,
        scale=1.0,
        overrides=(
            Override("blocks/0/.*", scale=2.0),
            Override("blocks/.*/kernel", rank=3),
            Override("blocks/[01]/.*", rank=7, scale={"cars": 4.0}),
        ),
    )
    assert found["blocks/0/norm"] == {"rank": 0.5, "scale": 2.0}
    assert found["blocks/0/mlp/0/kernel"] == {"rank": 0.5, "scale": 2.0}
    assert found["blocks/1/mlp/0/kernel"] == {"rank": 3, "scale": 1.0}
    assert found["blocks/1/norm"] == {"rank": 7, "scale": {"cars": 4.0}}
    assert found["blocks/2/norm"] == {"rank": 0.5, "scale": 1.0}


@pytest.mark.parametrize(
    ("gradient", "wanted"),
    [
        ((1.0,), [1, 1, 1, 1, 1]),
        ((1.0, 2.0), [1, 1.25, 1.5, 1.75, 2]),
        ((1.0, 2.0, 0.0), [1, 1.5, 2, 1, 0]),
        ((0.1, 0.2, 0.3, 0.4, 0.7), [0.1, 0.2, 0.3, 0.4, 0.7]),
        ((0.0, 1.0, 0.0, 1.0), [0, 0.75, 0.5, 0.25, 1]),
    ],
)
def test_scales_over_the_layers(gradient, wanted):
    found = settings(scale=gradient, overrides=(OUTSIDE,))
    scales = [found[f"blocks/{i}/mlp/0/kernel"]["scale"] for i in range(5)]
    assert scales == pytest.approx(wanted, abs=1e-15)
    # What is written is met exactly, first and last at least.
    assert (scales[0], scales[-1]) == (gradient[0], gradient[-1])
    assert found["head/kernel"]["scale"] == 9.0


@pytest.mark.parametrize(
    ("gradient", "wanted"),
    [
        ((1, 5), [1, 2, 3, 4, 5]),
        ((1, 3), [1, 2, 2, 3, 3]),  # 1.5 and 2.5 are rounded up
        ((3, 1), [3, 3, 2, 2, 1]),
        ((2, 1, 1), [2, 2, 1, 1, 1]),
        ((0.25, 0.5), [0.25, 0.3125, 0.375, 0.4375, 0.5]),
    ],
)
def test_ranks_over_the_layers(gradient, wanted):
    found = settings(rank=gradient, overrides=(OUTSIDE,))
    ranks = [found[f"blocks/{i}/norm"]["rank"] for i in range(5)]
    assert ranks == wanted
    assert {type(rank) for rank in ranks} == {type(gradient[0])}


def test_a_gradient_of_an_override_runs_over_all_layers_of_the_stack():
    middle = Override("blocks/[123]/.*", scale=(0.0, 4.0))
    found = settings(scale=7.0, overrides=(middle,))
    scales = [found[f"blocks/{i}/norm"]["scale"] for i in range(5)]
    assert scales == [7.0, 1.0, 2.0, 3.0, 7.0]


def test_layers_of_names_with_dots_and_of_stacks_of_equal_depth():
    names = [
        f"{tower}.layers.{i}.mlp.weight"
        for tower in ("text", "image")
        for i in (0, 1, 2)
    ]
    found = settings(names, scale=(1.0, 2.0))
    assert [found[name]["scale"] for name in names] == [1.0, 1.5, 2.0] * 2
    # A stack that a number speaks for may have any depth.
    found = settings(
        [*names, "adapter/7/kernel", "layer10/w", "a/2d/0/w", "a/2d/2/w"],
        scale=(1.0, 2.0),
        overrides=(Override("adapter.*|layer10.*", scale=5.0),),
    )
    assert found["a/2d/0/w"]["scale"] == 1.0
    assert found["adapter/7/kernel"]["scale"] == found["layer10/w"]["scale"] == 5.0
    assert found["image.layers.1.mlp.weight"]["scale"] == 1.5


def test_only_matrices_have_a_rank():
    kernels = [leaf for leaf in LEAVES if leaf.startswith("blocks") and "mlp" in leaf]
    found = settings(matrices=kernels, rank=(1, 5), scale=1.0)
    assert found["embed/kernel"] == {"rank": None, "scale": 1.0}
    assert found["blocks/3/norm"] == {"rank": None, "scale": 1.0}
    assert found["blocks/3/mlp/0/kernel"] == {"rank": 4, "scale": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"overrides": (Override("block/.*", scale=1.0),)},
            (
                "1 override without effect: 'block/.*' matches no leaf. A pattern "
                "matches whole names, such as blocks/4/mlp/0/kernel, blocks/4/norm, "
                "head/kernel"
            ),
        ),
        (
            {
                "overrides": (
                    Override(".*", rank=1),
                    Override("head/.*", rank=2),
                    Override("no", rank=2),
                )
            },
            (
                "2 overrides without effect:\n"
                "  'head/.*': earlier ones take all its leaves\n"
                "  'no' matches no leaf\n"
            ),
        ),
        (
            {"overrides": (Override(".*norm", rank=1),), "matrices": ["head/kernel"]},
            "1 override without effect: '.*norm' gives a rank, but no leaf is a matrix",
        ),
        (
            {"scale": (1.0, 2.0)},
            (
                "scale over the layers: 2 leaf names in no layer:\n  embed/kernel\n"
                "  head/kernel\nGive them one scale by an override, after more specific"
            ),
        ),
        ({"rank": (1, 2)}, "rank over the layers: 2 leaf names in no layer:"),
        (
            {"scale": (1.0, 2.0), "leaves": ["a/0/w", "a/1/w", "b/0/w"]},
            (
                "scale over the layers of 2 stacks that differ in depth:\n"
                "  a: 2 layers\n  b: 1 layers\n"
            ),
        ),
        (
            {"scale": (1.0, 2.0), "leaves": ["a/0/w"]},
            "scale over the layers, but there is one layer (a/0/w)",
        ),
        ({"scale": (), "leaves": ["a/0", "a/1"]}, "scale over the layers is a list of"),
        (
            {"scale": (1.0, math.nan), "leaves": ["a/0", "a/1"]},
            "scale over the layers is a list of finite numbers, got [1.0, nan]",
        ),
        (
            {"rank": (1, 0.5), "leaves": ["a/0", "a/1"]},
            "ranks over the layers are all shares or all numbers of directions",
        ),
        ({"rank": (1, 0), "leaves": ["a/0", "a/1"]}, "rank is at least 1 direction"),
        ({"rank": (), "leaves": ["a/0", "a/1"]}, "rank over the layers: there is no"),
    ],
)
def test_overrides_and_gradients_that_cannot_be_meant(fields, message):
    with pytest.raises(cm.ParameterError) as error:
        settings(**fields)
    assert str(error.value).startswith(message)


def test_what_is_no_override():
    with pytest.raises(cm.ParameterError, match=r"override '\(': missing \)"):
        Override("(", rank=1)
    with pytest.raises(cm.ParameterError, match="override 'a' changes nothing"):
        Override("a")


# Weights of an average


@pytest.mark.parametrize(
    "weights",
    [
        {"mnist": 1, "cars": 2, "dtd": 0},
        np.array([2.0, 0.0, 1.0]),
        [2, -1, 3],
        jnp.array([1.0, 1.0, 1.0], jnp.bfloat16),
    ],
)
def test_weighted_average(weights):
    trees = experts()
    merged = named_leaves(cm.weight_average(trees, weights=weights))
    tasks = sorted(trees)
    numbers = weights if not isinstance(weights, dict) else [weights[t] for t in tasks]
    numbers = np.asarray(numbers).astype(np.float64)
    named = [named_leaves(trees[task]) for task in tasks]
    for name, found in merged.items():
        if name == "steps":
            continue
        leaves = np.stack([np.asarray(tree[name], np.float64) for tree in named])
        wanted = np.tensordot(numbers, leaves, axes=1) / numbers.sum()
        np.testing.assert_allclose(found, wanted, atol=2e-6, err_msg=name)


def test_equal_weights_are_the_mean_and_one_weight_is_that_expert():
    trees = experts()
    plain = named_leaves(cm.weight_average(trees))
    equal = named_leaves(cm.weight_average(trees, weights=[5, 5, 5]))
    single = named_leaves(cm.weight_average(trees, weights=[0, 7, 0]))
    for name, expert in named_leaves(trees["dtd"]).items():
        np.testing.assert_allclose(equal[name], plain[name], atol=1e-6)
        np.testing.assert_allclose(single[name], expert, atol=1e-6)


def test_weights_may_be_traced():
    trees = experts()

    def norm(weights):
        merged = cm.weight_average(trees, weights=weights)
        return jnp.sum(merged["embed"]["embedding"] ** 2)

    gradient = jax.jit(jax.grad(norm))(jnp.array([1.0, 2.0, 1.0]))
    # Only ratios count: the gradient is orthogonal to the weights.
    assert abs(float(gradient @ jnp.array([1.0, 2.0, 1.0]))) < 1e-3
    assert float(jnp.abs(gradient).max()) > 1e-2
    by_task = jax.jit(lambda w: cm.weight_average(trees, weights={"cars": w, **ONES}))
    with_array = cm.weight_average(trees, weights=[2, 1, 1])
    np.testing.assert_allclose(
        by_task(2.0)["embed"]["embedding"], with_array["embed"]["embedding"], atol=1e-6
    )


ONES = {"dtd": 1.0, "mnist": 1.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "weights are one number for each of the 3 tasks (cars, dtd, mnist)"),
        (1.0, "weights are one number for each of the 3 tasks"),
        ([1, 1, -2], "weights sum to zero: [1.0, 1.0, -2.0]"),
        ([0.1, 0.2, -0.3], "weights sum to zero"),  # in float64 it is 6e-17
        ([0, 0, 0], "weights sum to zero"),
        ([1, math.nan, 1], "weights are not finite: [1.0, nan, 1.0]"),
        ([1, math.inf, 1], "weights are not finite"),
        ([1, "2", 1], "weights are real numbers"),
        ([1, 1j, 1], "weights are real numbers"),
        ([[1], [1, 2], 3], "weights are real numbers"),
        ({"cars": 1, "dtd": 1}, "weights: none is given for mnist"),
        ({"cars": 1, **ONES, "x": 1}, "weights: no task is called x; there are cars,"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(cm.ParameterError) as error:
        cm.weight_average(experts(), weights=weights)
    assert str(error.value).startswith(message)


# Recipes for mergekit

LINEAR = """\
models:
  - model: org/first-13b
    parameters:
      weight: 1.0
  - model: other/first-13b
    parameters:
      weight: 0.3
  - model: ./local/third/
merge_method: linear
parameters:
  weight: 0.5
dtype: float16
"""

TASKS = """\
merge_method: task_arithmetic
base_model: org/base
models:
  - model: org/base
  - model: org/cars
    parameters: {weight: 0.5}
  - model: org/dtd
    parameters: {weight: 0.25}
dtype: float32
"""


def test_linear(tmp_path):
    recipe, notes = load_recipe(written(tmp_path, LINEAR))
    assert recipe == Recipe(
        method="weight_average",
        experts=(
            "first-13b=org/first-13b",
            "first-13b-2=other/first-13b",
            "third=./local/third/",
        ),
        weights={"first-13b": 1.0, "first-13b-2": 0.3, "third": 0.5},
        dtype="float16",
    )
    assert [note for note in notes if "mergekit computes in float16" in note]
    assert [note for note in notes if "a tensor that a model lacks" in note]


def test_task_arithmetic_drops_the_base_from_the_models(tmp_path):
    recipe, notes = load_recipe(written(tmp_path, TASKS))
    assert recipe == Recipe(
        method="task_arithmetic",
        base="org/base",
        experts=("cars=org/cars", "dtd=org/dtd"),
        scale={"cars": 0.5, "dtd": 0.25},
        dtype="float32",
    )
    assert not [note for note in notes if "float32" in note]
    assert [note for note in notes if note.startswith("configuration and tokenizer")]


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ("parameters: {lambda: 2}", {"cars": 1.0, "dtd": 0.5}),
        ("parameters: {normalize: true}", {"cars": 2 / 3, "dtd": 1 / 3}),
        ("parameters: {normalize: true, lambda: 3}", {"cars": 2.0, "dtd": 1.0}),
        ("parameters: {normalize: false, weight: 9}", {"cars": 0.5, "dtd": 0.25}),
        ("parameters:", {"cars": 0.5, "dtd": 0.25}),
        ("parameters: {int8_mask: true}", {"cars": 0.5, "dtd": 0.25}),
        ("tokenizer_source: union", {"cars": 0.5, "dtd": 0.25}),
        ("tokenizer: {source: base, tokens: }", {"cars": 0.5, "dtd": 0.25}),
        ("chat_template:", {"cars": 0.5, "dtd": 0.25}),
        ("out_dtype: torch.bfloat16", {"cars": 0.5, "dtd": 0.25}),
    ],
)
def test_task_arithmetic_parameters(more, scale, tmp_path):
    recipe, notes = load_recipe(written(tmp_path, TASKS + more))
    assert recipe.scale == pytest.approx(scale)
    assert recipe.overrides == ()
    assert recipe.dtype == ("bfloat16" if "out_dtype" in more else "float32")
    assert any("int8_mask: no effect" in note for note in notes) == ("int8" in more)
    assert any("vocabulary" in note for note in notes) == ("tokenizer" in more)


def filtered(first, second, **shared):
    """Task arithmetic with these weights, in YAML's flow style."""
    general = "".join(f"  {key}: {value}\n" for key, value in shared.items())
    return f"""\
merge_method: task_arithmetic
base_model: org/base
models:
  - {{model: org/a, parameters: {{weight: {first}}}}}
  - {{model: org/b, parameters: {{weight: {second}}}}}
dtype: bfloat16
{"parameters:" if shared else ""}
{general}"""


NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(3)
        for part in ("mlp.up_proj", "self_attn.q_proj", "mlp.self_attn", "norm")
    ),
    "lm_head.weight",
]


def theirs(setting, shared, name, t):
    """A parameter of mergekit for one tensor, from the description of its files."""
    for value in (setting, shared):
        if isinstance(value, list) and isinstance(value[0], dict):
            value = next(
                (
                    case["value"]
                    for case in value
                    if case.get("filter", "*") == "*" or case["filter"] in name
                ),
                None,
            )
        if isinstance(value, list):
            return float(np.interp(t, np.linspace(0, 1, len(value)), value))
        if value is not None:
            return value
    return None


MLP = {"filter": "mlp", "value": 0.7}
ATTENTION = {"filter": "self_attn", "value": 0.2}
REST = {"value": 0.3}


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (1.0, 0.5, {}),
        ([MLP, REST], 0.5, {}),
        ([MLP, ATTENTION, REST], [ATTENTION | {"filter": "mlp"}, REST], {}),
        ([MLP, ATTENTION, {"filter": "*", "value": 1}], [MLP, ATTENTION, REST], {}),
        ([MLP, REST], [MLP, ATTENTION, REST], {}),
        ([MLP], [MLP], {"weight": 4.0}),
        ([MLP], 2.0, {"weight": [ATTENTION, REST]}),
        ([MLP, REST], 2.0, {"lambda": [MLP, {"value": 3}]}),
        ([MLP, REST], [MLP, REST], {"normalize": True, "lambda": 1.5}),
        ([0.0, 1.0], [0.0, 1.0], {}),
        ([0.0, 0.5, 0.6], [0.0, 0.5, 0.6], {"lambda": 2}),
        (0.5, 0.5, {"lambda": [1, 2]}),
        (
            [{"filter": "mlp", "value": [1, 2]}, REST],
            [MLP | {"value": [1, 2]}, REST],
            {},
        ),
    ],
)
def test_conditions_and_values_over_the_layers(first, second, shared, tmp_path):
    text = filtered(first, second, **shared)
    recipe, _ = load_recipe(written(tmp_path, text))
    found = leaf_settings(recipe, NAMES)
    for name in NAMES:
        layer = re.search(r"layers\.(\d)", name)
        t = int(layer[1]) / 2 if layer else 0.0
        weights = {
            task: theirs(weight, shared.get("weight"), name, t)
            for task, weight in (("a", first), ("b", second))
        }
        total = sum(weights.values()) if shared.get("normalize") else 1.0
        factor = theirs(shared.get("lambda"), 1.0, name, t)
        wanted = {task: factor * weight / total for task, weight in weights.items()}
        scale = found[name]["scale"]
        scale = scale if isinstance(scale, dict) else dict.fromkeys("ab", scale)
        assert scale == pytest.approx(wanted), name


def test_filters_are_no_patterns_and_idle_ones_are_left_out(tmp_path):
    dotted = [{"filter": "mlp.up", "value": 1.0}, REST]
    idle = [{"filter": "nothing", "value": 1.0}, REST]
    text = filtered(dotted, 2.0, weight=idle)
    recipe, notes = load_recipe(written(tmp_path, text))
    assert recipe.scale == {"a": 0.3, "b": 2.0}
    assert recipe.overrides == (Override(r".*mlp\.up.*", scale={"a": 1.0, "b": 2.0}),)
    assert "a filter that matches no tensor is an error here" in notes


def test_names_of_experts_are_their_own(tmp_path):
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n"
    for path in ("a/base", "b/x=y@main", "c/m", "c/m-2", "d/m"):
        text += f"- model: {path}\n"
    recipe, _ = load_recipe(written(tmp_path, text))
    assert recipe.experts == (
        "base-2=a/base",
        "x-y=b/x=y@main",
        "m=c/m",
        "m-2=c/m-2",
        "m-3=d/m",
    )
    assert list(recipe.weights) == ["base-2", "x-y", "m", "m-2", "m-3"]


def test_everything_wrong_for_mergekit_is_said_at_once(tmp_path):
    text = TASKS + "slices: []\ntokenizer_source: x\n"
    text = text.replace("- model: org", "- modle: org").replace("float32", "int64")
    with pytest.raises(cm.ParameterError) as error:
        load_recipe(written(tmp_path, text))
    first, *lines = str(error.value).splitlines()
    assert first == "6 problems in the recipe:"
    found = [line.split(":")[1] for line in lines]
    assert sorted(found, key=int) == ["4", "5", "7", "9", "10", "11"]


def swapped(old, new, text=TASKS):
    assert text.count(old) == 1
    return text.replace(old, new)


TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/cars
    parameters: {weight: 0.5, density: 0.3}
  - model: org/dtd
    parameters: {weight: 0.5, density: 0.3}
dtype: float32
"""


def test_ties_of_one_weight_and_density(tmp_path):
    text = TIES + "parameters: {lambda: 0.8, int8_mask: true}\n"
    recipe, notes = load_recipe(written(tmp_path, text))
    assert recipe == Recipe(
        method="ties",
        base="org/base",
        experts=("cars=org/cars", "dtd=org/dtd"),
        density=0.3,
        scale=0.8,
        dtype="float32",
    )
    assert any("trims each tensor by itself" in note for note in notes)
    whole, notes = load_recipe(written(tmp_path, TIES.replace(", density: 0.3", "")))
    assert (whole.density, whole.scale) == (1.0, 1.0)
    assert not any("trims each tensor" in note for note in notes)


FOREIGN = {
    # methods
    swapped("task_arithmetic", "breadcrumbs_ties"): (
        ":1: key 'merge_method': 'breadcrumbs_ties' is not among mergekit's methods "
        "that are read here (linear, slerp, nuslerp, karcher, "
    ),
    swapped("task_arithmetic", "ties"): (
        ":8: key 'weight': weight has to be one number for all models here"
    ),
    TIES.replace(
        "weight: 0.5", "weight: [0, 1]", 1
    ): ":5: key 'weight': a weight that differs from tensor to tensor cannot be said",
    swapped("dtype: float32", "parameters: {normalize: false}", TIES): (
        ":8: key 'normalize': false: ties takes the mean"
    ),
    TIES.replace(
        "weight: 0.5", "weight: -1"
    ): ":5: key 'weight': ties needs a positive one",
    swapped("task_arithmetic", ""): ":1: key 'merge_method': takes a text, not nothing",
    # keys
    TASKS + "slices: []": ":10: key 'slices': mergekit has this, centermerge has not",
    TASKS + "modules: {}": ":10: key 'modules': mergekit has this",
    TASKS + "chat_template: auto": ":10: key 'chat_template': mergekit has this",
    TASKS
    + "method: cart": ":10: key 'method': no such key; did you mean 'merge_method'",
    TASKS
    + "tokenizer_source: org/x": ":10: key 'tokenizer_source': 'org/x': only base",
    TASKS
    + "tokenizer: {source: org/x}": ":10: key 'source': 'org/x': only base and un",
    TASKS
    + "tokenizer:\n  pad_to_multiple_of: 8": ":11: key 'pad_to_multiple_of': merg",
    swapped("float32", "int64"): ":9: key 'dtype': no such type as 'int64'; ",
    # models
    swapped("  - model: org/dtd", "  - model: org/cars"): (
        ":7: key 'model': 'org/cars' is listed twice"
    ),
    swapped("model: org/dtd", "model: org/dtd+org/lora"): (
        ":7: key 'model': 'org/dtd+org/lora': adapters"
    ),
    swapped("  - model: org/dtd\n    param", "  - param"): (
        ":7: key 'models': needs a 'model' in each of its entries"
    ),
    swapped(
        "model: org/dtd", "modle: org/dtd"
    ): ":7: key 'modle': no such key; did you",
    swapped("base_model: org/base", "# no base"): (
        ":1: key 'base_model': missing; task_arithmetic needs it"
    ),
    "merge_method: linear\nmodels:": ":1: key 'models': missing; which models are",
    "merge_method: task_arithmetic\nbase_model: a/b\nmodels:\n- model: a/b": (
        ":3: key 'models': lists the base alone: there is nothing to add"
    ),
    # parameters
    swapped(
        "{weight: 0.25}", "{}"
    ): ":7: key 'model': 'org/dtd' needs a parameter 'wei",
    swapped("weight: 0.25", "weihgt: 0.25"): None,  # two problems
    swapped("weight: 0.25", "weight: 1, lambda: 2"): (
        ":8: key 'lambda': mergekit ignores this for a single model"
    ),
    swapped(
        "weight: 0.25", "weight: '0.25'"
    ): ":8: key 'weight': takes a number, not '",
    swapped("weight: 0.25", "weight: {filter: mlp, value: 1}"): (
        ":8: key 'weight': takes a number, not a mapping"
    ),
    swapped("weight: 0.25", "weight: [{filter: mlp}]"): (
        ":8: key 'weight': a condition needs a 'value'"
    ),
    swapped("weight: 0.25", "weight: [{filtre: mlp, value: 1}]"): (
        ":8: key 'filtre': no such key; did you mean 'filter'?"
    ),
    swapped("weight: 0.25", "weight: [{filter: mlp, value: 1}]"): (
        ":8: key 'weight': nothing is given for tensors that no filter matches"
    ),
    swapped("weight: 0.25", "weight: [0, 1]"): (
        ":8: key 'weight': values over the layers can be said here only where they are "
        "the same for all models"
    ),
    TASKS + "parameters: {normalize: 1}": ":10: key 'normalize': is true or false",
    TASKS
    + "parameters: {lamda: 1}": ":10: key 'lamda': no such parameter; did you mean",
    swapped("weight: 0.25", "weight: -0.5") + "parameters: {normalize: true}": (
        ":6: key 'weight': the weights sum to zero and cannot be normalized"
    ),
    filtered([MLP, ATTENTION, REST], [ATTENTION, MLP, REST]): (
        ":4: key 'weight': a name may hold both 'mlp' and 'self_attn', and not all"
    ),
    filtered([0, 1], [0, 1], **{"lambda": [0, 1]}): (
        ":4: key 'weight': weight and lambda may not both be lists over the layers"
    ),
    filtered([0, 1], [0, 1], normalize="true"): ":4: key 'weight': values over the lay",
    swapped("float16", "float16\nbase_model: org/x", LINEAR): (
        ":13: key 'base_model': mergekit's linear takes the base as one more model"
    ),
    swapped("  weight: 0.5\n", "  normalize: false\n  weight: 1\n", LINEAR): (
        ":11: key 'normalize': false: a weight average always divides by the sum"
    ),
    swapped("weight: 0.3", "weight: [0, 1]", LINEAR): (
        ":7: key 'weight': a weight that differs from tensor to tensor"
    ),
    swapped("weight: 0.5", "density: 0.5", LINEAR): None,
}


@pytest.mark.parametrize("text", FOREIGN)
def test_recipes_for_mergekit_that_cannot_be_said_here(text, tmp_path):
    file = written(tmp_path, text)
    with pytest.raises(cm.ParameterError) as error:
        load_recipe(file)
    if FOREIGN[text] is None:
        assert str(error.value).startswith("2 problems in the recipe:\n")
        assert str(error.value).count(f"{file}:") == 2
    else:
        assert str(error.value).startswith(f"{file}{FOREIGN[text]}")
        assert "\n" not in str(error.value)
