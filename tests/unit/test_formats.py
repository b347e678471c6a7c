"""Checkpoints of NumPy, Flax and PyTorch, and models of the hub, as their own libraries
write them.

Damage at random is in `tests/faults/test_mutated_files.py`.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from centermerge_jax import checkpoints
from centermerge_jax.checkpoints import hub_names
from centermerge_jax.errors import CheckpointError

W = np.arange(6, dtype=np.float32).reshape(2, 3)
NUMPY = ["float32", "float16", "float64", "int8", "int64", "uint16", "bool"]
NUMPY += ["complex64"]
LOW = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def _leaves(dtypes):
    leaves = {f"d/{name}": np.arange(4).astype(name) for name in dtypes}
    return leaves | {
        "a.b/größe": W,
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def _same(left, right):
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        a, b = np.asarray(leaf), np.asarray(right[name])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


def _read(opened):
    """All leaves, with the bytes of memory that were asked for."""
    asked = []

    def allocate(size):
        asked.append(size)
        return np.full(size + 3, 77, np.uint8)  # not clean, and perhaps too long

    return opened.read_all(allocate=allocate), sum(asked)


def _raises(path, *parts, **options):
    pattern = ".*".join(map(re.escape, parts))
    with pytest.raises(CheckpointError, match=f"(?s){pattern}") as caught:
        checkpoints.open_checkpoint(path, **options)
    first, *more = str(caught.value).splitlines()
    assert bool(more) == first.endswith(":")


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# --------------------------------------------------------------------------- .npz


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, write):
    leaves = _leaves(NUMPY)
    file = tmp_path / "mnist.npz"
    write(file, **leaves)
    opened = checkpoints.open_checkpoint(file)
    assert (opened.format, opened.name) == ("npz", "mnist")
    assert list(opened.leaves) == sorted(leaves)
    assert str(opened.leaves["a.b/größe"]) == "float32[2, 3]"
    assert opened.files == {file: file.stat().st_size}
    assert opened.structure is None
    read, asked = _read(opened)
    _same(read, leaves)
    assert asked == opened.nbytes == sum(leaf.nbytes for leaf in leaves.values())
    assert list(opened.read_all(["scalar", "empty"])) == ["scalar", "empty"]


def test_npz_in_another_order_of_bytes_or_axes(tmp_path):
    file = tmp_path / "m.npz"
    swapped = W.astype(W.dtype.newbyteorder("S"))
    np.savez(file, swapped=swapped, columns=np.asfortranarray(W), both=swapped.T)
    opened = checkpoints.open_checkpoint(file)
    assert all(info.dtype.isnative for info in opened.leaves.values())
    _same(opened.read_all(), {"swapped": W, "columns": W, "both": W.T})


def test_npz_reads_only_what_is_asked_for(tmp_path):
    file = tmp_path / "m.npz"
    big = np.arange(100_000, dtype=np.float32)
    np.savez(file, good=W, bad=big)
    raw = bytearray(file.read_bytes())
    raw[raw.index(big[-9:].tobytes())] ^= 1
    file.write_bytes(raw)
    opened = checkpoints.open_checkpoint(file)
    np.testing.assert_array_equal(opened.read("good"), W)
    with pytest.raises(CheckpointError, match=r"m.npz: bad: truncated or .*CRC"):
        opened.read("bad")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"m.npz: cannot be read: No such file"):
        opened.read("good")


def test_npz_with_other_things_than_numbers(tmp_path):
    file = tmp_path / "m.npz"
    objects = np.array([Bomb(tmp_path / "ran")], object)
    low = W.astype(ml_dtypes.bfloat16)
    np.savez(file, w=W, objects=objects, low=low, text=np.array(["a"]))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("notes.txt", "x")
    _raises(file, "m.npz: 4 members without numbers", "objects: holds Python objects")
    _raises(file, "low: has no type (V2): NumPy forgets", "such as bfloat16")
    _raises(file, "text: has type <U1", "notes.txt: is not an array")
    assert not (tmp_path / "ran").exists()
    _raises(file, "'params'", "are flat", subtree="params")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 9)}", "does not fit"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}", "does not fit"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': 3}", "shape is not valid"),
        ("{'descr': '<f4'}", "does not contain the correct keys"),
        ("(" * 5000, "EOF in multi-line"),
        ("exit()", "malformed node"),
    ],
)
def test_npz_with_a_false_header(tmp_path, header, message):
    file = tmp_path / "m.npz"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w.npy", start + header.encode() + W.tobytes())
    _raises(file, "m.npz: w: truncated or damaged", message)


def test_npz_with_false_sizes(tmp_path):
    file = tmp_path / "m.npz"
    np.savez_compressed(file, w=np.zeros(10_000_000, np.float32))
    assert file.stat().st_size < 100_000  # a ratio that is possible
    assert checkpoints.open_checkpoint(file).leaves["w"].shape == (10_000_000,)
    np.savez(file, w=W)
    raw = file.read_bytes()
    for length in (0, 20, 200, len(raw) - 1):
        file.write_bytes(raw[:length])
        _raises(file, "m.npz: truncated or damaged")
    # 2 GiB, say all the sizes in it, are in a file of some hundred bytes
    true, false = (152).to_bytes(4, "little"), (2**31).to_bytes(4, "little")
    assert raw.count(true) == 4
    raw = raw.replace(true, false)
    file.write_bytes(raw.replace(b"(2, 3), }      ", b"(536870880,), }"))
    _raises(file, "m.npz: w: truncated or damaged: float32[536870880] does not fit")


# ----------------------------------------------------------------------- .msgpack


def _flax_tree():
    return {
        "params": {
            "dense": {"kernel": jnp.asarray(W), "bias": np.float32(3)},
            "a.b/c": {"größe": W.T},
            "low": {name: np.arange(4).astype(name) for name in LOW},
            "d": {name: np.arange(3).astype(name) for name in NUMPY},
            "blocks": [{"w": W}, {"w": W + 1}],
            "empty": {"array": np.zeros((0, 3), np.float32), "tree": {}, "none": None},
        },
        "step": 7,
        "big": 2**40,
        "negative": [-1, -100, -(2**40)],
        "rate": 0.5,
        "on": True,
        "name": "größe",
        "long": "x" * 70_000,
        "complex": 1 + 2j,
        "many": {str(i): np.int32(i) for i in range(300)},
    }


def _flat(tree, path=()):
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from _flat(child, (*path, key))
    elif isinstance(tree, list):
        yield from _flat({str(i): child for i, child in enumerate(tree)}, path)
    elif tree is not None:
        yield "/".join(path), tree


@pytest.mark.parametrize("write", ["msgpack_serialize", "to_bytes"])
def test_msgpack(tmp_path, write):
    raw = getattr(flax.serialization, write)(_flax_tree())
    restored = flax.serialization.msgpack_restore(raw)
    file = tmp_path / "mnist" / "flax_model.msgpack"
    file.parent.mkdir()
    file.write_bytes(raw)
    opened = checkpoints.open_checkpoint(file)
    assert (opened.format, opened.name) == ("msgpack", "mnist")
    expected = dict(_flat(restored))
    assert list(opened.leaves) == sorted(expected)
    assert str(opened.leaves["params/low/bfloat16"]) == "bfloat16[4]"
    assert str(opened.leaves["name"]) == "str"
    read, asked = _read(opened)
    _same(read, expected)
    arrays = [x for x in expected.values() if isinstance(x, np.ndarray | np.generic)]
    assert asked == sum(x.nbytes for x in arrays)
    numbers = [read[name] for name in ("step", "rate", "on", "name", "negative/2")]
    assert numbers == [7, 0.5, True, "größe", -(2**40)]
    assert list(map(type, numbers)) == [int, float, bool, str, int]
    assert opened.structure["params"]["dense"] == {
        "kernel": "params/dense/kernel",
        "bias": "params/dense/bias",
    }
    assert opened.structure["params"]["empty"]["none"] is None


def test_msgpack_with_an_array_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    leaves = {"f": W, "b": np.arange(50).astype(ml_dtypes.bfloat16).reshape(5, 10)}
    raw = flax.serialization.msgpack_serialize({"x": leaves})
    assert raw.count(b"__msgpack_chunked_array__") == 2
    file = tmp_path / "m.msgpack"
    file.write_bytes(raw)
    opened = checkpoints.open_checkpoint(file, subtree="x")
    assert str(opened.leaves["b"]) == "bfloat16[5, 10]"
    read, asked = _read(opened)
    _same(read, leaves)
    assert asked == opened.nbytes == W.nbytes + 100
    # a piece loses its number, and the shape another one
    for old, new in ((b"\xa15", b"\xa19"), (b"\xa11\x03", b"\xa11\x04")):
        assert old in raw
        file.write_bytes(raw.replace(old, new))
        _raises(file, "m.msgpack: truncated", "pieces that do not fit together")


def test_msgpack_can_become_an_orbax_folder(tmp_path):
    params = _flax_tree()["params"]
    params = {key: params[key] for key in ("dense", "blocks", "low")}
    file = tmp_path / "m.msgpack"
    file.write_bytes(flax.serialization.msgpack_serialize({"params": params}))
    opened = checkpoints.open_checkpoint(file, subtree="params")
    out = tmp_path / "out"
    checkpoints.save(
        opened.read_all(), out, manifest={}, template=opened, format="orbax"
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(out)
    assert dict(_flat(restored)).keys() == dict(_flat({"params": params})).keys()
    _same(dict(_flat(restored["params"])), dict(_flat(params)))


def test_msgpack_arrays_are_not_read_before_they_are_asked_for(tmp_path):
    file = tmp_path / "m.msgpack"
    leaves = {name: np.ones(1_000_000, np.float32) for name in "abc"}
    file.write_bytes(flax.serialization.msgpack_serialize(leaves))
    tracemalloc.start()
    opened = checkpoints.open_checkpoint(file)
    assert tracemalloc.get_traced_memory()[1] < 500_000
    opened.read("b")
    assert tracemalloc.get_traced_memory()[1] < 4_500_000
    tracemalloc.stop()


def test_msgpack_cut_anywhere(tmp_path):
    file = tmp_path / "m.msgpack"
    raw = flax.serialization.msgpack_serialize({"a": {"w": W}, "step": 3, "t": "x"})
    for length in range(len(raw)):
        file.write_bytes(raw[:length])
        _raises(file, "m.msgpack: truncated, damaged, or not written by flax")
    file.write_bytes(raw)
    opened = checkpoints.open_checkpoint(file)
    file.write_bytes(raw[:40])
    with pytest.raises(CheckpointError, match="a/w: the file ended after"):
        opened.read("a/w")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"m.msgpack: No such file"):
        opened.read("a/w")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"x", "it is a leaf, not a tree of leaves"),
        (b"\x81\xa1a\xc4\x02xy", "1 leaf name without numbers: a: has raw bytes"),
        (b"\x81\xa1a\xd4\x05x", "a: has an extension of type 5"),
        (b"\x82\xa1a\x01\xa1a\x02", "the key 'a' twice"),
        (b"\x82\xa3a/b\x01\xa1a\x81\xa1b\x02", "two leaves have the name 'a/b'"),
        (b"\x81\xc0\x01", "a key that is neither text nor an integer"),
        (b"\x81\xa1\xff\x01", "text that is not UTF-8"),
        (b"\xc1", "0xc1 means nothing"),
        (b"\x80\x80", "something follows the tree"),
        (b"\x91" * 300, "nested more than 100 deep"),
        (b"\xdf\xff\xff\xff\xff", "1 bytes should follow"),
        (b"\x81\xa1a\xc7\x0b\x01\x93\x91\x01\xa4int4\xc4\x01x", "a: has type 'int4'"),
        (b"\x81\xa1a\xc7\x0b\x01\x93\x91\x02\xa4int8\xc4\x01x", "1 bytes for int8[2]"),
        (b"\x81\xa1a\xc7\x0b\x01\x93\x91\xff\xa4int8\xc4\x01x", "without shape"),
        (b"\x81\xa1a\xc7\x0c\x01\x93\x91\x01\xa4int8\xc4\x01x", "of another length"),
    ],
)
def test_msgpack_that_is_not_of_flax(tmp_path, raw, message):
    file = tmp_path / "m.msgpack"
    file.write_bytes(raw)
    _raises(file, "m.msgpack: ", message)


def test_msgpack_subtree(tmp_path):
    file = tmp_path / "m.msgpack"
    file.write_bytes(flax.serialization.msgpack_serialize({"params": {"w": W}, "n": 1}))
    opened = checkpoints.open_checkpoint(file, subtree="params")
    assert (list(opened.leaves), opened.subtree) == (["w"], ("params",))
    _raises(file, "no 'prams' under the root; did you mean 'params'?", subtree="prams")
    _raises(file, "params/w is a leaf", subtree="params/w")


# ------------------------------------------------------------------------ PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _state(torch):
    state = {name: torch.arange(4).to(getattr(torch, name)) for name in (*NUMPY, *LOW)}
    state["transposed"] = torch.arange(6.0).reshape(2, 3).T
    state["low.transposed"] = torch.arange(6.0).reshape(2, 3).T.bfloat16()
    state["scalar"] = torch.tensor(2.5)
    state["empty"], state["nothing"] = torch.zeros(0, 3), torch.zeros(0, 3)
    state["weight"] = torch.nn.Parameter(torch.ones(2, 2))
    return state


def _expected():
    leaves = {name: np.arange(4).astype(name) for name in (*NUMPY, *LOW)}
    six = np.arange(6, dtype=np.float32).reshape(2, 3)
    empty = np.zeros((0, 3), np.float32)
    return leaves | {
        "transposed": six.T,
        "low.transposed": six.T.astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "empty": empty,
        "nothing": empty,
        "weight": np.ones((2, 2), np.float32),
    }


@pytest.mark.parametrize("form", ["archive", "before 1.6", "compressed"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_torch(tmp_path, torch, form, suffix):
    file = tmp_path / f"mnist{suffix}"
    archive = form != "before 1.6"
    # the older form has no place for the types that PyTorch got later
    young = set() if archive else {"uint16", *LOW[1:]}
    state = {name: x for name, x in _state(torch).items() if name not in young}
    torch.save(state, file, _use_new_zipfile_serialization=archive)
    if form == "compressed":
        with zipfile.ZipFile(file) as old:
            entries = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in entries.items():
                new.writestr(name, data)
    opened = checkpoints.open_checkpoint(file)
    assert (opened.format, opened.name) == ("torch", "mnist")
    assert opened.files == {file: file.stat().st_size}
    assert opened.tied == {}
    read, asked = _read(opened)
    _same(read, {name: x for name, x in _expected().items() if name not in young})
    assert asked == opened.nbytes
    assert list(opened.leaves) == sorted(read)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_torch_training_checkpoint(tmp_path, torch, key):
    file = tmp_path / "m.pt"
    rest = {"epoch": 3, "optimizer": {"lr": 0.1}, "rng": torch.zeros(3)}
    torch.save({key: {"w": torch.ones(2)}, **rest}, file)
    assert list(checkpoints.open_checkpoint(file).leaves) == ["w"]
    opened = checkpoints.open_checkpoint(file, subtree=key)
    assert (list(opened.leaves), opened.subtree) == (["w"], (key,))


def test_torch_files_that_are_no_state_dict(tmp_path, torch):
    file = tmp_path / "m.pt"
    one = {"w": torch.ones(2)}

    def holds(content, *message, **options):
        torch.save(content, file)
        _raises(file, "m.pt: ", *message, **options)

    holds({"model": one, "module": one, "n": 1}, "which weights", "model, module")
    assert list(checkpoints.open_checkpoint(file, subtree="module").leaves) == ["w"]
    holds({"net": one, "ema": one}, "no state dict", "it holds net, ema")
    _raises(file, "no 'nett' under the root; did you mean 'net'", subtree="nett")
    holds({}, "no state dict", "it holds nothing")
    holds([torch.ones(2)], "not a state dict: it is of type list")
    holds(torch.ones(2), "not a state dict: it is of type Tensor")
    holds(
        {**one, "step": 3, "note": "x", 7: torch.ones(1)},
        "3 values of the state dict that cannot be merged",
        "step: is not a tensor but of type int",
        "note: is not a tensor but of type str",
        "7: its name is not text",
    )
    holds({"s": torch.eye(3).to_sparse()}, "s: is not a plain tensor (torch.sparse")
    holds({"m": torch.ones(2, device="meta")}, "m: is not a plain tensor (without")
    four = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    holds({"f": four}, "f: has type float4_e2m1fn_x2")


def test_torch_never_unpickles(tmp_path, torch):
    file = tmp_path / "m.pt"
    ran = tmp_path / "ran"
    for archive in (True, False):
        torch.save(
            {"w": torch.ones(2), "x": Bomb(ran)},
            file,
            _use_new_zipfile_serialization=archive,
        )
        _raises(file, "m.pt: refused: it holds pickled objects (posix.mkdir)")
    file.write_bytes(pickle.dumps(Bomb(ran)))
    _raises(file, "m.pt: refused")
    assert not ran.exists()
    torch.save(torch.nn.Linear(2, 2), file)
    _raises(file, "m.pt: refused: it holds pickled objects (torch.nn.modules.linear")
    torch.load(file, weights_only=False)  # and it is that, not damage
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    _raises(file, "m.pt: refused: it holds pickled objects (a TorchScript archive)")


def test_damaged_torch_files(tmp_path, torch):
    file = tmp_path / "m.pt"
    torch.save({"w": torch.arange(1000.0)}, file)
    raw = file.read_bytes()
    for length in (0, 1, 100, 1000, len(raw) - 1):
        file.write_bytes(raw[:length])
        _raises(file, "m.pt: refused", "truncated or damaged")
    file.write_bytes(raw)
    opened = checkpoints.open_checkpoint(file)
    file.write_bytes(raw[:100])
    with pytest.raises(CheckpointError, match="changed or gone since it was opened"):
        opened.read("w")


def test_tied_tensors_are_kept_once(tmp_path, torch):
    file = tmp_path / "m.pt"
    table, empty = torch.arange(9.0).reshape(3, 3), torch.zeros(0)
    torch.save(
        {
            "lm_head.weight": table,
            "embed.weight": table,
            "decoder.embed.weight": table.view(3, 3),
            "part": table[:2],
            "transposed": table.T,
            "flat": table.view(-1),
            "equal": table.clone(),
            "empty.a": empty,
            "empty.b": empty,
        },
        file,
    )
    opened = checkpoints.open_checkpoint(file)
    first = "decoder.embed.weight"
    assert opened.tied == {"embed.weight": first, "lm_head.weight": first}
    assert opened.leaves.keys() == {
        *(first, "part", "transposed", "flat", "equal", "empty.a", "empty.b")
    }
    read = opened.read_all()
    np.testing.assert_array_equal(read["part"], table.numpy()[:2])
    np.testing.assert_array_equal(read[first], table.numpy())
    np.testing.assert_array_equal(read["transposed"], table.numpy().T)


def test_torch_hub_folder(tmp_path, torch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for other in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        torch.save({"x": 1}, folder / other)
    whole = folder / "pytorch_model.bin"
    torch.save({"w": torch.ones(2)}, whole)
    opened = checkpoints.open_checkpoint(folder)
    assert (opened.format, opened.name) == ("torch", "mnist")
    assert opened.files.keys() == {whole}
    assert opened.sidecars == (folder / "config.json",)
    assert checkpoints.open_checkpoint(whole).name == "mnist"
    # merged, it is a hub folder like the others
    out = tmp_path / "out"
    checkpoints.save(opened.read_all(), out, manifest={}, template=opened)
    assert checkpoints.open_checkpoint(out).format == "hub"
    assert (out / "config.json").is_file()

    table = torch.ones(3)
    shards = {
        "pytorch_model-00001-of-00002.bin": {"a": table, "b": table},
        "pytorch_model-00002-of-00002.bin": {"c": torch.zeros(2).bfloat16()},
    }
    weight_map = {}
    for file, shard in shards.items():
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    _raises(folder, "which weights are meant?", "pytorch_model.bin.index.json")
    whole.unlink()
    for path in (folder, index):
        opened = checkpoints.open_checkpoint(path)
        assert (opened.format, opened.name) == ("torch", "mnist")
        assert opened.files.keys() == {index, *(folder / file for file in shards)}
        assert opened.sidecars == (folder / "config.json",)
        assert (list(opened.leaves), opened.tied) == (["a", "c"], {"b": "a"})
        assert str(opened.leaves["c"]) == "bfloat16[2]"
    torch.save({}, folder / "pytorch_model-00003-of-00002.bin")
    _raises(folder, "pytorch_model-00003-of-00002.bin: lies there, but the index")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    _raises(folder, "1 missing shard: pytorch_model-00002-of-00002.bin")


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    for path in (file, tmp_path):
        _raises(path, f"{file}: refused", "pickled", "pip install torch", "safetensors")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": file.name}}))
    _raises(index, f"{file}: refused", "pip install torch")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------ folders


def test_the_best_weights_of_a_folder_are_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    _raises(tmp_path, "pytorch_model.bin: refused")
    (tmp_path / "flax_model.msgpack").write_bytes(
        flax.serialization.msgpack_serialize({"flax": W})
    )
    assert list(checkpoints.open_checkpoint(tmp_path).leaves) == ["flax"]
    save_file({"safetensors": W}, tmp_path / "model.safetensors")
    opened = checkpoints.open_checkpoint(tmp_path)
    assert (opened.format, list(opened.leaves)) == ("hub", ["safetensors"])


def test_the_only_weights_of_a_folder_are_taken(tmp_path):
    np.savez(tmp_path / "weights.npz", w=W)
    (tmp_path / "config.json").write_text("{}")
    opened = checkpoints.open_checkpoint(tmp_path)
    assert (opened.format, opened.name) == ("npz", tmp_path.name)
    assert opened.sidecars == (tmp_path / "config.json",)
    np.savez(tmp_path / "more.npz", w=W)
    _raises(tmp_path, "which weights are meant? It holds more.npz, weights.npz")


def test_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"x")
    _raises(tmp_path, "no checkpoint in this folder", "training_args.bin")
    (tmp_path / "flax_model.msgpack.index.json").write_text("{}")
    _raises(tmp_path, "shards of .msgpack are not supported", "safetensors")


# ------------------------------------------------------------------ names of the hub


@pytest.mark.parametrize(
    ("given", "repository", "revision"),
    [
        ("org/model", "org/model", None),
        ("org/model-1.5_b", "org/model-1.5_b", None),
        ("hf:org/model", "org/model", None),
        ("hf:org/model@refs/pr/1", "org/model", "refs/pr/1"),
        ("hf:runs/mnist", "runs/mnist", None),
    ],
)
def test_names_of_the_hub(tmp_path, monkeypatch, given, repository, revision):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_names.parse(given) == hub_names.HubName(repository, revision)


@pytest.mark.parametrize(
    "given",
    ["model", "a/b/c", "/org/model", "org/m/", "runs/mnits", "../x", "./x", "o r/m"],
)
def test_paths_are_no_names_of_the_hub(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mnist").mkdir()
    assert hub_names.parse(given) is None
    _raises(given, "no such file or folder", "mnist'?" if "mnits" in given else "")


def test_hub_without_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    _raises(
        "hf:org/model@v1",
        "org/model at v1: no such file or folder",
        "pip install huggingface_hub",
    )
    _raises("org/model.npz", "no such file or folder")
    save_file({"w": W}, tmp_path / "model.safetensors")
    (tmp_path / "org").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "org" / "model.safetensors")
    assert list(checkpoints.open_checkpoint("org").leaves) == ["w"]


def _cached(home, repository, revision, files):
    """A model in the cache as the hub's library leaves it: links to blobs."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot, commit = place / "snapshots", "0123456789abcdef" * 2 + "01234567"
    for folder in (place / "refs", place / "blobs", snapshot / commit):
        folder.mkdir(parents=True)
    (place / "refs" / revision).write_text(commit)
    for number, (name, write) in enumerate(files.items()):
        blob = place / "blobs" / f"{number:040}"
        write(blob)
        (snapshot / commit / name).symlink_to(f"../../blobs/{blob.name}")


def test_a_model_in_the_cache_of_the_hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    home = tmp_path / "home"
    config = {"config.json": lambda file: file.write_text("{}")}
    _cached(
        home,
        "org/vit",
        "main",
        config | {"model.safetensors": lambda file: save_file({"w": W}, file)},
    )
    raw = flax.serialization.msgpack_serialize({"w": W})
    _cached(
        home,
        "org/flax",
        "v1",
        config | {"flax_model.msgpack": lambda file: file.write_bytes(raw)},
    )
    code = """
        from centermerge_jax.checkpoints import open_checkpoint
        from centermerge_jax.errors import CheckpointError
        for name in ("org/vit", "hf:org/flax@v1"):
            opened = open_checkpoint(name)
            print(opened.path, opened.name, opened.format, opened.sidecars[0].name)
            assert opened.read("w").sum() == 15
        for name in ("org/none", "hf:org/vit@v2"):
            try:
                open_checkpoint(name)
            except CheckpointError as error:
                print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "org/vit vit hub config.json",
        "hf:org/flax@v1 flax msgpack config.json",
        *(
            f"{where}: no such file or folder, and the Hugging Face Hub cannot be "
            "reached to see whether it is there; fetch it once with a connection, or "
            "give the path of a folder"
            for where in ("org/none", "org/vit at v2")
        ),
    ]
