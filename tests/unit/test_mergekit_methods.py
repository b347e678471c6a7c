"""Methods of mergekit that have a counterpart of other semantics, or none."""

import re

import pytest

import centermerge_jax as cm
from centermerge_jax.recipe_files import load_recipe

PAIR = ("a=org/a", "b=org/b")


def loaded(folder, method, *, base="org/base", weights=(0.5, 0.5), **parameters):
    """What is made of a recipe with two models; a weight of None is not given."""
    text = f"merge_method: {method}\n"
    if base is not None:
        text += f"base_model: {base}\n"
    text += "dtype: float32\nmodels:\n"
    for name, weight in zip("ab", weights, strict=True):
        own = f", parameters: {{weight: {weight}}}" if weight is not None else ""
        text += f"  - {{model: org/{name}{own}}}\n"
    if parameters:
        text += "parameters:\n"
    for key, value in parameters.items():
        text += f"  {key.rstrip('_')}: {value}\n"
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


BARE = {"weights": (None, None)}


@pytest.mark.parametrize(
    ("told", "fields"),
    [
        (
            {"method": "slerp", "base": "org/a", "t": 0.25, **BARE},
            {"method": "slerp", "experts": PAIR, "base": None, "set": ("t=0.25",)},
        ),
        (
            {"method": "slerp", "base": "org/b", "t": 0.25, **BARE},
            {"method": "slerp", "experts": PAIR, "set": ("t=0.75",)},
        ),
        (
            {"method": "nuslerp", "base": None, "weights": (0.5, 1.5)},
            {"method": "slerp", "experts": PAIR, "set": ("t=0.75", "parallel=1.0")},
        ),
        (
            {"method": "nuslerp", "base": None, "weights": (1, -1)},
            {"set": ("t=0.5", "parallel=1.0")},
        ),
        (
            {"method": "karcher", "base": None, "max_iter": 20, "tol": 0.0, **BARE},
            {"method": "karcher_mean", "experts": PAIR, "weights": None},
        ),
        (
            {"method": "multislerp", "base": None, "weights": (1, 3), "eps": 0.0},
            {"method": "normalised_mean", "weights": {"a": 1.0, "b": 3.0}},
        ),
        (
            {
                "method": "multislerp",
                "base": None,
                "weights": (0.25, 0.75),
                "normalize_weights": "false",
            },
            {"weights": {"a": 0.25, "b": 0.75}},
        ),
        (
            {"method": "model_stock", "filter_wise": "false", **BARE},
            {"method": "model_stock", "base": "org/base", "scale": None},
        ),
        (
            {"method": "dare_linear", "density": 0.3, "lambda": 2, "weights": (1, 2)},
            {"method": "dare", "density": 0.3, "scale": {"a": 2.0, "b": 4.0}},
        ),
        (
            {"method": "dare_linear", "density": 0.3, "rescale": "false"},
            {"method": "random_mask", "density": 0.3, "scale": {"a": 0.5, "b": 0.5}},
        ),
        (
            {"method": "dare_linear", "normalize": "true", "weights": (1, 3)},
            {"method": "dare", "density": 1.0, "scale": {"a": 0.25, "b": 0.75}},
        ),
        (
            {"method": "dare_ties", "density": 0.3, "normalize": "true", "lambda": 2},
            {"method": "dare_ties", "density": 0.3, "scale": 2.0},
        ),
        (
            {
                "method": "dare_ties",
                "density": 0.25,
                "normalize": "true",
                "rescale": "false",
            },
            {"method": "dare_ties", "density": 0.25, "scale": 0.25},
        ),
        (
            {"method": "breadcrumbs", "density": 0.9},
            {"method": "breadcrumbs", "density": 0.9, "set": ("outliers=0.01",)},
        ),
        (
            {"method": "breadcrumbs", "gamma": 0.3},
            {"density": 1.0, "set": ("outliers=0.0",)},
        ),
        (
            {"method": "breadcrumbs", "density": 0.7, "gamma": 0.3},
            {"density": 0.7, "set": ("outliers=0.3",)},
        ),
        (
            {"method": "della", "density": 0.7, "lambda": 0.4},
            {
                "method": "della",
                "density": 0.7,
                "scale": 0.4,
                "set": ("epsilon=0.15",),
            },
        ),
        ({"method": "della"}, {"density": 1.0, "set": ("epsilon=0.0",)}),
        (
            {"method": "sce", "select_topk": 0.1, "int8_mask": "true", **BARE},
            {"method": "sce", "density": 0.1, "scale": None, "base": "org/base"},
        ),
    ],
)
def test_translation(told, fields, tmp_path):
    recipe, _ = loaded(tmp_path, told.pop("method"), **told)
    assert {key: getattr(recipe, key) for key in fields} == fields


def test_filters_scale_task_vectors_of_which_numbers_are_dropped(tmp_path):
    weight = "[{filter: mlp, value: 0.7}, {value: 0.3}]"
    recipe, _ = loaded(tmp_path, "breadcrumbs", weights=(weight, 1), density=0.5)
    assert recipe.scale == {"a": 0.3, "b": 1.0}
    assert recipe.overrides[0].scale == {"a": 0.7, "b": 1.0}


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"method": "slerp", "t": 0.2, **BARE}, "'models': slerp is between the base"),
        ({"method": "slerp", "base": "org/a", **BARE}, "'merge_method': t: missing"),
        (
            {"method": "slerp", "base": "org/a", "t": "[0, 1]", **BARE},
            "'t': a t that differs from tensor to tensor cannot be said here",
        ),
        (
            {"method": "slerp", "base": "org/a", "t": 0.5, "weights": (None, 1)},
            "'weight': mergekit's slerp takes no such parameter",
        ),
        ({"method": "nuslerp"}, "'base_model': with a base mergekit's nuslerp turns"),
        (
            {"method": "nuslerp", "base": None, "nuslerp_flatten": "false"},
            "'nuslerp_flatten': false: here the arc is that of whole tensors",
        ),
        (
            {"method": "karcher", "base": None, "max_iter": 3, **BARE},
            "'max_iter': fewer than 10",
        ),
        (
            {"method": "karcher", "base": None, "tol": 0.1, **BARE},
            "'tol': above 0.00001",
        ),
        (
            {"method": "karcher", **BARE},
            "'base_model': mergekit's karcher takes the base as one more model",
        ),
        (
            {"method": "multislerp", "base": None, "normalize_weights": "false"}
            | {"weights": (1, 1)},
            "'normalize_weights': false: here weights are divided by their sum",
        ),
        ({"method": "multislerp"}, "'base_model': with a base mergekit's multislerp"),
        (
            {"method": "multislerp", "base": None, "eps": 0.1},
            "'eps': above 0.000001",
        ),
        (
            {"method": "model_stock", "filter_wise": "true", **BARE},
            "'filter_wise': true: here one factor",
        ),
        (
            {"method": "model_stock", "base": "org/a", **BARE},
            "'models': model_stock needs two beside the base",
        ),
        (
            {"method": "dare_linear", "density": 0},
            "'density': 0.0 is not above 0 and at most 1",
        ),
        (
            {"method": "dare_linear", "density": "[0.5, 1]"},
            "'density': a density that differs from tensor to tensor",
        ),
        (
            {"method": "dare_ties", "density": 0.5},
            (
                "'merge_method': normalize: is false unless given: dare_ties takes the "
                "mean of the task vectors that agree here, not the sum"
            ),
        ),
        (
            {"method": "dare_ties", "normalize": "true", "weights": (1, 2)},
            "'weight': weight has to be one number for all models here",
        ),
        (
            {"method": "breadcrumbs", "density": 0.9, "gamma": 0.2},
            "'gamma': density 0.9 and gamma 0.2 exceed 1 together",
        ),
        (
            {"method": "breadcrumbs", "density": 0.9, "rescale": "true"},
            "'rescale': true: here what is kept stays as it is",
        ),
        (
            {"method": "ties", "rescale": "true"},
            "'rescale': true: here what is kept stays as it is",
        ),
        (
            {"method": "della", "density": 0.5, "rescale": "false"},
            "'rescale': false: here each number is divided by its probability",
        ),
        (
            {"method": "della", "density": 0.9},
            "'merge_method': epsilon: density 0.9 and epsilon 0.15: as in mergekit",
        ),
        (
            {"method": "della", "density": 0.5, "normalize": "false"},
            "'normalize': false: della takes the mean",
        ),
        (
            {"method": "sce", "select_topk": 0, **BARE},
            "'select_topk': 0.0 is not above 0",
        ),
        ({"method": "sce"}, None),
        ({"method": "della_linear"}, "'merge_method': 'della_linear' is not among"),
        ({"method": "arcee_fusion"}, "'merge_method': 'arcee_fusion' is not among"),
    ],
)
def test_refusals(told, problem, tmp_path):
    with pytest.raises(cm.ParameterError) as error:
        loaded(tmp_path, told.pop("method"), **told)
    if problem is None:
        assert str(error.value).startswith("2 problems in the recipe:\n")
        return
    start = re.sub(r"^.*recipe\.yaml:\d+: key ", "", str(error.value))
    assert start.startswith(problem)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"method": "slerp", "base": "org/a", "t": 0.5, **BARE}, "zero in one model"),
        ({"method": "model_stock", **BARE}, "factor is negative"),
        ({"method": "karcher", "base": None, **BARE}, "mergekit stops after max_iter"),
        ({"method": "dare_linear", "density": 0.5}, "so that its L1 norm stays"),
        ({"method": "dare_linear", "int8_mask": "true"}, "int8_mask: no effect"),
        ({"method": "dare_ties", "normalize": "true"}, "the base is left as it is"),
        ({"method": "breadcrumbs", "density": 0.5}, "mergekit may keep one less"),
        ({"method": "breadcrumbs"}, "outliers are kept as well"),
        ({"method": "della", "density": 0.5}, "divided by its own probability"),
        ({"method": "sce", **BARE}, "weighs all alike"),
        ({"method": "sce", "select_topk": 0.5, **BARE}, "a share of all numbers"),
    ],
)
def test_what_differs_is_said(told, said, tmp_path):
    _, notes = loaded(tmp_path, told.pop("method"), **told)
    assert [note for note in notes if said in note]


def test_without_dropped_numbers_nothing_is_said_of_them(tmp_path):
    for method in ("dare_linear", "della"):
        _, notes = loaded(tmp_path, method)
        assert not [note for note in notes if "random" in note or "divided" in note]
