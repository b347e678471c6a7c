"""Hyperparameters outside their range."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import reference
from models import experts

import centermerge_jax as cm
from centermerge_jax import magnitudes
from centermerge_jax.ranks import check_rank, resolve_rank


@pytest.mark.parametrize(
    ("rank", "size", "k"),
    [
        # Choi et al.: 12, 16, 32 % of ViT-B; 8, 32 % of ViT-L
        (0.12, 768, 92),
        (0.16, 768, 122),
        (0.32, 768, 245),
        (0.08, 1024, 81),
        (0.32, 1024, 327),
        (1.0, 7, 7),
        (1, 7, 1),
        (1e-9, 7, 1),
        (100, 7, 7),
        (np.float32(0.5), 7, 3),
        (np.int64(2), 7, 2),
    ],
)
def test_rank(rank, size, k):
    assert resolve_rank(rank, size) == k


@pytest.mark.parametrize(
    "rank", [0, -1, 0.0, -0.1, 1.5, math.nan, math.inf, True, np.bool_(True), None, "1"]
)
def test_wrong_rank(rank):
    with pytest.raises(cm.ParameterError, match="rank"):
        check_rank(rank)


def test_a_rank_above_every_matrix_is_an_error():
    tv = cm.center(experts())
    assert (
        cm.truncate(tv, rank=16).deltas["blocks"]["0"]["mlp"]["fc1"]["kernel"].rank
        == 16
    )
    with pytest.raises(
        cm.ParameterError, match=r"rank 17 is above .* min\(m, n\) = 16"
    ):
        cm.truncate(tv, rank=17)


def test_nothing_to_truncate():
    tv = cm.center([{"bias": np.ones(3, np.float32)}] * 3)
    with pytest.raises(cm.ParameterError, match="no leaf is a matrix"):
        cm.truncate(tv, rank=0.5)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            np.ones(2, np.float32),
            r"shape \[2\]: it is one number, or one for each of the 3",
        ),
        (math.nan, "scale for .* is not finite: nan"),
        ("1", "scale for .* is a real number, got '1'"),
        (1j, "scale for .* is a real number"),
        ({"mnist": 1.0, "cars": math.inf, "dtd": 0.0}, "not finite"),
        ({"mnist": 1.0, "cars": 1.0}, "scale is a number, a mapping from each"),
        ({"blocks": 1.0, "embed": 1.0}, "scale is a number, a mapping from each"),
    ],
)
def test_wrong_scale(scale, message):
    with pytest.raises(cm.ParameterError, match=message):
        cm.combine(cm.center(experts()), scale=scale)


def test_a_mapping_that_could_be_tasks_or_parameters_is_refused():
    tv = cm.center(
        {
            "a": {"a": jnp.ones(2), "b": jnp.ones(2)},
            "b": {"a": jnp.ones(2), "b": jnp.ones(2)},
        }
    )
    with pytest.raises(cm.ParameterError, match="could mean either"):
        cm.combine(tv, scale={"a": 1.0, "b": 2.0})


def nested(seed):
    """Three blocks with the names that a list of three experts gives its tasks."""
    rng = np.random.default_rng(seed)
    return {
        "blocks": {
            "0": {"kernel": rng.normal(size=(6, 6)).astype(np.float32)},
            "1": rng.normal(size=6).astype(np.float32),
            "2": rng.normal(size=6).astype(np.float32),
        }
    }


def test_tasks_that_are_called_as_parameters_are():
    trees, base = [nested(seed) for seed in range(3)], nested(9)
    merged = cm.truncated_task_arithmetic(trees, base, rank=2, scale=0.7)["blocks"]
    for name in "12":
        mean = np.mean([tree["blocks"][name] for tree in trees], axis=0)
        np.testing.assert_allclose(merged[name], mean, atol=1e-6)
    kernels = [tree["blocks"]["0"]["kernel"] for tree in trees]
    wanted = base["blocks"]["0"]["kernel"] + 0.7 * sum(
        reference.svd_k(x - base["blocks"]["0"]["kernel"], 2) for x in kernels
    )
    np.testing.assert_allclose(merged["0"]["kernel"], wanted, atol=1e-4)
    tv = cm.center(trees)
    with pytest.raises(
        cm.ParameterError, match="at 'blocks' have the names of the tasks"
    ):
        cm.combine(tv, scale={"blocks": {"0": 1.0, "1": 2.0, "2": 3.0}})
    cm.combine(tv, scale=jnp.array([1.0, 2.0, 3.0]))


def test_types_that_are_no_results():
    tv = cm.center(experts())
    with pytest.raises(cm.ParameterError, match="dtype is a floating type, got int32"):
        cm.combine(tv, scale=1.0, dtype="int32")
    with pytest.raises(cm.ParameterError, match="switch on jax_enable_x64"):
        cm.combine(tv, scale=1.0, dtype="float64")


@pytest.mark.parametrize(
    "x",
    [
        np.ones((3, 3)),
        jnp.ones((3, 3), jnp.complex64),
        jnp.ones((3, 3), jnp.int32),
        jnp.ones((0, 3)),
    ],
)
def test_what_is_no_matrix_of_floats(x):
    with pytest.raises((cm.ParameterError, jaxtyping.TypeCheckError)):
        cm.truncated_svd(x, rank=1)


def test_gradients_through_combine_are_finite_for_an_unchanged_matrix():
    tv = cm.truncate(cm.center([experts()["dtd"]] * 3), rank=2)

    def loss(scale):
        merged = cm.combine(tv, scale=scale)["blocks"]
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(merged))

    assert np.all(np.isfinite(jax.grad(loss)(jnp.ones(3))))


@pytest.mark.parametrize("task", ["svhn", 3, -1])
def test_unknown_task(task):
    with pytest.raises(cm.ParameterError, match="no task"):
        cm.select(cm.center(experts()), task, scale=1.0)


def test_unknown_choices():
    tv = cm.center(experts())
    with pytest.raises(Exception, match="solver"):
        cm.truncate(tv, rank=0.5, solver="fast")
    with pytest.raises(Exception, match="rest"):
        cm.truncated_task_arithmetic(
            experts(), experts()["dtd"], rank=0.5, scale=1.0, rest="zero"
        )


def test_shapes_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        magnitudes._bits(np.ones((2, 2), np.float32))
