"""Searches: what merges share changes nothing, and every rule of the search."""

import numpy as np
import pytest
import zoo

import centermerge_jax as cm
from centermerge_jax.methods import METHODS
from centermerge_jax.sweeping import Point, best, merger, sweep

SEARCHED = [
    name
    for name, method in METHODS.items()
    if method.grid and name not in (*zoo.ONE, *zoo.TWO)
]


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for leaf, x in wanted.items():
        assert found[leaf].dtype == x.dtype
        np.testing.assert_allclose(
            np.float64(found[leaf]), np.float64(x), rtol=2e-5, atol=2e-6, err_msg=leaf
        )


@pytest.mark.parametrize("name", SEARCHED)
def test_what_is_shared_changes_nothing(name):
    experts, base = zoo.models()
    method = METHODS[name]
    grid = dict(method.grid)
    fixed = {n: x for n, x in zoo.settings(method).items() if n not in grid}
    fixed |= zoo.data(method, experts)
    merged = merger(name, experts, base, grid=grid, **fixed)
    # The first, and one between: others take the same ways.
    for at in (0, 1):
        setting = {n: values[min(at, len(values) - 1)] for n, values in grid.items()}
        close(merged(**setting), zoo.run(name, experts, base, **fixed, **setting))


@pytest.mark.parametrize("told", [{"energy": 0.5}, {"noise": 0.1}])
def test_what_else_decides_on_directions_is_kept(told):
    experts, _ = zoo.models()
    grid = {"rank": (0.25, 0.5), "scale": (1.0, 2.0, 3.0)}
    merged = merger("cart", experts, None, grid=grid, **told)
    for setting in ({"rank": 0.25, "scale": 2.0}, {"rank": 0.5, "scale": 3.0}):
        close(merged(**setting), cm.cart(experts, **told, **setting))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_type_of_the_result(dtype):
    experts, base = zoo.models(dtype="bfloat16")
    for name, grid in (
        ("cart", {"rank": (0.1, 0.5), "scale": (1.0, 2.0, 3.0)}),
        ("iso_c", {"scale": (0.5, 1.0, 1.5)}),
    ):
        merged = merger(name, experts, base, grid=grid, dtype=dtype)
        setting = {n: values[1] for n, values in grid.items()}
        wanted = zoo.run(name, experts, base, dtype=dtype, **setting)
        for leaf, x in merged(**setting).items():
            assert x.dtype == dtype
            np.testing.assert_allclose(
                np.float32(x), np.float32(wanted[leaf]), rtol=1e-2, atol=1e-3
            )


class Judge:
    """Scores of one-number models, best where the number is `top`."""

    def __init__(self, top):
        self.top, self.asked, self.batches = top, [], []

    def __call__(self, models, tasks):
        self.batches.append(len(models))
        self.asked += [round(float(x["w"][0]), 4) for x in models]
        return [dict.fromkeys(tasks, -abs(float(x["w"][0]) - self.top)) for x in models]


EXPERTS = [{"w": np.float32([1.0])}, {"w": np.float32([3.0])}]
BASE = {"w": np.float32([0.0])}


def search(judge, **how):
    grid = {"scale": (0.1, 0.2, 0.3, 0.4, 0.5)}  # of the sum, 4
    return sweep(
        "task_arithmetic", EXPERTS, BASE, evaluate=judge, **{"grid": grid, **how}
    )


def test_all_of_a_grid_in_order():
    judge = Judge(1.2)
    points = search(judge)
    assert [point.setting["scale"] for point in points] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert judge.asked == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert best(points).setting == {"scale": 0.3}
    assert best(points).scores == pytest.approx({"0": 0, "1": 0}, abs=1e-6)


def test_patience_leaves_the_rest_of_a_row():
    judge = Judge(0.8)
    assert len(search(judge, patience=1)) == 3
    assert len(search(Judge(0.8), patience=2)) == 4
    assert len(search(Judge(2.0), patience=1)) == 5


def test_several_are_evaluated_together():
    judge = Judge(1.2)
    search(judge, batch=2)
    assert judge.batches == [2, 2, 1]


def test_known_points_are_not_computed_again():
    known, kept = search(Judge(1.2)), []
    judge = Judge(1.2)
    grid = {"scale": (0.1, 0.6, 0.3)}
    points = search(judge, grid=grid, known=known, keep=kept.append)
    assert judge.asked == [2.4]
    assert [point.setting["scale"] for point in points] == [0.1, 0.6, 0.3]
    assert [point.setting for point in kept] == [{"scale": 0.6}]


def test_one_hyperparameter_after_the_other():
    rng = np.random.default_rng(0)
    experts = [{"kernel": np.float32(rng.normal(size=(8, 8)))} for _ in range(3)]
    grid = {"rank": (1, 2, 3, 4, 5), "scale": (0.5, 1.0, 2.0)}
    wanted = cm.cart(experts, rank=2, scale=0.5)["kernel"]

    def evaluate(models, tasks):
        far = [float(np.abs(x["kernel"] - wanted).max()) for x in models]
        return [dict.fromkeys(tasks, -x) for x in far]

    how = {"evaluate": evaluate, "grid": grid}
    points = sweep("cart", experts, search="successive", **how)
    first = [point.setting for point in points[:5]]
    assert first == [{"rank": rank, "scale": 1.0} for rank in grid["rank"]]
    found = best(points)
    # Nothing next to it, along one hyperparameter, is better.
    every = {tuple(p.setting.values()): p.mean for p in sweep("cart", experts, **how)}
    at = found.setting
    beside = [every[rank, at["scale"]] for rank in grid["rank"]]
    beside += [every[at["rank"], scale] for scale in grid["scale"]]
    assert found.mean == max(beside)
    assert len(points) < len(every)


def test_nothing_to_search_is_one_point():
    experts, _ = zoo.models()
    points = sweep(
        "weight_average",
        experts,
        evaluate=lambda models, tasks: [dict.fromkeys(tasks, 0.5) for _ in models],
    )
    assert [point.setting for point in points] == [{}]


def test_models_of_single_tasks_are_judged_by_their_own():
    experts, base = zoo.models()
    asked = []

    def evaluate(models, tasks):
        asked.append(tuple(tasks))
        return [dict.fromkeys(tasks, 0.25) for _ in models]

    grid = {"rank": (0.1, 0.2)}
    points = sweep("cart_indexing", experts, base, evaluate=evaluate, grid=grid)
    assert asked == [("a",), ("b",), ("c",)] * 2
    assert [set(point.scores) for point in points] == [set("abc")] * 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"grid": {"rnk": (1,)}}, "task_arithmetic has no 'rnk'; it has scale"),
        ({"grid": {"scale": ()}}, "no value is given for scale"),
        ({"scale": 0.3}, "scale is in the grid and fixed"),
        ({"patience": 0}, "patience is at least 1; got 0"),
        ({"batch": 0}, "batch is at least 1; got 0"),
    ],
)
def test_what_is_refused(how, message):
    with pytest.raises(cm.ParameterError, match=message):
        search(Judge(1.0), **how)


def test_of_equal_points_the_first():
    points = [Point({"scale": s}, {"a": 0.5}, 0.0, 0.0) for s in (1, 2)]
    assert best(points).setting == {"scale": 1}
    with pytest.raises(cm.ParameterError, match="no setting was evaluated"):
        best([])
