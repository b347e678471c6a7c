"""Any pytree is a parameter tree, and what does not fit is said leaf by leaf."""

import functools
from typing import NamedTuple

import chex
import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import centermerge_jax as cm
from centermerge_jax.trees import named_leaves


class Pair(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(6, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))  # holds an integer and a key


def linear(key, cls):
    kernel, bias = jax.random.normal(key, (6, 4)), jax.random.normal(key, (4,))
    return cls({"dense": {"kernel": kernel, "bias": bias}})


def nested(key):
    kernel, bias = jax.random.normal(key, (6, 4)), jax.random.normal(key, (4,))
    return {"layers": [(Pair(kernel, bias), None)], "count": 3, "name": "net"}


CONTAINERS = {
    "dict": lambda key: linear(key, dict),
    "FrozenDict": lambda key: linear(key, flax.core.FrozenDict),
    "nnx.State": lambda key: nnx.state(Net(nnx.Rngs(key))),
    "equinox": lambda key: eqx.nn.MLP(6, 4, 8, 1, key=key),
    "tuples and lists": nested,
    "flat": lambda key: {
        "dense.weight": jax.random.normal(key, (6, 4)),
        "value": jax.random.normal(key, (4,)),
    },
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_any_container(kind):
    trees = [CONTAINERS[kind](jax.random.key(seed)) for seed in range(3)]
    merged = cm.cart(trees, rank=2, scale=1.5)
    assert type(merged) is type(trees[0])
    assert jax.tree.structure(merged) == jax.tree.structure(trees[0])
    mean = named_leaves(cm.weight_average(trees))
    for name, leaf in named_leaves(merged).items():
        stack = [named_leaves(tree)[name] for tree in trees]
        if np.ndim(stack[0]) == 2:
            assert np.abs(leaf - mean[name]).max() > 0.01, name
            whole = [np.float64(x) - np.mean(np.float64(stack), 0) for x in stack]
            wanted = 0
            for delta in whole:
                u, s, vh = np.linalg.svd(delta, full_matrices=False)
                wanted += (u[:, :2] * s[:2]) @ vh[:2]
            wanted = np.mean(np.float64(stack), 0) + 1.5 * wanted
            np.testing.assert_allclose(leaf, wanted, atol=1e-4)
        elif name.endswith(("bias", "value")):
            np.testing.assert_allclose(leaf, np.mean(stack, axis=0), atol=1e-6)
        else:  # integers, keys, functions, strings
            assert leaf is stack[0] or leaf == stack[0]


def test_names():
    tree = {
        "a": [{"kernel": 1.0}, {"value": 2.0}],
        "b.c": 3.0,
        "state": nnx.state(nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))),
    }
    names = ["a/0/kernel", "a/1/value", "b.c", "state/kernel"]
    assert list(named_leaves(tree)) == names
    with pytest.raises(cm.StructureError, match="1 leaf name used more than once: a/b"):
        named_leaves({"a": {"b": 1.0}, "a/b": 2.0})


def test_every_difference_is_listed():
    trees = {
        "a": {"k": np.ones((2, 3), np.float32), "n": np.int32(1)},
        "b": {"k": np.ones((2, 4), np.float32), "n": np.int32(2)},
        "c": {"n": np.int32(1), "x": np.float32(1)},
    }
    with pytest.raises(cm.StructureError) as caught:
        cm.center(trees)
    assert str(caught.value) == (
        "4 differences from 'a':\n"
        "  b: k is float32[2, 4], expected float32[2, 3]\n"
        "  b: n (int32[]) has other values; only floating leaves are merged\n"
        "  c: missing k\n"
        "  c: extra x\n"
        "What is not shared (task heads) can be left out: --exclude, --keep."
    )


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ([np.float32(1), np.float16(1)], r"1: k is float16\[\], expected float32\[\]"),
        ([np.complex64(1)], r"0: k is complex64\[\]: complex leaves cannot be merged"),
        ([np.float64(1)], "jax_enable_x64"),
        ([np.float32(1), "x"], r"1: k is str, expected float32\[\]"),
        ([jax.random.key(0), jax.random.key(1)], "has other values"),
        ([True, False], "has other values"),
        (["relu", "gelu"], "is 'gelu', expected 'relu'"),
    ],
)
def test_leaves_that_cannot_be_merged(leaves, message):
    with pytest.raises(cm.StructureError, match=message):
        cm.center([{"k": leaf} for leaf in leaves])


def test_other_containers_around_the_same_leaves():
    leaf = np.ones(2, np.float32)
    with pytest.raises(cm.StructureError, match="1: same leaves as '0', but other"):
        cm.center([{"a": [leaf]}, {"a": (leaf,)}])


def test_the_base_may_have_another_type_but_no_other_shape():
    experts = [{"k": jnp.ones((2, 2), jnp.bfloat16)}] * 2
    merged = cm.task_arithmetic(experts, {"k": np.zeros((2, 2), np.float32)}, scale=0.5)
    chex.assert_trees_all_equal(merged, experts[0])
    with pytest.raises(cm.StructureError, match=r"base: k is float32\[3\]"):
        cm.task_arithmetic(experts, {"k": np.zeros(3, np.float32)}, scale=0.5)


@pytest.mark.parametrize("experts", [{}, [], (), "abc", np.ones(3), {1: {}}])
def test_experts_that_are_none(experts):
    # Under test the annotations are checked first.
    with pytest.raises((cm.ParameterError, jaxtyping.TypeCheckError)):
        cm.center(experts)


def test_task_order_is_that_of_sorted_names_eager_and_jitted():
    trees = {
        name: {
            "kernel": np.random.default_rng(i).normal(size=(6, 6)).astype(np.float32)
        }
        for i, name in enumerate(["zebra", "ant", "mole"])
    }
    scale = jnp.array([0.5, 1.0, 2.0])
    run = functools.partial(cm.cart, rank=2, scale=scale, solver="exact")
    assert cm.center(trees).tasks == ("ant", "mole", "zebra")
    chex.assert_trees_all_close(run(trees), jax.jit(run)(trees), atol=1e-5)
