"""What every method declares to hold of it, and what has to hold of all."""

import jax
import numpy as np
import pytest
import zoo

from centermerge_jax.methods import METHODS


def declared(law):
    return pytest.mark.parametrize(
        "name", [name for name, method in METHODS.items() if law in method.laws]
    )


EVERY = pytest.mark.parametrize("name", list(METHODS))


def three(name):
    experts, base = zoo.models()
    return zoo.tasks_of(name, experts), base


def same(found, wanted, *, tolerance=2e-5, unit=None):
    assert found.keys() == wanted.keys()
    for leaf, x in wanted.items():
        size = tolerance * (np.abs(x).max() if unit is None else unit[leaf])
        np.testing.assert_allclose(
            np.float64(found[leaf]), np.float64(x), rtol=0, atol=size, err_msg=leaf
        )


def plus(tree, other, factor=1.0):
    return {leaf: np.float32(x + factor * other[leaf]) for leaf, x in tree.items()}


def average(experts):
    trees = list(experts.values())
    return {leaf: np.mean([t[leaf] for t in trees], axis=0) for leaf in trees[0]}


@declared("order")
def test_the_order_of_the_experts_does_not_matter(name):
    experts, base = three(name)
    told = zoo.settings(METHODS[name])
    wanted = zoo.run(name, experts, base, **told)
    if name in zoo.RANDOM:  # numbers belong to the name of a task, not to its place
        shifted = zoo.models(1, seed=1)[0]["a"]
        found = zoo.run(name, {"0": shifted, "a": experts["a"]}, base, **told)
        other = zoo.run(name, {"a": experts["a"], "z": shifted}, base, **told)
        alone = zoo.run(name, {"a": experts["a"]}, base, **told)
        # What the other drops leaves the numbers of "a" as they are alone.
        for merged in (found, other):
            kept = {leaf: alone[leaf] != base[leaf] for leaf in base}
            moved = {leaf: merged[leaf] != base[leaf] for leaf in base}
            assert all((moved[x] >= kept[x]).all() for x in base)
        return None
    turned = dict(zip(experts, [*list(experts)[1:], next(iter(experts))], strict=True))
    if "instruct" in told:
        told["instruct"] = turned[told["instruct"]]
    given = zoo.data(METHODS[name], experts)
    given = {
        kind: {turned[task]: x for task, x in found.items()}
        for kind, found in given.items()
    }
    renamed = {turned[task]: tree for task, tree in experts.items()}
    return same(zoo.run(name, renamed, base, **told, **given), wanted)


@declared("translation")
def test_what_is_added_to_all_is_added_to_the_result(name):
    experts, base = three(name)
    told = zoo.settings(METHODS[name])
    wanted = zoo.run(name, experts, base, **told)
    shift = {leaf: np.float32(np.sign(x)) for leaf, x in base.items()}
    moved = {task: plus(tree, shift) for task, tree in experts.items()}
    found = zoo.run(name, moved, plus(base, shift), **told)
    # Sums of float32 numbers round task vectors, which thresholds may notice.
    differ = [np.mean(np.abs(found[x] - wanted[x] - shift[x]) > 3e-5) for x in wanted]
    assert max(differ) <= 0.02, dict(zip(wanted, differ, strict=True))


@declared("scale_zero")
def test_scale_zero_is_the_origin(name):
    experts, base = three(name)
    told = zoo.settings(METHODS[name], scale=0.0)
    origin = base if METHODS[name].needs_base else average(experts)
    same(zoo.run(name, experts, base, **told), origin, tolerance=1e-6)


@declared("one_expert")
def test_one_expert_is_returned(name):
    experts, base = zoo.models(1)
    told = zoo.settings(METHODS[name], scale=1.0, rank=1.0, agree=1)
    same(zoo.run(name, experts, base, **told), experts["a"], tolerance=5e-6)


@declared("equal")
def test_equal_experts_are_returned(name):
    experts, base = zoo.models(1)
    two = {"a": experts["a"], "b": experts["a"]}
    scale = METHODS[name].alike
    told = zoo.settings(METHODS[name], scale=0.5 if scale == "mean" else scale)
    same(zoo.run(name, two, base, **told), experts["a"], tolerance=1e-5)


@declared("linear")
def test_longer_task_vectors_change_as_much_more(name):
    experts, base = three(name)
    told = zoo.settings(METHODS[name])
    origin = base if METHODS[name].needs_base else average(experts)
    # Around zero, so that all is as exact as the task vectors are.
    zero = {leaf: 0 * x for leaf, x in base.items()}
    once = {task: plus(tree, origin, -1) for task, tree in experts.items()}
    twice = {
        task: {leaf: 2 * x for leaf, x in tree.items()} for task, tree in once.items()
    }
    found = zoo.run(name, twice, zero, **told)
    wanted = zoo.run(name, once, zero, **told)
    same(found, {leaf: 2 * np.asarray(x) for leaf, x in wanted.items()}, tolerance=1e-4)


@EVERY
def test_experts_that_are_the_base_change_nothing(name):
    experts, base = three(name)
    told = zoo.settings(METHODS[name])
    still = dict.fromkeys(experts, base)
    same(zoo.run(name, still, base, **told), base, tolerance=1e-5)


@EVERY
def test_twenty_experts_of_narrow_matrices(name):
    if name in (*zoo.ONE, *zoo.TWO):
        pytest.skip("takes one or two experts")
    experts, base = zoo.models(20)
    merged = zoo.run(name, experts, base, **zoo.settings(METHODS[name]))
    for leaf, x in merged.items():
        assert np.isfinite(x).all(), leaf
        if leaf in zoo.MATRICES and "views" in METHODS[name].hyperparameters:
            # None is left out: its rank is never 0.
            for origin in (base, average(experts)):
                moved = np.abs(x - origin[leaf]).max()
                assert moved > 1e-3 * np.abs(origin[leaf]).max(), leaf


@EVERY
def test_deltas_without_full_rank(name):
    experts, base = three(name)
    rng = np.random.default_rng(1)

    def deficient(tree):
        found = dict(tree)
        for leaf in zoo.MATRICES:
            shape = zoo.SHAPES[leaf]
            column, row = (rng.normal(size=s) for s in (shape[:1], shape[1:]))
            change = 0.05 * np.multiply.outer(column, row)
            found[leaf] = np.float32(base[leaf] + change)
        return found

    flat = {task: deficient(tree) for task, tree in experts.items()}
    told = zoo.settings(METHODS[name])
    merged = zoo.run(name, flat, base, **told)
    again = zoo.run(name, {t: {**x} for t, x in flat.items()}, base, **told)
    for leaf, x in merged.items():
        assert np.isfinite(x).all(), leaf
        np.testing.assert_array_equal(x, again[leaf])
        # Nothing far larger than what the experts changed is made up.
        assert np.abs(x - base[leaf]).max() < 10, leaf


@EVERY
def test_the_type_of_the_experts_is_kept_and_sums_are_wide(name):
    experts, base = zoo.models(dtype="bfloat16")
    experts = zoo.tasks_of(name, experts)
    told = zoo.settings(METHODS[name])
    merged = zoo.run(name, experts, base, **told)
    assert {str(x.dtype) for x in merged.values()} == {"bfloat16"}
    wide = {task: zoo.cast(tree, np.float32) for task, tree in experts.items()}
    wanted = zoo.run(name, wide, base, **told)
    same(merged, {leaf: np.float32(x) for leaf, x in wanted.items()}, tolerance=4e-3)


@EVERY
def test_traced_is_the_same(name):
    """Under jax.jit, where nothing lies in this process's memory."""
    experts, base = three(name)
    told = zoo.settings(METHODS[name])
    wanted = zoo.run(name, experts, base, **told)
    found = jax.jit(lambda experts, base: zoo.run(name, experts, base, **told))(
        experts, base
    )
    unit = dict.fromkeys(wanted, 0.05)
    same(found, wanted, tolerance=2e-3, unit=unit)


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if "scale" in method.own]
)
def test_affine_in_the_scale(name):
    experts, base = three(name)
    low, middle, high = (
        zoo.run(name, experts, base, **zoo.settings(METHODS[name], scale=scale))
        for scale in (0.5, 1.0, 2.0)
    )
    line = {leaf: low[leaf] + (high[leaf] - low[leaf]) / 3 for leaf in low}
    if METHODS[name].affine:
        same(middle, line)
    else:
        assert max(np.abs(middle[leaf] - line[leaf]).max() for leaf in low) > 1e-3
