"""Parts of a merge: nothing lost, nothing twice, and no larger than they have to be."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import centermerge_jax as cm
from centermerge_jax.checkpoints import LeafInfo
from centermerge_jax.division import copies, divide
from centermerge_jax.views import Rule, resolve

F32 = np.dtype(np.float32)
RULES = (
    Rule(r"(.*)/[qkv]/kernel", rows=(1,), cols=(2,), batch=(0,), join=r"\1/qkv"),
    Rule(r".*/kernel", rows=(1,), cols=(2,), batch=(0,)),
    Rule(r".*/last", rows=(0,), cols=(1,), batch=(2,)),
    Rule(r".*"),
)


def shapes(layers, width):
    return {
        "emb/table": (7 * width, width),
        "attn/q/kernel": (layers, width, width),
        "attn/k/kernel": (layers, width, width),
        "attn/v/kernel": (layers, width, 2 * width),
        "mlp/kernel": (layers, width, 3 * width),
        "mlp/bias": (layers, 3 * width),
        "odd/last": (width, width, layers),
        "steps": (),
    }


def divided(layers, width, most, *, scope="matrix", settings=None, divisible=True):
    leaves = {n: LeafInfo(s, F32) for n, s in shapes(layers, width).items()}
    tree = {n: np.broadcast_to(np.float32(0), s.shape) for n, s in leaves.items()}
    views = resolve(tree, RULES)
    settings = settings or {name: {} for name in leaves}
    parts = divide(
        leaves,
        views=views,
        settings=settings,
        scope=scope,
        most=most,
        divisible=divisible,
    )
    return leaves, views, parts


def check_whole(leaves, parts):
    """Every number of every leaf is in exactly one piece."""
    seen = {name: np.zeros(math.prod(i.shape), int) for name, i in leaves.items()}
    for part in parts:
        assert len({piece.leaf for piece in part.pieces}) == len(part.pieces)
        for piece in part.pieces:
            assert math.prod(piece.shape) == piece.stop - piece.start
            seen[piece.leaf][piece.start : piece.stop] += 1
    for name, count in seen.items():
        assert (count == 1).all(), name


@settings(deadline=None, max_examples=60)
@given(
    layers=st.integers(1, 7),
    width=st.integers(1, 9),
    most=st.integers(1, 5000),
    scope=st.sampled_from(["element", "matrix", "tree"]),
    divisible=st.booleans(),
)
def test_nothing_is_lost_or_twice(layers, width, most, scope, divisible):
    leaves, _, parts = divided(layers, width, most, scope=scope, divisible=divisible)
    check_whole(leaves, parts)


@settings(deadline=None, max_examples=60)
@given(layers=st.integers(1, 7), width=st.integers(1, 9), most=st.integers(1, 5000))
def test_parts_are_small_and_matrices_whole(layers, width, most):
    _, views, parts = divided(layers, width, most)
    for part in parts:
        if part.matrix is None:
            assert part.numbers <= most
            continue
        kinds = {
            (v.joint_shape, v.batch_shape) for v in part.views.values() if v is not None
        }
        assert len(kinds) == 1
        for name, view in part.views.items():
            assert view.joint_shape == views[name].joint_shape
        joined = {p.leaf for p in part.pieces} & {f"attn/{x}/kernel" for x in "qkv"}
        assert len(joined) in (0, 3)
        # One layer of everything that is joined is the least there is.
        least = 4 * width**2 if joined else 3 * width**2
        if "odd/last" not in {p.leaf for p in part.pieces}:
            assert part.numbers <= max(most, least)


def test_pieces_of_a_stack_are_its_layers():
    leaves, _, parts = divided(5, 4, 2 * 48)
    table = np.arange(math.prod(leaves["mlp/kernel"].shape)).reshape(5, 4, 12)
    pieces = [p for part in parts for p in part.pieces if p.leaf == "mlp/kernel"]
    found = [table.reshape(-1)[p.start : p.stop].reshape(p.shape) for p in pieces]
    assert len(found) == 3
    np.testing.assert_array_equal(np.concatenate(found), table)


def test_what_cannot_be_read_in_parts_stays_whole():
    _, _, parts = divided(5, 4, 10, divisible=False)
    for part in parts:
        assert all(len(p.shape) != 1 or p.leaf == "steps" for p in part.pieces)


def test_leaves_of_different_settings_are_different_parts():
    names = shapes(2, 4)
    how = {name: {"scale": 2.0 if "mlp" in name else 1.0} for name in names}
    leaves, _, parts = divided(2, 4, 10**6, settings=how)
    check_whole(leaves, parts)
    for part in parts:
        assert all(how[piece.leaf] == part.settings for piece in part.pieces)


def test_a_joined_matrix_has_one_setting():
    how = {name: {"rank": 2 if "/k/" in name else 1} for name in shapes(2, 4)}
    with pytest.raises(cm.ViewError, match="are one matrix"):
        divided(2, 4, 10, settings=how)


def test_copies_are_marked():
    leaves = {"head/kernel": LeafInfo((3, 5), F32), "head/bias": LeafInfo((5,), F32)}
    parts = copies(leaves, most=4)
    check_whole(leaves, parts)
    assert all(part.kept for part in parts)
    assert max(part.numbers for part in parts) == 4
