"""mergekit's methods, called as its users call them from Python."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from golden import merging
from merging_cases import Case, Given
from mergekit.merge_methods.api import merge_state_dicts, merge_tensors

_NOT_L1 = (
    "mergekit multiplies what is left of a tensor so that its L1 norm stays, where the "
    "paper divides by the probability"
)


def merge(
    given: Given, told: Mapping[str, Any], *, base: str | None = "base"
) -> dict[str, Any]:
    """`merge_state_dicts` of the experts, and of the base if there is one."""
    told = dict(told)
    trees = {task: _tensors(tree) for task, tree in given.experts.items()}
    if base == "base":
        trees["base"] = _tensors(given.base)
    return merge_state_dicts(trees, told.pop("method"), parameters=told, base=base)


def average(given: Given, told: Mapping[str, Any]) -> dict[str, Any]:
    """Without a base."""
    return merge(given, told, base=None)


def between(given: Given, told: Mapping[str, Any]) -> dict[str, Any]:
    """Between two models, the first of which counts as the base."""
    return merge(given, told, base=next(iter(given.experts)))


def masked(given: Given, told: Mapping[str, Any]) -> dict[str, Any]:
    """Tensor by tensor, with our random numbers behind `torch.bernoulli`."""
    told, tasks = dict(told), list(given.experts)
    method, merged = told.pop("method"), {}
    for name, origin in given.base.items():
        drawn = [merging.uniforms(task, name, origin.shape) for task in tasks]
        tensors = [given.base[name], *(given.experts[task][name] for task in tasks)]
        with _drawing([torch.from_numpy(x) for x in drawn]):
            merged[name] = merge_tensors(
                [torch.from_numpy(x) for x in tensors],
                method,
                parameters=told,
                ids=["base", *tasks],
                base_index=0,
                name=name,
            )
    return merged


def _tensors(tree: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x.copy()) for name, x in tree.items()}


@contextlib.contextmanager
def _drawing(numbers: list[torch.Tensor]) -> Iterator[None]:
    """`torch.bernoulli` uses these numbers, one tensor a call."""
    left = iter(numbers)
    before = torch.bernoulli

    def bernoulli(p: torch.Tensor) -> torch.Tensor:
        return (next(left).reshape(p.shape) < p).to(p.dtype)

    torch.bernoulli = bernoulli
    try:
        yield
    finally:
        torch.bernoulli = before
    if next(left, None) is not None:
        raise AssertionError("there are random numbers left")


def _case(method: str, ours: dict[str, Any], told: dict[str, Any], **rest: Any) -> Case:
    run = rest.pop("run", merge)
    name = "merge_tensors" if run is masked else "merge_state_dicts"
    return Case(method, ours, name, told, run, **rest)


CASES = {
    "weight_average": _case(
        "weight_average",
        {"weights": {"a": 1.0, "b": 2.0, "c": 5.0}},
        {"method": "linear", "weight": [1.0, 2.0, 5.0]},
        run=average,
    ),
    "slerp": _case(
        "slerp",
        {"t": 0.3},
        {"method": "slerp", "t": 0.3},
        models={"experts": "ab"},
        run=between,
    ),
    "karcher_mean": _case(
        "karcher_mean",
        {},
        {"method": "karcher", "max_iter": 100, "tol": 1e-7},
        run=average,
    ),
    "normalised_mean": _case(
        "normalised_mean", {}, {"method": "multislerp", "weight": 1.0}, run=average
    ),
    "normalised_mean_weighted": _case(
        "normalised_mean",
        {"weights": {"a": 1.0, "b": 2.0, "c": 5.0}},
        {"method": "multislerp", "weight": [1.0, 2.0, 5.0]},
        run=average,
    ),
    "model_stock": _case("model_stock", {}, {"method": "model_stock"}),
    "model_stock_opposed": _case(
        "model_stock",
        {},
        {"method": "model_stock"},
        models={"factors": {"c": -1.0}},
        differs="where task vectors oppose each other mergekit's factor is negative "
        "and leads away from the mean; ours is 0, the base",
    ),
    "task_arithmetic": _case(
        "task_arithmetic",
        {"scale": 0.4},
        {"method": "task_arithmetic", "weight": 1.0, "lambda": 0.4},
    ),
    "task_arithmetic_by_task": _case(
        "task_arithmetic",
        {"scale": {"a": 0.5, "b": -0.3, "c": 0.2}},
        {"method": "task_arithmetic", "weight": [0.5, -0.3, 0.2]},
    ),
    "ties": _case(
        "ties",
        {"density": 0.3, "scale": 0.7},
        {"method": "ties", "weight": 1.0, "density": 0.3, "lambda": 0.7},
        leafwise=True,
    ),
    "ties_untrimmed": _case(
        "ties",
        {"density": 1.0, "scale": 0.7},
        {"method": "ties", "weight": 1.0, "lambda": 0.7},
    ),
    "ties_whole": _case(
        "ties",
        {"density": 0.3, "scale": 0.7},
        {"method": "ties", "weight": 1.0, "density": 0.3, "lambda": 0.7},
        differs="mergekit trims each tensor by itself, the paper and its authors' code "
        "the whole vector",
    ),
    "dare": _case(
        "dare",
        {"density": 1.0, "scale": 0.4},
        {"method": "dare_linear", "weight": 1.0, "density": 1.0, "lambda": 0.4},
    ),
    "dare_masked": _case(
        "dare",
        {"density": 0.6, "scale": 0.4},
        {"method": "dare_linear", "weight": 1.0, "density": 0.6, "lambda": 0.4},
        run=masked,
        masks=True,
        differs=_NOT_L1,
    ),
    "random_mask": _case(
        "random_mask",
        {"density": 0.6, "scale": 0.4},
        {
            "method": "dare_linear",
            "weight": 1.0,
            "density": 0.6,
            "rescale": False,
            "lambda": 0.4,
        },
        run=masked,
        masks=True,
    ),
    "dare_ties": _case(
        "dare_ties",
        {"density": 1.0, "scale": 0.4},
        {
            "method": "dare_ties",
            "weight": 1.0,
            "density": 1.0,
            "normalize": True,
            "lambda": 0.4,
        },
    ),
    "dare_ties_masked": _case(
        "dare_ties",
        {"density": 0.6, "scale": 0.24},
        # One scale for all tasks undoes what is left out: 0.24 / 0.6 = 0.4.
        {
            "method": "dare_ties",
            "weight": 1.0,
            "density": 0.6,
            "normalize": True,
            "rescale": False,
            "lambda": 0.4,
        },
        run=masked,
        masks=True,
    ),
    "breadcrumbs": _case(
        "breadcrumbs",
        {"density": 0.6, "outliers": 0.05, "scale": 0.4},
        {
            "method": "breadcrumbs",
            "weight": 1.0,
            "density": 0.6,
            "gamma": 0.05,
            "lambda": 0.4,
        },
    ),
    "breadcrumbs_defaults": _case(
        "breadcrumbs",
        {"density": 0.9, "scale": 0.4},
        {"method": "breadcrumbs", "weight": 1.0, "density": 0.9, "lambda": 0.4},
    ),
    "breadcrumbs_crowded": _case(
        "breadcrumbs",
        {"density": 0.97, "outliers": 0.05, "scale": 0.4},
        {
            "method": "breadcrumbs",
            "weight": 1.0,
            "density": 0.97,
            "gamma": 0.05,
            "lambda": 0.4,
        },
        differs="where density and outliers exceed 1 together mergekit keeps outliers, "
        "ours keeps less than the density",
    ),
    "della": _case(
        "della",
        {"density": 1.0, "epsilon": 0.0, "scale": 0.4},
        {"method": "della", "weight": 1.0, "density": 1.0, "lambda": 0.4},
    ),
    "della_masked": _case(
        "della",
        {"density": 0.6, "epsilon": 0.3, "scale": 0.4},
        {
            "method": "della",
            "weight": 1.0,
            "density": 0.6,
            "epsilon": 0.3,
            "lambda": 0.4,
        },
        run=masked,
        masks=True,
        differs=_NOT_L1,
    ),
    "sce": _case("sce", {"density": 0.3}, {"method": "sce", "select_topk": 0.3}),
    "sce_whole": _case("sce", {}, {"method": "sce"}),
    "sce_small": _case(
        "sce",
        {"density": 0.3},
        {"method": "sce", "select_topk": 0.3},
        models={"factors": {"a": 0.01, "b": 0.01, "c": 0.01}},
        differs="below a sum of squares of 1e-6 mergekit weighs all tasks alike",
    ),
}
