"""Statistics of parts: what a method gets where leaves are read in pieces."""

import numpy as np
import pytest

from centermerge_jax.checkpoints import LeafInfo
from centermerge_jax.division import divide
from centermerge_jax.merge_statistics import (
    number_bytes,
    part_arguments,
    part_bytes,
)
from centermerge_jax.methods import Method
from centermerge_jax.statistics import Origin, read_statistics, write_statistics
from centermerge_jax.views import MatrixView

F32 = np.dtype(np.float32)


def fishered(experts, *, fishers, norms=None):
    raise NotImplementedError


def grammed(experts, *, grams):
    raise NotImplementedError


FISHER = Method(fishered, scope="element", data="fisher")
GRAM = Method(grammed, data="gram")


def written(folder, kind, values, seed=0):
    origin = Origin(
        kind=kind, task="t", examples=1, source="", expert="", expert_sha256={}
    )
    path = folder / f"{kind}{seed}.safetensors"
    write_statistics(path, values, origin=origin)
    return read_statistics(path)


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_fisher_information_of_pieces(tmp_path):
    shapes = {"a": (7, 5), "b": (3,)}
    values = {name: arrays(shapes, seed) for seed, name in enumerate("xy")}
    found = {
        name: written(tmp_path, "fisher", leaves, seed)
        for seed, (name, leaves) in enumerate(values.items())
    }
    leaves = {name: LeafInfo(shape, F32) for name, shape in shapes.items()}
    leaves["steps"] = LeafInfo((), np.dtype(np.int32))
    settings = {name: {} for name in leaves}
    parts = divide(leaves, views={}, settings=settings, scope="element", most=9)
    assert len(parts) > 4
    pieces = {"x": [], "y": []}
    for part in parts:
        trees = {name: {"steps": np.int32(3)} for name in values}
        given = part_arguments(found, FISHER, part, list(leaves), trees)
        for name, all_leaves in values.items():
            total = sum(
                np.square(x, dtype=np.float64).sum() for x in all_leaves.values()
            )
            assert given["norms"][name] == pytest.approx(np.sqrt(total))
            own = given["fishers"][name]
            assert own.pop("steps") == 3  # trees like the experts
            assert own.keys() == {p.leaf for p in part.pieces} - {"steps"}
            pieces[name] += [own[p.leaf] for p in part.pieces if p.leaf == "a"]
    for name in values:
        flat = np.concatenate([x.reshape(-1) for x in pieces[name]])
        np.testing.assert_array_equal(flat, values[name]["a"].reshape(-1))


def test_gram_matrices_of_some_layers_of_a_stack(tmp_path):
    shape, gram = (6, 4, 10), (6, 4, 4)
    values = arrays({"layers/kernel": gram})
    found = {"x": written(tmp_path, "gram", values)}
    view = MatrixView(shape, rows=(1,), cols=(2,), batch=(0,))
    leaves = {
        "layers/kernel": LeafInfo(shape, F32),
        "embedding": LeafInfo((50, 4), F32),
    }
    parts = divide(
        leaves,
        views={"layers/kernel": view, "embedding": None},
        settings={name: {} for name in leaves},
        scope="matrix",
        most=90,
    )
    given = [part_arguments(found, GRAM, part, list(leaves), {}) for part in parts]
    layers = [g["grams"]["x"] for g in given if g["grams"]["x"]]
    assert len(layers) == 3
    stacked = np.concatenate([own["layers/kernel"] for own in layers])
    np.testing.assert_array_equal(stacked, values["layers/kernel"])


def test_matrices_side_by_side_have_one_gram_matrix(tmp_path):
    values = arrays({"qkv/weight": (4, 4)})
    found = {"x": written(tmp_path, "gram", values)}
    leaves = {"qkv/weight": LeafInfo((12, 4), F32)}
    view = MatrixView((12, 4), rows=(0,), cols=(1,), parts=3, side="rows")
    (part,) = divide(
        leaves,
        views={"qkv/weight": view},
        settings={"qkv/weight": {}},
        scope="matrix",
        most=1000,
    )
    gram = part_arguments(found, GRAM, part, list(leaves), {})["grams"]["x"]
    assert gram["qkv/weight"].shape == (3, 4, 4)
    np.testing.assert_array_equal(gram["qkv/weight"][2], values["qkv/weight"])


def test_memory_counts_statistics(tmp_path):
    found = {
        name: written(tmp_path, "gram", arrays({"w": (8, 8)}), seed)
        for seed, name in enumerate("xy")
    }
    leaves = {"w": LeafInfo((8, 2), F32), "other": LeafInfo((100,), F32)}
    settings = {name: {} for name in leaves}
    (part,) = divide(leaves, views={}, settings=settings, scope="leaf", most=1000)
    stored = 2 * 64 * 4
    assert part_bytes(found, part.pieces) >= 2 * stored
    assert number_bytes(found, leaves) == part_bytes(found, part.pieces) / 16
    assert number_bytes({}, leaves) == part_bytes({}, part.pieces) == 0
