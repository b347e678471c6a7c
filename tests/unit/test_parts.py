"""Merging part by part, and task vectors made on the host: as for whole trees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import cast, expert, experts

import centermerge_jax as cm
from centermerge_jax import parts
from centermerge_jax.host_memory import as_jax, empty
from centermerge_jax.linalg import LowRank
from centermerge_jax.views import Join, MatrixView, groups
from centermerge_jax.views.presets import fused


def whole_cart(trees, *, rank, scale, views):
    return cm.combine(
        cm.truncate(cm.center(trees), rank=rank, views=views), scale=scale
    )


def trees():
    return {name: expert(i, blocks=3) for i, name in enumerate(("a", "b", "c", "d"))}


@pytest.mark.parametrize("memory", [1, 40_000, 2**30])
@pytest.mark.parametrize("views", [None, fused])
def test_cart_in_parts_is_the_composition(memory, views):
    scale = {"a": 1.0, "b": 0.5, "c": 2.0, "d": 1.5}
    for rank in (0.25, 16):
        how = {"rank": rank, "scale": scale, "views": views}
        found = cm.cart(trees(), **how, memory=memory)
        chex.assert_trees_all_close(found, whole_cart(trees(), **how), atol=1e-5)


def test_uncentred_control_in_parts_is_its_composition():
    base = expert(9, blocks=3)
    tv = cm.truncate(cm.subtract(trees(), base), rank=4)
    for rest, dense in (("mean", 0.25), ("sum", 0.7), ("base", 0.0)):
        found = cm.truncated_task_arithmetic(
            trees(), base, rank=4, scale=0.7, rest=rest, memory=1
        )
        for name, (origin, delta) in tv.flat().items():
            if isinstance(delta, LowRank):
                wanted = origin + 0.7 * np.sum(delta.dense(), axis=0)
            elif delta is None:
                continue
            else:
                wanted = origin + dense * np.sum(delta, axis=0)
            leaf = found
            for key in name.split("/"):
                leaf = leaf[key]
            np.testing.assert_allclose(leaf, wanted, atol=1e-5, err_msg=name)


def test_uncentred_control_takes_a_scale_by_task():
    base, by_task = expert(9, blocks=3), {"a": 1.0, "b": 0.5, "c": 2.0, "d": 1.5}
    run = lambda scale: cm.truncated_task_arithmetic(  # noqa: E731
        trees(), base, rank=4, scale=scale, rest="sum", memory=1
    )
    array = np.float32(list(by_task.values()))
    chex.assert_trees_all_close(run(by_task), run(array), atol=1e-6)


def test_a_jitted_truncation_holds_one_solver_for_each_shape():
    def calls(blocks):
        named = {str(i): expert(i, blocks=blocks)["blocks"] for i in range(3)}
        run = jax.jit(
            lambda e: cm.truncate(cm.center(e), rank=4, solver="subspace", memory=1)
        )
        return run.lower(named).as_text().count("call @_solve_joint")

    assert calls(2) == calls(4) > 0


@pytest.mark.parametrize("scale", [np.nan, np.ones(2, np.float32), "1"])
def test_uncentred_control_checks_its_scale_first(scale, monkeypatch):
    monkeypatch.setattr(cm.task_vectors, "_on_host", None)
    with pytest.raises(cm.ParameterError, match="scale"):
        cm.truncated_task_arithmetic(trees(), expert(9, blocks=3), rank=4, scale=scale)


def test_parts_are_as_small_as_the_budget_says(monkeypatch):
    seen = []
    original = parts._parts
    monkeypatch.setattr(
        parts, "_parts", lambda *a: (seen.append(p) or p for p in original(*a))
    )
    cm.cart(trees(), rank=4, scale=1.0, views=fused, memory=1)
    matrices = [names for names in seen if "kernel" in names[0]]
    assert all(len(names) in (1, 3) for names in matrices)  # q, k and v are one
    assert sorted(name for names in seen for name in names) == sorted(
        cm.center(trees()).flat()
    )
    seen.clear()
    cm.cart(trees(), rank=4, scale=1.0, views=fused)
    matrices = [names for names in seen if "kernel" in names[0]]
    # fc1 and the joined q, k and v have one shape
    assert sorted(map(len, matrices)) == [3, 3, 3 + 9]


def test_wrong_trees_are_seen_before_anything_is_merged(monkeypatch):
    wrong = trees()
    wrong["c"]["blocks"]["2"]["norm"]["scale"] = np.ones(3, np.float32)
    monkeypatch.setattr(cm.task_vectors, "_on_host", None)
    with pytest.raises(cm.StructureError, match="c: blocks/2/norm/scale"):
        cm.cart(wrong, rank=4, scale=1.0)


def test_donated_deltas_are_gone_and_others_are_not():
    tv = cm.center(trees())
    kept = cm.truncate(tv, rank=4)
    again = cm.truncate(tv, rank=4, donate=True)
    chex.assert_trees_all_close(again.deltas, kept.deltas, atol=1e-5)
    for delta, factors in zip(tv.flat().values(), again.flat().values(), strict=True):
        if isinstance(factors[1], LowRank):
            assert delta[1].is_deleted()
        elif factors[1] is not None:
            assert not delta[1].is_deleted()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_host_and_jit_make_the_same_task_vectors(dtype):
    big = np.random.default_rng(0).normal(size=(4, 70_001)).astype(np.float32)
    named = {
        f"t{i}": {"w": np.asarray(jnp.asarray(x, dtype))} for i, x in enumerate(big)
    }
    base = named.pop("t3")
    for make in (cm.center, lambda e: cm.subtract(e, base)):
        host, jitted = make(named), jax.jit(make)(named)
        assert host.deltas["w"].dtype == jnp.float32
        chex.assert_trees_all_close(host.deltas, jitted.deltas, atol=2e-7)
        chex.assert_trees_all_close(host.origin, jitted.origin, atol=2e-7)
    equal = dict.fromkeys("xyz", named["t0"])
    tv = cm.center(equal)
    assert np.array_equal(tv.origin["w"], np.float32(named["t0"]["w"]))
    assert not np.any(tv.deltas["w"])


def test_host_leaves_inputs_alone_and_stays_on_their_device():
    given = {name: cast(expert(i), jnp.float32) for i, name in enumerate("abc")}
    before = jax.tree.map(np.copy, given)
    cm.cart(given, rank=4, scale=2.0)
    chex.assert_trees_all_equal(given, before)
    second = jax.devices()[1]
    moved = jax.device_put({k: {"w": v["embed"]} for k, v in given.items()}, second)
    assert cm.center(moved).deltas["w"]["embedding"].devices() == {second}
    factors = cm.truncated_svd(moved["a"]["w"]["embedding"], rank=2)
    assert factors.u.devices() == {second}


def test_memory_is_shared_not_copied():
    x = empty((1000, 1000), np.float32)
    x[:] = 1
    assert as_jax(x).unsafe_buffer_pointer() == x.ctypes.data


def test_groups_are_even_and_joined_leaves_of_one_type():
    view = MatrixView((4, 4), rows=(0,), cols=(1,))
    table = {str(i): view for i in range(7)} | {"bias": None}
    found = groups(table, dict.fromkeys(table), most=6 * 16)
    assert [len(group) for group in found] == [4, 3]
    joined = MatrixView((4, 4), (0,), (1,), join=Join("qk", "cols", 0, 8))
    with pytest.raises(cm.ViewError, match="joined leaves of different types: q, k"):
        groups({"q": joined, "k": joined}, {"q": "f4", "k": "f2"})


def test_a_centred_merge_of_narrow_types_is_cast_once():
    narrow = experts(dtype=jnp.bfloat16)
    wide = {k: cast(v, jnp.float32) for k, v in narrow.items()}
    found = cm.cart(narrow, rank=4, scale=1.5)
    wanted = cm.cart(wide, rank=4, scale=1.5, dtype=jnp.bfloat16)
    chex.assert_trees_all_equal(found, wanted)
