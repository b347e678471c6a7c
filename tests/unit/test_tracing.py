"""The core under jit, vmap and grad: one trace for each configuration."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from models import experts

import centermerge_jax as cm
from centermerge_jax.ranks import check_rank


def floats(tree):
    return {"embed": tree["embed"], "blocks": tree["blocks"]}


def trees(**kwargs):
    return {name: floats(tree) for name, tree in experts(**kwargs).items()}


def test_jit_traces_once_and_agrees():
    run = functools.partial(cm.cart, rank=0.25, solver="exact")
    jitted = jax.jit(chex.assert_max_traces(lambda e, s: run(e, scale=s), n=1))
    found = jitted(trees(), jnp.float32(1.5))
    again = jitted(trees(), jnp.float32(2.0))
    chex.assert_trees_all_close(found, run(trees(), scale=1.5), atol=1e-5)
    chex.assert_trees_all_close(again, run(trees(), scale=2.0), atol=1e-5)


def test_vmap_over_scales_and_over_experts():
    tv = cm.truncate(cm.center(trees()), rank=0.25)
    scales = jnp.array([0.5, 1.0, 2.0])
    grid = jax.vmap(lambda s: cm.combine(tv, scale=s))(scales)
    for i, scale in enumerate((0.5, 1.0, 2.0)):
        one = jax.tree.map(lambda x, i=i: x[i], grid)
        chex.assert_trees_all_close(one, cm.combine(tv, scale=scale), atol=1e-6)
    # seeds of all experts at once
    both = [trees(), trees(names=("b", "mnist", "x"))]
    named = [dict(zip("abc", e.values(), strict=True)) for e in both]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *named)
    run = functools.partial(cm.cart, rank=0.25, scale=1.5, solver="exact")
    merged = jax.vmap(run)(stacked)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], merged)
        chex.assert_trees_all_close(one, run(named[i]), atol=1e-5)


def test_gradient_with_respect_to_scales():
    tv = cm.truncate(cm.center(trees()), rank=0.25)
    target = floats(experts()["cars"])

    def loss(scale):
        merged = cm.combine(tv, scale=scale)
        pairs = zip(jax.tree.leaves(merged), jax.tree.leaves(target), strict=True)
        return sum(jnp.sum((a - b) ** 2) for a, b in pairs)

    per_task = jnp.array([1.0, 1.5, 0.5])
    gradient = jax.grad(loss)(per_task)
    for task in range(3):
        step = 1e-2 * jnp.eye(3)[task]
        numeric = (loss(per_task + step) - loss(per_task - step)) / 2e-2
        np.testing.assert_allclose(gradient[task], numeric, rtol=1e-2)
    per_leaf = jax.tree.map(lambda _: per_task, tv.origin)
    by_leaf = jax.grad(loss)(per_leaf)
    np.testing.assert_allclose(sum(jax.tree.leaves(by_leaf)), gradient, rtol=1e-4)
    np.testing.assert_allclose(
        jax.grad(loss)(1.0), jnp.sum(_matrix_part(tv, loss)), rtol=1e-3
    )


def _matrix_part(tv, loss):
    """Gradient by task of the matrices alone: the rest cancels under one scale."""
    ones = jnp.ones(3)
    per_leaf = jax.grad(loss)(jax.tree.map(lambda _: ones, tv.origin))
    return sum(
        gradient
        for gradient, (_, delta) in zip(
            jax.tree.leaves(per_leaf), tv.flat().values(), strict=True
        )
        if isinstance(delta, cm.LowRank)
    )


def test_gradient_reaches_the_factors():
    tv = cm.truncate(cm.center(trees()), rank=2)

    def loss(tv):
        return jnp.sum(cm.combine(tv, scale=2.0)["blocks"]["0"]["mlp"]["fc1"]["kernel"])

    gradient = jax.grad(loss)(tv).deltas["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    factors = tv.deltas["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    # d/ds_i of sum(2 u_i s_i v_i) is 2 sum(u_i) sum(v_i)
    wanted = 2 * jnp.sum(factors.u, axis=1) * jnp.sum(factors.vh, axis=2)
    np.testing.assert_allclose(gradient.s, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("views", [cm.views.auto, cm.views.fused])
def test_number_of_compilations_does_not_depend_on_depth(views):
    def compilations(blocks):
        jax.clear_caches()
        count = 0

        def on_event(event, duration, **kwargs):
            nonlocal count
            count += event == "/jax/core/compile/backend_compile_duration"

        jax.monitoring.register_event_duration_secs_listener(on_event)
        try:
            cm.cart(trees(blocks=blocks), rank=0.25, scale=1.5, views=views)
        finally:
            jax.monitoring.clear_event_listeners()
        return count

    shallow, deep = compilations(2), compilations(4)
    assert shallow == deep > 0


def test_a_traced_rank_is_refused():
    some = trees()
    # Under test the annotations are checked first, so by the function they belong to.
    with pytest.raises((cm.ParameterError, jaxtyping.TypeCheckError)):
        jax.jit(lambda r: cm.cart(some, rank=r, scale=1.0))(2)
    with pytest.raises(cm.ParameterError, match=r"static under jax.jit: close over it"):
        jax.jit(inspect.unwrap(check_rank))(2)
