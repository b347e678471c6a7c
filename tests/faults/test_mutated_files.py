"""Damaged and hostile files are refused with a message; nothing else ever happens.

Small real files are changed at random, always in the same way. The number of changes
is 3,000 for each kind of file, or what CENTERMERGE_MUTATIONS says:

    CENTERMERGE_MUTATIONS=100000 pytest tests/faults/test_mutated_files.py
"""

import contextlib
import json
import os
import random
import struct
import tracemalloc

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.errors import CheckpointError

COUNT = int(os.environ.get("CENTERMERGE_MUTATIONS", "1000"))
LEAVES = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.arange(4).astype(ml_dtypes.bfloat16),
    "x\ny\x1b[2J": np.array(7),
    "empty": np.zeros((0, 3), np.float16),
}
SECRET = {"secret": np.ones(3, np.float32)}
MEMORY = 4 << 20  # bytes; a mutated file has some hundred, and at most 600,000
NODES = [
    *(None, True, False, -1, 0, 1, 24, 1.5, 1e308, -0.0),
    *(2**31, 2**53, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400),
    *("", "F32", "F4", "F64", "BF16", "U8", "I8", "BOOL", "C64"),
    *("x\ny", "\0", "\u2028", {"F32": None}, ["F32", [2, 3], [0, 24]]),
    *([], {}, [[]], [0], [0, 0], [24, 0], [-2, -3], {"dtype": "F32"}),
    *([0, 2**62, 4], [0, 2**63], [1] * 65, [2**32] * 3),
]
FILES = [
    *("../secret.safetensors", "/etc/passwd", "..", ".", "", "/", "a\0b", "\ud800"),
    *("sub/x.safetensors", "..\\x", "x\ny", "model.safetensors.index.json", "nowhere"),
    *("folder", "loop", "pipe", "dangling", "a" * 5000, "model-00001-of-00002"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
]


def nodes(tree, path=()):
    """The paths to everything inside a JSON value."""
    yield path
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from nodes(child, (*path, key))
    elif isinstance(tree, list):
        for index, child in enumerate(tree):
            yield from nodes(child, (*path, index))


def at(tree, path):
    return at(tree[path[0]], path[1:]) if path else tree


def replaced(tree, path, value):
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def mutated_bytes(rng, raw):
    raw = bytearray(raw)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif kind == 1:
        raw[rng.randrange(len(raw)) :] = b""
    elif kind == 2:
        at = rng.randrange(len(raw))
        raw[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
    else:
        at = rng.randrange(len(raw))
        del raw[at : at + rng.choice((1, 2, 8))]
    return bytes(raw)


def mutated_text(rng, text, values):
    """A JSON text with something in it exchanged, or that is hardly JSON any more."""
    kind = rng.randrange(8)
    if kind == 0:
        depth = rng.choice((10, 200, 2_000, 100_000))
        return rng.choice(('{"a":', "[")) * depth
    if kind == 1:
        return text.replace(b"24", b"9" * rng.choice((4_000, 5_000)), 1).decode()
    if kind == 2:
        key = rng.choice(('"a":', '"dtype":', '"weight_map":', '"shape":'))
        return text.decode().replace(key, f"{key}{rng.choice(('1', '[]'))},{key}", 1)
    if kind == 3:
        number = rng.choice(("NaN", "-Infinity", "-1", "0x1", "00", "0.0"))
        return text.decode().replace("0", number, 1)
    tree = json.loads(text)
    if kind == 4:  # the same in another form, which some readers take as well
        path, value = rng.choice([(p, at(tree, p)) for p in nodes(tree)])
        other = [*value.values()] if isinstance(value, dict) else {str(value): None}
        return json.dumps(replaced(tree, path, other))
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice([*nodes(tree)])
        tree = replaced(tree, path, rng.choice(values))
    return json.dumps(tree)


def mutated_safetensors(rng, raw):
    """Its header, the length of its header, or any of its bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = raw[8 : 8 + length], raw[8 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        return mutated_bytes(rng, raw)
    if kind == 1:
        lengths = (0, 1, length - 1, length + 1, len(raw), 10**8, 2**63, 2**64 - 1)
        return struct.pack("<Q", rng.choice(lengths)) + raw[8:]
    if kind == 2:
        header = mutated_bytes(rng, header)
    else:
        header = mutated_text(rng, header.rstrip(), NODES).encode()
    return struct.pack("<Q", len(header)) + header + data


def mutated_index(rng, raw):
    if rng.randrange(4) == 0:
        return mutated_bytes(rng, raw)
    return mutated_text(rng, raw, FILES if rng.randrange(3) else NODES).encode()


def is_opened(path, folder):
    """Opens and reads; true if that went well, false if it was refused in one message.

    Memory is only asked for what lies in the folder, and nothing outside is looked at.
    """
    left = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())

    def allocate(size):
        nonlocal left
        left -= size
        assert left >= 0, "more memory than there are data"
        return np.empty(size, np.uint8)

    try:
        opened = open_checkpoint(path)
        opened.read_all(allocate=allocate)
    except CheckpointError as error:
        opened, message = None, str(error)
    else:
        message = ""
    if opened is None:
        first, *more = message.splitlines()
        assert bool(more) == first.endswith(":"), message
        assert str(path.parent) in first
        return False
    assert {file.parent for file in opened.files} == {folder}
    assert "secret" not in opened.leaves
    return True


@contextlib.contextmanager
def watched():
    """Looks at all memory that is asked for, not only at that for arrays."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def survey(path, folder, raw, mutate):
    """Opens many mutations of a file."""
    path.write_bytes(raw)
    assert is_opened(path, folder)
    rng = random.Random(0)
    opened = 0
    for number in range(COUNT):
        changed = mutate(rng, raw)
        path.write_bytes(changed)
        watch = watched if number % 10 == 0 else contextlib.nullcontext  # it is slow
        try:
            with watch():
                opened += is_opened(path, folder)
        except BaseException as error:
            error.add_note(f"mutation {number}: {changed[:2000]!r}")
            raise
    assert 0 < opened < COUNT  # both happen, or this tests nothing


def test_safetensors(tmp_path):
    raw = save(LEAVES, metadata={"format": "pt"})
    survey(tmp_path / "m.safetensors", tmp_path, raw, mutated_safetensors)


def test_index(tmp_path):
    save_file(SECRET, tmp_path / "secret.safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    shards = [{"a": LEAVES["a"]}, {"b": LEAVES["b.c"], "x\ny": LEAVES["empty"]}]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("gone")
    os.mkfifo(folder / "pipe")  # opening it would wait for ever
    index = {"metadata": {"total_size": 24}, "weight_map": weight_map}
    raw = json.dumps(index).encode()
    path = folder / "model.safetensors.index.json"
    survey(path, folder, raw, mutated_index)


def test_msgpack(tmp_path):
    tree = {"params": {**LEAVES, "list": [np.float32(1), 2, "three", None, 4j]}}
    raw = flax.serialization.msgpack_serialize(tree)
    survey(tmp_path / "m.msgpack", tmp_path, raw, mutated_bytes)


def test_npz(tmp_path):
    np.savez(tmp_path / "m.npz", a=LEAVES["a"], b=LEAVES["empty"])
    raw = (tmp_path / "m.npz").read_bytes()
    survey(tmp_path / "m.npz", tmp_path, raw, mutated_bytes)


def test_an_index_cannot_name_a_file_elsewhere(tmp_path):
    """The mutations above would pass were the folder's own shard read instead."""
    save_file(SECRET, tmp_path / "secret.safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        index = {"weight_map": {"secret": name}}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="is not a file in the same folder"):
            open_checkpoint(folder)


def test_a_link_is_followed(tmp_path):
    """The hub's cache is made of links; nothing that is downloaded can contain one."""
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(SECRET, tmp_path / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    opened = open_checkpoint(folder)
    assert opened.files.keys() == {folder / "model.safetensors"}
    np.testing.assert_array_equal(opened.read("secret"), SECRET["secret"])
