"""What is written comes back, in every format, through our reader and the original's.

Faults are in `tests/faults/test_checkpoints.py`.
"""

import hashlib
import json
import os
import subprocess
import sys
import time

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from centermerge_jax import checkpoints
from centermerge_jax.checkpoints import output

MANIFEST = {"method": "test"}
DTYPES = [
    np.float32,
    np.float16,
    np.float64,
    np.int32,
    np.int64,
    np.uint8,
    np.bool_,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]
NASTY = [
    "a/b",
    "a.b",
    "größe",
    "value",
    "a b",
    "",
    "0",
    "model.layers.0.weight",
    "../x",
]


def _values(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _flat():
    leaves = {name: _values(2, 3, seed=i) for i, name in enumerate(NASTY)}
    return leaves | {f"d/{np.dtype(d).name}": _values(4, dtype=d) for d in DTYPES}


def _nested():
    return {
        "params": {
            "blocks": [
                {"w": _values(2, 3, seed=i), "b": _values(3, dtype=ml_dtypes.bfloat16)}
                for i in range(3)
            ],
            "a/b": _values(2),
            "größe": {"value": _values(2, dtype=np.float16)},
            "pair": (_values(1), _values(2)),
            "scalar": np.array(3, np.int8),
            "flag": np.array([True, False]),
            "low": _values(4, dtype=ml_dtypes.float8_e4m3fn),
            "empty": {},
            "none": None,
        },
        "step": 7,
        "rate": 0.5,
        "on": True,
    }


NESTED_NAMES = {
    "a/b",
    *(f"blocks/{i}/{leaf}" for i in range(3) for leaf in "wb"),
    "flag",
    "größe/value",
    "low",
    "pair/0",
    "pair/1",
    "scalar",
}


def _same(left, right):
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        a, b = np.asarray(leaf), np.asarray(right[name])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


def _standard(tree, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _pytree(tree, path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _plain_zarr(tree, path):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, tree)


def _manager(tree, path):
    with ocp.CheckpointManager(path.parent / "run") as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    (path.parent / "run" / "3").rename(path)


WRITERS = [_standard, _pytree, _plain_zarr, _manager, lambda t, p: ocp_v1.save(p, t)]
WRITER_NAMES = ["standard", "pytree", "plain_zarr", "manager", "v1"]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60], ids=["whole", "sharded"])
def test_hub_folder_round_trip(tmp_path, max_shard_bytes):
    leaves = _flat() | {"zero": np.zeros((0, 3), np.float32), "one": np.float32(3)}
    out = tmp_path / "merged"
    checkpoints.save(leaves, out, manifest=MANIFEST, max_shard_bytes=max_shard_bytes)

    opened = checkpoints.open_checkpoint(out)
    assert (opened.format, opened.name) == ("hub", "merged")
    assert list(opened.leaves) == sorted(leaves)
    assert str(opened.leaves["zero"]) == "float32[0, 3]"
    _same(opened.read_all(), leaves)
    _same({"a/b": opened.read("a/b")}, {"a/b": leaves["a/b"]})
    assert json.loads((out / "centermerge.json").read_text()) == MANIFEST
    shards = sorted(out.glob("model-*.safetensors"))
    if max_shard_bytes == 60:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {shard.name for shard in shards}
        assert len(shards) > 3
        assert index["metadata"]["total_size"] == opened.nbytes
        through = checkpoints.open_checkpoint(out / "model.safetensors.index.json")
        assert through.name == "merged"
        _same(through.read_all(), leaves)
    else:
        assert not shards


def test_the_safetensors_library_reads_our_file(tmp_path):
    leaves = {k: v for k, v in _flat().items() if "float8" not in k}
    leaves |= {"transposed": _values(2, 3).T, "jax": jnp.arange(3.0), "one": 2.5}
    out = tmp_path / "m.safetensors"
    checkpoints.save(leaves, out, manifest=MANIFEST)
    _same(load_file(out), {k: np.asarray(v) for k, v in leaves.items()})


def test_a_file_of_the_safetensors_library_is_read(tmp_path):
    leaves = _flat() | {"zero": np.zeros((0, 3), np.float32)}
    save_file(leaves, tmp_path / "m.safetensors")
    opened = checkpoints.open_checkpoint(tmp_path / "m.safetensors")
    assert opened.format == "safetensors"
    assert opened.files == {tmp_path / "m.safetensors": opened.path.stat().st_size}
    _same(opened.read_all(), leaves)


def test_equal_leaves_give_equal_bytes_and_keep_the_framework_mark(tmp_path):
    text = {"format": "pt", "note": "x", "zeta": "1", "alpha": "2"}
    save_file(_flat(), tmp_path / "expert.safetensors", metadata=text)
    template = checkpoints.open_checkpoint(tmp_path / "expert.safetensors")
    backwards = dict(reversed(_flat().items()))
    for name, leaves in [("x", _flat()), ("y", backwards)]:
        file = tmp_path / f"{name}.safetensors"
        checkpoints.save(leaves, file, manifest=MANIFEST, template=template)
    x, y = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "xy")
    assert x == y
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("write", WRITERS, ids=WRITER_NAMES)
def test_every_orbax_folder_is_read(tmp_path, write):
    tree = jax.tree.map(lambda x: x, _nested())
    write(tree, tmp_path / "mnist")
    opened = checkpoints.open_checkpoint(tmp_path / "mnist", subtree="params")
    assert (opened.format, opened.name) == ("orbax", "mnist")
    assert set(opened.leaves) == NESTED_NAMES
    assert str(opened.leaves["blocks/1/b"]) == "bfloat16[3]"
    leaves = opened.read_all()
    assert all(type(leaf) is np.ndarray for leaf in leaves.values())
    params = tree["params"]
    _same(
        {name: leaves[name] for name in ("blocks/2/w", "a/b", "low", "pair/1")},
        {
            "blocks/2/w": params["blocks"][2]["w"],
            "a/b": params["a/b"],
            "low": params["low"],
            "pair/1": params["pair"][1],
        },
    )
    one = opened.read("blocks/1/w")
    assert one.tobytes() == params["blocks"][1]["w"].tobytes()

    whole = checkpoints.open_checkpoint(tmp_path / "mnist")
    assert set(whole.leaves) == {f"params/{n}" for n in NESTED_NAMES} | {
        "step",
        "rate",
        "on",
    }
    numbers = whole.read_all(["on", "rate", "step"])
    assert numbers == {"on": True, "rate": 0.5, "step": 7}
    assert [type(n) for n in numbers.values()] == [bool, float, int]


@pytest.mark.parametrize(
    "subtree", [None, "params", "params/blocks", "params/blocks/1"]
)
def test_orbax_round_trip(tmp_path, subtree):
    _standard(_nested(), tmp_path / "in")
    opened = checkpoints.open_checkpoint(tmp_path / "in", subtree=subtree)
    leaves = opened.read_all()
    for out in (tmp_path / "x", tmp_path / "y"):
        checkpoints.save(leaves, out, manifest=MANIFEST, template=opened)
        again = checkpoints.open_checkpoint(out, subtree=subtree)
        assert again.leaves == opened.leaves
        assert again.structure == opened.structure
        _same(again.read_all(), leaves)
        assert not [f for f in again.files if f.name == "centermerge.json"]


def test_orbax_itself_reads_our_folder(tmp_path):
    tree = {"params": _nested()["params"], "step": 7}
    _standard(tree, tmp_path / "in")
    opened = checkpoints.open_checkpoint(tmp_path / "in")
    out = tmp_path / "out"
    checkpoints.save(opened.read_all(), out, manifest=MANIFEST, template=opened)
    assert (out / "centermerge.json").is_file()
    with ocp.StandardCheckpointer() as checkpointer:
        standard = checkpointer.restore(out)
    with ocp.PyTreeCheckpointer() as checkpointer:
        pytree = checkpointer.restore(out)
    for restored in (standard, pytree, ocp_v1.load(out)):
        # Orbax itself turns tuples into lists
        expected = {
            **tree,
            "params": {**tree["params"], "pair": [*tree["params"]["pair"]]},
        }
        assert jax.tree.structure(restored) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_orbax_strings_survive(tmp_path):
    _pytree({"w": _values(2), "name": "größe"}, tmp_path / "in")
    opened = checkpoints.open_checkpoint(tmp_path / "in")
    leaves = opened.read_all()
    assert leaves["name"] == "größe"
    assert str(opened.leaves["name"]) == "str"
    assert checkpoints.non_finite("in", leaves) == []
    checkpoints.save(leaves, tmp_path / "out", manifest=MANIFEST, template=opened)
    assert checkpoints.open_checkpoint(tmp_path / "out").read("name") == "größe"


def test_sharded_arrays_and_nnx_state_are_read(tmp_path):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    tree = {"w": jax.device_put(jnp.arange(8.0), spec), "model": state}
    _standard(tree, tmp_path / "in")
    opened = checkpoints.open_checkpoint(tmp_path / "in")
    assert set(opened.leaves) == {"w", "model/bias/value", "model/kernel/value"}
    np.testing.assert_array_equal(opened.read("w"), np.arange(8.0))


def test_many_leaves_are_read_in_batches(tmp_path, monkeypatch):
    from centermerge_jax.checkpoints import orbax_folders

    tree = {f"l{i}": {"w": _values(2, seed=i)} for i in range(7)}
    _standard(tree, tmp_path / "in")
    opened = checkpoints.open_checkpoint(tmp_path / "in")
    monkeypatch.setattr(orbax_folders, "_BATCH_LEAVES", 3)
    seen = []
    leaves = opened.read_all(progress=lambda name, nbytes: seen.append((name, nbytes)))
    assert seen == [(name, 8) for name in opened.leaves]
    _same(leaves, {f"l{i}/w": tree[f"l{i}"]["w"] for i in range(7)})
    assert list(opened.read_all(["l5/w", "l2/w"])) == ["l5/w", "l2/w"]


def test_formats_convert(tmp_path):
    flat = {"a/b": _values(2), "model.x.weight": _values(2, 2)}
    save_file(flat, tmp_path / "in.safetensors")
    template = checkpoints.open_checkpoint(tmp_path / "in.safetensors")
    as_orbax = tmp_path / "as_orbax"
    checkpoints.save(
        flat, as_orbax, manifest=MANIFEST, template=template, format="orbax"
    )
    opened = checkpoints.open_checkpoint(as_orbax)
    assert opened.structure == {name: name for name in flat}
    _same(opened.read_all(), flat)

    _standard({"params": {"x": [{"w": _values(2)}]}, "n": 3}, tmp_path / "nested")
    opened = checkpoints.open_checkpoint(tmp_path / "nested")
    file = tmp_path / "out.safetensors"
    checkpoints.save(opened.read_all(), file, manifest=MANIFEST, template=opened)
    assert load_file(file).keys() == {"params/x/0/w", "n"}
    hub = tmp_path / "hub"
    checkpoints.save(
        opened.read_all(), hub, manifest=MANIFEST, template=opened, format="hub"
    )
    assert checkpoints.open_checkpoint(hub).read("n").item() == 3


def test_sidecars_are_carried_and_nothing_else(tmp_path):
    expert = tmp_path / "expert"
    expert.mkdir()
    save_file({"w": _values(2)}, expert / "model.safetensors")
    carried = ["config.json", "tokenizer.json", "merges.txt", "spiece.model"]
    others = ["README.md", "optimizer.bin", "trainer_state.json", "centermerge.json"]
    for name in [*carried, *others, ".hidden.json", "tf.index.json"]:
        (expert / name).write_bytes(name.encode())
    (expert / "runs").mkdir()
    opened = checkpoints.open_checkpoint(expert)
    assert [file.name for file in opened.sidecars] == sorted(carried)
    out = tmp_path / "out"
    checkpoints.save(opened.read_all(), out, manifest=MANIFEST, template=opened)
    written = {file.name for file in out.iterdir()}
    assert written == {*carried, "model.safetensors", "centermerge.json"}
    assert (out / "config.json").read_bytes() == b"config.json"
    assert json.loads((out / "centermerge.json").read_text()) == MANIFEST


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mnist.safetensors", "mnist"),
        ("mnist/model.safetensors", "mnist"),
        ("cars/weights.safetensors", "weights"),
        ("v1.5", "v1.5"),
    ],
)
def test_labels(tmp_path, path, name):
    file = tmp_path / path
    if file.suffix != ".safetensors":
        file = file / "model.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file({"w": _values(2)}, file)
    assert checkpoints.open_checkpoint(tmp_path / path).name == name


def test_label_of_the_current_folder_and_of_steps(tmp_path, monkeypatch):
    _standard({"w": _values(2)}, tmp_path / "mnist" / "12" / "default")
    monkeypatch.chdir(tmp_path / "mnist" / "12" / "default")
    opened = checkpoints.open_checkpoint(".")
    assert opened.name == "mnist"
    assert opened.read("w").shape == (2,)


def test_output_permissions_follow_the_umask(tmp_path):
    checkpoints.save({"w": _values(2)}, tmp_path / "hub", manifest=MANIFEST)
    checkpoints.save({"w": _values(2)}, tmp_path / "m.safetensors", manifest=MANIFEST)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.txt").touch()

    def mode(name):
        return (tmp_path / name).stat().st_mode & 0o777

    assert mode("hub") == mode("plain")
    assert mode("hub/model.safetensors") == mode("plain.txt")
    assert mode("m.safetensors") == mode("plain.txt")


def test_nothing_but_the_output_is_left(tmp_path):
    checkpoints.save({"w": _values(2)}, tmp_path / "m.safetensors", manifest=MANIFEST)
    assert {p.name for p in tmp_path.iterdir()} == {
        "m.safetensors",
        "m.safetensors.manifest.json",
    }


def test_manifest(tmp_path):
    started = time.perf_counter()
    save_file({"w": _values(2)}, tmp_path / "in.safetensors")
    _standard({"params": {"w": _values(2)}}, tmp_path / "in")
    inputs = {
        "a": checkpoints.open_checkpoint(tmp_path / "in.safetensors"),
        "b": checkpoints.open_checkpoint(tmp_path / "in", subtree="params"),
    }
    manifest = checkpoints.describe(
        method="cart",
        hyperparameters={"rank": 0.08, "scale": [1.0, 2.0]},
        inputs=inputs,
        started=started,
        hash_files=True,
        views_digest="0123",
        command=["centermerge", "merge"],
    )
    file = tmp_path / "in.safetensors"
    assert manifest["inputs"]["a"]["files"] == [
        {
            "path": str(file),
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    ]
    assert manifest["inputs"]["b"]["subtree"] == "params"
    assert len(manifest["inputs"]["b"]["files"]) > 3
    assert manifest["views_sha256"] == "0123"
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["versions"]["python"] == sys.version.split()[0]
    assert 0 < manifest["wall_seconds"] < time.perf_counter() - started + 1
    assert manifest["peak_memory_bytes"] > 50 * 2**20
    out = tmp_path / "out.safetensors"
    checkpoints.save({"w": _values(2)}, out, manifest=manifest)
    beside = tmp_path / "out.safetensors.manifest.json"
    assert checkpoints.manifest_path(out) == beside
    assert json.loads(beside.read_text()) == manifest


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_number_that_is_not_finite_is_seen(dtype, order):
    largest = ml_dtypes.finfo(dtype).max
    # All finite, although their sum is not.
    x = np.full((700, 600), largest, dtype, order=order)
    x[::2] *= -1
    assert checkpoints.non_finite("x", {"w": x}) == []
    x[...] = largest
    assert checkpoints.non_finite("x", {"w": x}) == []
    for where in ((0, 0), (350, 123), (699, 599)):
        for value, text in ((np.nan, "1 NaN, 0 inf"), (-np.inf, "0 NaN, 1 inf")):
            bad = x.copy(order="K")
            bad[where] = value
            (problem,) = checkpoints.non_finite("x", {"w": bad})
            assert text in problem


def test_non_finite_counts():
    bad = np.array([np.nan, np.inf, -np.inf, 1, np.nan])
    leaves = {
        "f32": bad.astype(np.float32),
        "bf16": bad.astype(ml_dtypes.bfloat16),
        "e4m3": np.array([np.nan, 1]).astype(ml_dtypes.float8_e4m3fn),
        "good": _values(3),
        "int": np.array([2**31 - 1], np.int32),
        "bool": np.array([True]),
        "number": float("inf"),
        "string": "nan",
    }
    assert checkpoints.non_finite("dtd", leaves) == [
        "dtd: non-finite values in f32 (2 NaN, 2 inf)",
        "dtd: non-finite values in bf16 (2 NaN, 2 inf)",
        "dtd: non-finite values in e4m3 (1 NaN, 0 inf)",
        "dtd: non-finite values in number (0 NaN, 1 inf)",
    ]


def test_importing_imports_neither_jax_nor_orbax():
    code = (
        "import sys, centermerge_jax.checkpoints as c; {extra}"
        "sys.exit(bool({{'jax', 'orbax', 'flax', 'tensorstore'}} & set(sys.modules)))"
    )
    run = [sys.executable, "-c"]
    assert subprocess.run([*run, code.format(extra="")], check=False).returncode == 0
    # and the proof can fail
    seen = subprocess.run([*run, code.format(extra="import jax;")], check=False)
    assert seen.returncode == 1


def test_reading_safetensors_needs_no_orbax_and_leaves_no_open_file(tmp_path):
    save_file({"w": _values(2)}, tmp_path / "m.safetensors")
    before = (
        set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    )
    opened = checkpoints.open_checkpoint(tmp_path / "m.safetensors")
    opened.read_all()
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) <= len(before)


def test_limit_is_that_of_hub_folders():
    assert output.MAX_SHARD_BYTES == 5_000_000_000
