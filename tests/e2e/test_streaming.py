"""Merges in parts: the same bytes whatever the budget, and after every kill."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import ml_dtypes
import numpy as np
import pytest
from disk import flat, write_hub, write_safetensors
from models import experts
from safetensors.numpy import load_file, save_file

import centermerge_jax as cm
from centermerge_jax import needs, stream
from centermerge_jax.checkpoints import (
    open_checkpoint,
    safetensors_writing,
    stage_path,
)
from centermerge_jax.cli import main
from centermerge_jax.planning import plan
from centermerge_jax.recipe import Recipe

KILLS = int(os.environ.get("CENTERMERGE_KILLS", "2"))
LITTLE = needs.RUNTIME + needs.SOLVING + 8 * 2**20
RECIPE = ("--rank", "0.25", "--scale", "1.5")


def scanned(seed, *, layers=12, width=96):
    """Stacked layers, as a scanned model has them, and a large embedding."""
    rng = np.random.default_rng(seed)
    shapes = {
        "blocks/mlp/kernel": (layers, width, 4 * width),
        "blocks/mlp/bias": (layers, 4 * width),
        "emb/table": (2000, width),
    }
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def write(folder, trees):
    for name, tree in trees.items():
        save_file(tree, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in trees}


VIEWS = """
[[rule]]
pattern = ".*/kernel"
batch = [0]
rows = [1]
cols = [2]
[[rule]]
pattern = ".*"
"""


@pytest.fixture
def stacked(tmp_path, monkeypatch):
    """Paths of scanned experts, and a budget of which a part gets a few layers."""
    trees = {name: scanned(seed) for seed, name in enumerate(("a", "b", "c", "d"))}
    (tmp_path / "views.toml").write_text(VIEWS)
    return trees, write(tmp_path, trees), str(tmp_path / "views.toml")


def test_the_budget_does_not_change_a_bit(stacked, tmp_path):
    trees, paths, views = stacked
    rules = cm.views.load(views)
    how = {"rank": 0.25, "scale": 1.5, "views": views}
    counts = set()
    for memory in (LITTLE, LITTLE + 2**23, 2**32):
        output = tmp_path / f"{memory}.safetensors"
        stream.merge(paths, output, memory=str(memory), **how)
        experts_ = tuple(f"{n}={p}" for n, p in paths.items())
        counts.add(len(plan(Recipe(experts=experts_, memory=str(memory), **how)).parts))
        wanted = cm.cart(trees, rank=0.25, scale=1.5, views=rules)
        chex.assert_trees_all_equal(load_file(output), flat(wanted))
    assert len(counts) == 3  # the budgets really made different parts


@pytest.mark.parametrize("method", ["weight_average", "task_arithmetic"])
def test_leaves_larger_than_a_part_are_merged_in_pieces(
    stacked, tmp_path, method, monkeypatch
):
    monkeypatch.setattr(needs, "AT_ONCE", 2**16)
    trees, paths, _ = stacked
    base = scanned(9)
    save_file(base, tmp_path / "base.safetensors")
    settings = (
        {}
        if method == "weight_average"
        else {"scale": 0.3, "base": str(tmp_path / "base.safetensors")}
    )
    manifest = stream.merge(paths, tmp_path / "out", method, **settings)
    mean = {n: np.mean([np.float64(t[n]) for t in trees.values()], 0) for n in base}
    if method == "task_arithmetic":
        wanted = {n: base[n] + 0.3 * 4 * (mean[n] - base[n]) for n in base}
    else:
        wanted = mean
    chex.assert_trees_all_close(
        load_file(tmp_path / "out/model.safetensors"),
        {n: np.float32(x) for n, x in wanted.items()},
        rtol=1e-5,
        atol=1e-6,
    )
    assert len(manifest["inputs"]["a"]["tensors_sha256"]["emb/table"]) > 1


def test_too_little_memory_is_refused_with_what_would_do(stacked, tmp_path, capsys):
    _, paths, views = stacked
    files = [str(path) for path in paths.values()]
    command = ["merge", *files, "-o", str(tmp_path / "out"), *RECIPE, "--views", views]
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--memory", "200MiB"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    enough = error.split("needs ")[1].strip()
    assert not (tmp_path / "out").exists()
    main([*command, "--memory", enough])
    assert (tmp_path / "out/model.safetensors").is_file()


def test_digests_are_of_the_tensors(tmp_path):
    import hashlib

    paths = write_safetensors(tmp_path)
    manifest = stream.merge(paths, tmp_path / "out", rank=2, scale=1.0)
    tree = load_file(paths[1])
    found = manifest["inputs"]["dtd"]["tensors_sha256"]
    assert found == {
        n: hashlib.sha256(x.tobytes()).hexdigest() for n, x in tree.items()
    }


def test_a_hub_folder_is_complete(tmp_path):
    names = ("cars", "dtd", "mnist")
    paths = {
        name: write_hub(
            tmp_path / name,
            flat(tree),
            config={"model_type": "vit", "torch_dtype": "float32"},
        )
        for name, tree in experts(names=names).items()
    }
    stream.merge(paths, tmp_path / "out", rank=2, scale=1.0, dtype="bfloat16")
    found = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "centermerge.json"} <= found
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {"model_type": "vit", "torch_dtype": "bfloat16"}
    card = (tmp_path / "out/README.md").read_text()
    assert 'method: "cart"' in card
    assert paths["dtd"] in card
    leaves = open_checkpoint(tmp_path / "out").leaves
    types = {info.dtype for info in leaves.values() if info.dtype.kind != "i"}
    assert types == {np.dtype(ml_dtypes.bfloat16)}


SLOW = """
import sys, time
from centermerge_jax.checkpoints import staging
written = staging.Stage.write
def slowly(*args):
    written(*args)
    time.sleep(0.05)
staging.Stage.write = slowly
from centermerge_jax.cli import main
main(sys.argv[1:])
"""


def start(arguments, *, program="from centermerge_jax.cli import main; main()"):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_lines(count, process, output):
    """Waits until the journal of an output has so many lines."""
    journal = stage_path(output) / "journal.jsonl"
    while not journal.exists() or len(journal.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def arguments(paths, views, output):
    files = [str(path) for path in paths.values()]
    return [
        "merge",
        *files,
        "-o",
        output,
        *RECIPE,
        "--views",
        views,
        "--memory",
        LITTLE,
    ]


def content(output):
    """What has to be the same: bytes of safetensors, arrays of Orbax."""
    if output.suffix == ".safetensors":
        return output.read_bytes()
    if (output / "model.safetensors").is_file():
        return (output / "model.safetensors").read_bytes()
    leaves = open_checkpoint(output).read_all()
    return {name: leaf.tobytes() for name, leaf in leaves.items()}


@pytest.mark.parametrize("form", ["out.safetensors", "hub", "orbax"])
def test_kills_at_random_moments(stacked, tmp_path, form):
    """SIGKILL, then --resume: the bytes of a merge that was never disturbed."""
    _, paths, views = stacked
    folder = tmp_path / "results"
    folder.mkdir()
    flags = ("--format", form) if form in ("hub", "orbax") else ()

    def command(name):
        return [*arguments(paths, views, folder / f"{name}-{form}"), *flags]

    whole = start(command("whole"), program=SLOW)
    wait_for_lines(1, whole, folder / f"whole-{form}")
    began = time.perf_counter()
    _, error = whole.communicate()
    assert whole.returncode == 0, error
    took = time.perf_counter() - began
    wanted = content(folder / f"whole-{form}")
    rng = np.random.default_rng(KILLS)
    resumed = 0
    for number in range(KILLS):
        output = folder / f"{number}-{form}"
        process = start(command(number), program=SLOW)
        wait_for_lines(1, process, output)
        time.sleep(rng.uniform(0.0, 0.9) * took)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed += stage_path(output).exists()
        if output.exists():  # it was faster; then it is whole
            assert content(output) == wanted
            continue
        process = start([*command(number), "--resume"])
        _, error = process.communicate()
        assert process.returncode == 0, error
        assert content(output) == wanted
        assert not stage_path(output).exists()
    assert resumed, "no kill came in the middle"


@pytest.fixture
def unfinished(stacked, tmp_path):
    """A merge that was killed after its first parts."""
    _, paths, views = stacked
    output = tmp_path / "out.safetensors"
    process = start(arguments(paths, views, output), program=SLOW)
    wait_for_lines(3, process, output)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return paths, views, output


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_an_unfinished_merge_is_not_thrown_away(unfinished, capsys):
    paths, views, output = unfinished
    error = fails(arguments(paths, views, output), capsys)
    assert "--resume" in error
    assert stage_path(output).is_dir()


def test_ctrl_c_in_the_middle_keeps_what_is_finished(stacked, tmp_path):
    _, paths, views = stacked
    output = tmp_path / "out.safetensors"
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = start(arguments(paths, views, output), program=listen + SLOW)
    wait_for_lines(3, process, output)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error == "interrupted; what is finished is kept: --resume continues\n"
    main([*map(str, arguments(paths, views, output)), "--resume"])
    assert output.is_file()


def test_a_disk_that_fills_up_keeps_what_is_finished(
    stacked, tmp_path, monkeypatch, capsys
):
    _, paths, views = stacked
    output = tmp_path / "out.safetensors"
    write, calls = safetensors_writing.write, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(safetensors_writing, "write", full)
        error = fails(arguments(paths, views, output), capsys)
    assert "No space left on device; what is finished is kept: --resume" in error
    main([*map(str, arguments(paths, views, output)), "--resume"])
    assert output.is_file()


def test_changed_inputs_are_noticed(unfinished, capsys):
    paths, views, output = unfinished
    save_file(scanned(17), paths["b"])
    error = fails([*arguments(paths, views, output), "--resume"], capsys)
    assert str(paths["b"]) in error
    assert not output.exists()


def test_other_settings_are_noticed(unfinished, capsys):
    paths, views, output = unfinished
    other = [*arguments(paths, views, output), "--resume"]
    other[other.index("1.5")] = "1.25"
    error = fails(other, capsys)
    assert "scale was 1.5, now 1.25" in error


def test_damaged_pieces_are_made_again(unfinished, tmp_path):
    paths, views, output = unfinished
    staged = stage_path(output) / output.name
    raw = bytearray(staged.read_bytes())
    raw[-1] ^= 1
    raw[len(raw) // 2] ^= 1
    staged.write_bytes(bytes(raw))
    main([*map(str, arguments(paths, views, output)), "--resume"])
    other = tmp_path / "other.safetensors"
    main([*map(str, arguments(paths, views, other))])
    assert output.read_bytes() == other.read_bytes()


def test_a_vanished_input_keeps_what_is_finished(unfinished, capsys):
    paths, views, output = unfinished
    hidden = Path(f"{paths['c']}.away")
    paths["c"].rename(hidden)
    fails([*arguments(paths, views, output), "--resume"], capsys)
    hidden.rename(paths["c"])
    main([*map(str, arguments(paths, views, output)), "--resume"])
    assert output.is_file()


def test_two_processes_do_not_write_one_output(unfinished, capsys):
    import fcntl

    paths, views, output = unfinished
    handle = os.open(stage_path(output), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    error = fails([*arguments(paths, views, output), "--resume"], capsys)
    os.close(handle)
    assert "another process" in error


def test_non_finite_inputs_leave_nothing(stacked, tmp_path, capsys):
    trees, paths, views = stacked
    bad = {n: x.copy() for n, x in trees["d"].items()}
    bad["emb/table"][-1, -1] = np.nan
    save_file(bad, paths["d"])
    output = tmp_path / "out.safetensors"
    error = fails(arguments(paths, views, output), capsys)
    assert "d: non-finite values in emb/table (1 NaN, 0 inf)" in error
    assert not stage_path(output).exists()
    assert not output.exists()
