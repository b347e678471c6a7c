"""Bad checkpoints and bad outputs: each message names the place, nothing is left over.

What is well is in `tests/unit/test_checkpoints.py`.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from centermerge_jax import checkpoints
from centermerge_jax.checkpoints import (
    orbax_folders,
    safetensors_writing,
)
from centermerge_jax.errors import CheckpointError

MANIFEST = {"method": "test"}
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def _raises(path, *parts, **options):
    """Opening says every one of `parts`, in this order."""
    pattern = ".*".join(map(re.escape, parts))
    with pytest.raises(CheckpointError, match=f"(?s){pattern}"):
        checkpoints.open_checkpoint(path, **options)


def _write_raw(file, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def _sharded(tmp_path, limit=30):
    folder = tmp_path / "hub"
    leaves = dict.fromkeys("abc", W)
    checkpoints.save(leaves, folder, manifest=MANIFEST, max_shard_bytes=limit)
    return folder, folder / "model.safetensors.index.json"


def _edit_index(index, change):
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def _orbax(tmp_path, tree=None, name="orbax"):
    path = tmp_path / name
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree or {"params": {"dense": {"kernel": W}}, "step": 3})
    return path


# ---------------------------------------------------------------- what is at a path


def test_missing_path_suggests_a_neighbour(tmp_path):
    save_file({"w": W}, tmp_path / "mnist.safetensors")
    _raises(
        tmp_path / "mnits.safetensors", "no such file", "did you mean 'mnist.safetens"
    )
    _raises(tmp_path / "no" / "where", "no such file")


def test_broken_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    _raises(tmp_path / "link", "link: a link to", "gone, which is missing")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    file = tmp_path / f"pytorch_model{suffix}"
    file.write_bytes(pickle.dumps(Bomb()))
    _raises(file, file.name, "refused", "pickled", "save it as safetensors")
    _raises(tmp_path, file.name, "refused")
    disguised = tmp_path / "disguised.safetensors"
    disguised.write_bytes(file.read_bytes())
    _raises(disguised, "disguised.safetensors: not a safetensors file")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.gguf", "m.h5"])
def test_other_formats(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    _raises(tmp_path / name, name, "not supported", "convert it to safetensors")
    _raises(tmp_path, name, "not supported")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    _raises(tmp_path / "notes.md", "notes.md: not a checkpoint")
    _raises(tmp_path, "no checkpoint in this folder", "notes.md")
    (tmp_path / "empty").mkdir()
    _raises(tmp_path / "empty", "empty: the folder is empty")


def test_unreadable_folder(tmp_path, monkeypatch):
    # permissions do not stop the root user that containers run as, so the system's
    # answer is given by hand
    (tmp_path / "locked").mkdir()

    def refuse(self, pattern):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(tmp_path), "glob", refuse)
    _raises(tmp_path / "locked", "locked: cannot be read: Permission denied")


# -------------------------------------------------------------------- safetensors


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "not a safetensors file, or truncated inside its header (0 bytes)"),
        (5, "not a safetensors file, or truncated inside its header (5 bytes)"),
        (40, "not a safetensors file, or truncated inside its header (40 bytes)"),
        (-1, "the header promises 24 bytes of data, the file holds 23"),
    ],
)
def test_truncated_file(tmp_path, keep, message):
    file = tmp_path / "m.safetensors"
    save_file({"w": W}, file)
    file.write_bytes(file.read_bytes()[:keep])
    _raises(file, str(file), message)


def test_file_with_a_tail(tmp_path):
    file = tmp_path / "m.safetensors"
    save_file({"w": W}, file)
    file.write_bytes(file.read_bytes() + b"x")
    _raises(file, "promises 24 bytes of data, the file holds 25")


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"{not json", 0, "corrupt header: Expecting"),
        (b"\xff\xfe\xff", 0, "corrupt header:"),
        (b"[1]", 0, "corrupt header: not a JSON object"),
        ({"a": {"dtype": "F32"}}, 8, "corrupt header:"),
        ({"a": _entry(), "b": _entry()}, 8, "invalid offset for tensor"),
        ({"a": _entry(shape=(3,))}, 8, "corrupt header:"),
        ({"a": _entry(dtype="F99")}, 8, "corrupt header:"),
        ({"a": _entry(dtype="F4", offsets=(0, 1))}, 1, "a has unsupported type F4"),
        (
            b'{"a":%b,"a":%b}' % ((json.dumps(_entry()).encode(),) * 2),
            8,
            "the header names 'a' twice",
        ),
    ],
)
def test_corrupt_header(tmp_path, header, size, message):
    file = tmp_path / "m.safetensors"
    _write_raw(file, header, bytes(size))
    _raises(file, "m.safetensors: ", message)


def test_absurd_header_length_is_not_read(tmp_path):
    file = tmp_path / "m.safetensors"
    with file.open("wb") as stream:
        stream.write((200_000_000).to_bytes(8, "little"))
        stream.truncate(300_000_000)  # sparse
    _raises(file, "not a safetensors file")


def test_file_that_shrinks_after_opening(tmp_path):
    file = tmp_path / "m.safetensors"
    save_file({"w": W}, file)
    opened = checkpoints.open_checkpoint(file)
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(CheckpointError, match="w: the file ended after 20 of 24"):
        opened.read("w")
    with pytest.raises(CheckpointError, match="changed while it was merged"):
        _describe({"a": opened})
    file.unlink()
    with pytest.raises(CheckpointError, match=r"m.safetensors: w: No such file"):
        opened.read("w")
    with pytest.raises(CheckpointError, match=r"m.safetensors: cannot be read"):
        _describe({"a": opened})


def _describe(inputs):
    return checkpoints.describe(
        method="m", hyperparameters={}, inputs=inputs, started=0.0
    )


def test_unknown_leaf(tmp_path):
    save_file({"head/bias": W}, tmp_path / "m.safetensors")
    opened = checkpoints.open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match="no leaf 'head/bais'; did you mean 'head/"
    ):
        opened.read("head/bais")


def test_index_with_missing_shards(tmp_path):
    folder, _ = _sharded(tmp_path)
    (folder / "model-00001-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    _raises(
        folder, "index.json", "2 missing shards", "00001-of-00003", "00003-of-00003"
    )


def test_index_that_names_an_absent_tensor(tmp_path):
    folder, index = _sharded(tmp_path)
    _edit_index(index, lambda m: m.update(ghost=m["a"]))
    _raises(folder, "index.json", "00001-of-00003.safetensors: lacks ghost")


def test_index_that_lacks_a_tensor(tmp_path):
    folder, index = _sharded(tmp_path)
    _edit_index(index, lambda m: m.pop("b"))
    _raises(folder, "index.json", "00002-of-00003.safetensors: lies there, but")
    shutil.rmtree(folder)
    folder, index = _sharded(tmp_path, limit=50)
    _edit_index(index, lambda m: m.pop("b"))
    _raises(folder, "holds b, which the index puts nowhere")


def test_index_that_swaps_two_shards(tmp_path):
    folder, index = _sharded(tmp_path)

    def swap(m):
        m["a"], m["b"] = m["b"], m["a"]

    _edit_index(index, swap)
    _raises(folder, "4 disagreements", "holds a, which the index puts", "lacks a")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [1]}']
)
def test_corrupt_index(tmp_path, text):
    folder, index = _sharded(tmp_path)
    index.write_text(text)
    _raises(folder, "index.json: not an index")


def test_index_that_leads_out_of_its_folder(tmp_path):
    folder, index = _sharded(tmp_path)
    _edit_index(index, lambda m: m.update(a="../secret.safetensors"))
    _raises(folder, "'../secret.safetensors' is not a file in the same folder")


def test_truncated_shard_is_named(tmp_path):
    folder, _ = _sharded(tmp_path)
    shard = folder / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    _raises(folder, "model-00002-of-00003.safetensors: truncated")


def test_ambiguous_folder(tmp_path):
    save_file({"w": W}, tmp_path / "a.safetensors")
    save_file({"w": W}, tmp_path / "b.safetensors")
    _raises(tmp_path, "which weights are meant", "a.safetensors, b.safetensors")
    folder, _ = _sharded(tmp_path)
    save_file({"w": W}, folder / "model.safetensors")
    _raises(folder, "which weights are meant")


def test_subtree_of_safetensors(tmp_path):
    save_file({"w": W}, tmp_path / "m.safetensors")
    _raises(tmp_path / "m.safetensors", "'params'", "Orbax", subtree="params")


# ------------------------------------------------------------------------- Orbax


def test_unknown_subtree(tmp_path):
    path = _orbax(tmp_path)
    _raises(path, "no 'prams' under the root; did you mean 'params'", subtree="prams")
    _raises(path, "no 'x' under params; there is dense", subtree="params/x")
    _raises(path, "params/dense/kernel is a leaf", subtree="params/dense/kernel")
    _raises(path, "step is a leaf", subtree="step")


def test_orbax_without_its_tree(tmp_path):
    path = _orbax(tmp_path)
    (path / "_METADATA").unlink()
    _raises(path, "_METADATA is missing")


def test_orbax_with_a_corrupt_tree(tmp_path):
    path = _orbax(tmp_path)
    (path / "_METADATA").write_text("{")
    _raises(path, "orbax: truncated or damaged")


def test_unfinished_orbax_save(tmp_path):
    path = _orbax(tmp_path)
    path = path.rename(tmp_path / "7.orbax-checkpoint-tmp")
    _raises(path, "never finished")


def test_orbax_with_several_trees_or_steps(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (3, 10):
            args = ocp.args.Composite(
                model=ocp.args.StandardSave({"w": W}),
                optimizer=ocp.args.StandardSave({"m": W}),
            )
            manager.save(step, args=args)
        manager.wait_until_finished()
    _raises(tmp_path / "run", "several training steps (3, 10)", "run/10")
    _raises(tmp_path / "run" / "3", "several trees (model, optimizer)", "3/optimizer")
    opened = checkpoints.open_checkpoint(tmp_path / "run" / "3", subtree="model")
    assert list(opened.leaves) == ["w"]
    assert list(checkpoints.open_checkpoint(tmp_path / "run/3/model").leaves) == ["w"]


def test_orbax_leaves_with_one_name(tmp_path):
    path = _orbax(tmp_path, {"x/y": W, "x": {"y": W}})
    _raises(path, "two leaves have the name x/y")
    path = _orbax(tmp_path, {"x.y": W, "x": {"y": W}}, "second")
    _raises(path, "1 pair of leaves with one name", "x/y and x.y")


def _truncate_data(path):
    big = max(
        (f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    os.truncate(big, big.stat().st_size // 2)
    return big


def test_truncated_orbax_array_is_named_and_the_terminal_stays_clean(tmp_path):
    rng = np.random.default_rng(0)
    tree = {f"l{i:02}": rng.normal(size=(100, 100)) for i in range(40)}
    path = _orbax(tmp_path, tree)
    manifests = {f.relative_to(path): f.read_bytes() for f in path.rglob("manifest*")}
    _truncate_data(path)
    # In a process of its own: what Orbax's threads print passes pytest by.
    code = f"""
        from centermerge_jax import checkpoints
        from centermerge_jax.errors import CheckpointError
        try:
            checkpoints.open_checkpoint({str(path)!r}).read_all()
        except CheckpointError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert re.search(r"cannot read l\d\d: truncated or damaged", run.stdout)
    assert len(run.stdout.splitlines()) == 1
    assert manifests  # the index itself is whole


def test_lost_orbax_data(tmp_path):
    path = _orbax(tmp_path)
    for folder in [path / "d", *path.glob("ocdbt.process_*")]:
        shutil.rmtree(folder)
    _raises(path, "orbax: truncated or damaged")


def test_a_leaf_that_is_cast_on_the_way_is_refused(tmp_path, monkeypatch):
    opened = checkpoints.open_checkpoint(_orbax(tmp_path), subtree="params")
    restore = orbax_folders._restore

    def cast(part, names):
        found = restore(part, names)
        return {k: v.astype(ml_dtypes.bfloat16) for k, v in found.items()}

    monkeypatch.setattr(orbax_folders, "_restore", cast)
    with pytest.raises(
        CheckpointError,
        match=r"dense/kernel was read as bfloat16\[2, 3\], but it is stored as float32",
    ):
        opened.read("dense/kernel")


# ------------------------------------------------------------------------- output


def _refused(leaves, output, *parts, **options):
    before = sorted(output.parent.iterdir()) if output.parent.is_dir() else None
    pattern = ".*".join(map(re.escape, parts))
    with pytest.raises(CheckpointError, match=f"(?s){pattern}"):
        checkpoints.save(leaves, output, manifest=MANIFEST, **options)
    if before is not None:
        assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link", "manifest"])
@pytest.mark.parametrize("name", ["m.safetensors", "hub"])
def test_existing_output(tmp_path, kind, name):
    output = tmp_path / name
    if kind == "file":
        output.write_text("precious")
    elif kind == "folder":
        output.mkdir()
    elif kind == "dangling link":
        output.symlink_to(tmp_path / "gone")
    else:
        beside = checkpoints.manifest_path(output)
        beside.parent.mkdir(exist_ok=True)
        beside.write_text("precious")
    _refused({"w": W}, output, name, "exists already")
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoints.refuse_existing(output)
    if kind == "file":
        assert output.read_text() == "precious"


def test_missing_parent(tmp_path):
    output = tmp_path / "no" / "merged"
    _refused({"w": W}, output, "there is no folder", f"mkdir -p {tmp_path / 'no'}")
    (tmp_path / "file").touch()
    _refused({"w": W}, tmp_path / "file" / "merged", "there is no folder", "is a file")


def test_unwritable_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _refused({"w": W}, tmp_path / "merged", "is not writable")


def test_formats_that_contradict_the_name(tmp_path):
    file = tmp_path / "m.safetensors"
    _refused({"w": W}, file, "is one file", "'orbax'", format="orbax")
    _refused({"w": W}, tmp_path / "m", "must be named *.saf", format="safetensors")


def test_leaves_that_safetensors_cannot_hold(tmp_path):
    leaves = {
        "s": "text",
        "i4": np.zeros(2, ml_dtypes.int4),
        "c": np.zeros(2, np.complex128),
        "__metadata__": W,
        "good": W,
    }
    for name in ("m.safetensors", "hub"):
        _refused(
            leaves, tmp_path / name, "4 problems", "s: is a string", "i4: has type"
        )


def test_leaves_that_orbax_cannot_hold(tmp_path):
    output = tmp_path / "out"
    empty = {"a/b": np.zeros((0, 3), np.float32), "w": W}
    _refused(empty, output, "out: ", "a/b: float32[0, 3] is empty", format="orbax")
    _refused({}, output, "the tree has no leaves", format="orbax")
    _refused({"o": np.array([None])}, output, "o: has type object", format="orbax")
    opened = checkpoints.open_checkpoint(_orbax(tmp_path, {"x": {"y": W}}))
    _refused({"x/y": W, "x.y": W}, output, "x/y and x.y", template=opened)


def test_lists_must_be_whole(tmp_path):
    opened = checkpoints.open_checkpoint(_orbax(tmp_path, {"l": [W, W], "d": {"w": W}}))
    _refused({"l/0": W, "d/w": W}, tmp_path / "out", "l/1: is missing", template=opened)
    checkpoints.save(
        {"l/0": W, "l/1": W}, tmp_path / "out", manifest=MANIFEST, template=opened
    )
    assert list(checkpoints.open_checkpoint(tmp_path / "out").leaves) == ["l/0", "l/1"]


INTERRUPTS = [KeyboardInterrupt, OSError(28, "No space left on device")]


@pytest.mark.parametrize("name", ["m.safetensors", "hub", "orbax"])
@pytest.mark.parametrize("error", INTERRUPTS, ids=["interrupt", "full"])
@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_nothing_is_left_when_writing_stops(tmp_path, monkeypatch, name, error, moment):
    def stop(*args):
        raise error

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", stop)
    else:
        rename = type(tmp_path).rename

        def last(self, target):
            return (
                stop()
                if self.name == name and target.parent == tmp_path
                else rename(self, target)
            )

        monkeypatch.setattr(type(tmp_path), "rename", last)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    kind = {"hub": "hub", "orbax": "orbax"}.get(name)
    with pytest.raises(expected) as caught:
        checkpoints.save({"w": W}, tmp_path / name, manifest=MANIFEST, format=kind)
    if expected is CheckpointError:
        assert (
            str(caught.value)
            == f"cannot write {tmp_path / name}: No space left on device"
        )
    assert list(tmp_path.iterdir()) == []


def test_output_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    output = tmp_path / "m.safetensors"
    write = safetensors_writing.write

    def slow(slot, leaf):
        write(slot, leaf)
        output.write_text("precious")

    monkeypatch.setattr(safetensors_writing, "write", slow)
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoints.save({"w": W}, output, manifest=MANIFEST)
    assert output.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("name", ["m.safetensors", "hub", "orbax"])
def test_a_file_size_limit_stops_real_writes_cleanly(tmp_path, name):
    # The kernel refuses for real (EFBIG, a relative of a full disk), inside the
    # libraries and their threads.
    output = tmp_path / "out" / name
    output.parent.mkdir()
    code = f"""
        import resource, signal
        import numpy as np
        from centermerge_jax import checkpoints
        from centermerge_jax.errors import CheckpointError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        leaves = {{f"l{{i}}": np.random.default_rng(i).normal(size=(100, 1000))
                  for i in range(3)}}
        try:
            checkpoints.save(leaves, {str(output)!r}, manifest={{}},
                             format={"orbax" if name == "orbax" else None!r})
        except CheckpointError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert re.search(
        f"cannot write {re.escape(str(output))}: .*File too large", run.stdout
    )
    assert len(run.stdout.splitlines()) == 1
    assert list(output.parent.iterdir()) == []


def test_a_real_interrupt_leaves_the_whole_output_or_nothing(tmp_path):
    # Orbax writes from threads, which must be done before the clean-up.
    code = f"""
        import shutil, signal, time
        from pathlib import Path
        import numpy as np
        from centermerge_jax import checkpoints
        folder = Path({str(tmp_path)!r})
        rng = np.random.default_rng(0)
        leaves = {{f"l{{i}}": rng.normal(size=(1000, 500)) for i in range(10)}}
        def write(name):
            started = time.perf_counter()
            checkpoints.save(leaves, folder / name, manifest={{}}, format="orbax")
            return time.perf_counter() - started
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        write("first")
        usual = write("second")
        stopped = 0
        for i in range(1, 6):
            signal.setitimer(signal.ITIMER_REAL, usual * i / 7)
            try:
                write("third")
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stopped += 1
            time.sleep(0.05)  # a thread that was left behind would write now
            names = sorted(p.name for p in folder.iterdir())
            if names == ["first", "second", "third"]:
                checkpoints.open_checkpoint(folder / "third").read_all()
                shutil.rmtree(folder / "third")
            else:
                assert names == ["first", "second"], names
        assert stopped
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
