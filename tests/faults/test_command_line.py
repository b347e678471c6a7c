"""Bad input: one clear message that names the place, status 2, and no output."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from disk import flat, write_hub, write_orbax, write_safetensors
from models import expert
from safetensors.numpy import load_file

from centermerge_jax.cli import main

GOOD = ("--rank", "0.25", "--scale", "1.5")
KERNEL = "blocks/0/mlp/fc1/kernel"
CURE = "What is not shared (task heads) can be left out: --exclude, --keep."


def changed(**leaves):
    return lambda folder: write_safetensors(folder, cars={}, dtd=leaves)


def leaf(value):
    """All experts as they are, but one leaf of 'dtd'."""
    return lambda folder: write_safetensors(folder, dtd={KERNEL: value})


def spoiled(edit):
    """All experts, then the file of 'dtd' is edited."""

    def make(folder):
        paths = write_safetensors(folder)
        file = folder / "dtd.safetensors"
        file.write_bytes(edit(file.read_bytes()))
        return paths

    return make


def hub_with(edit):
    def make(folder):
        paths = [
            write_hub(folder / name, flat(expert(i)), shards=2)
            for i, name in enumerate(("cars", "dtd", "mnist"))
        ]
        index = folder / "dtd" / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        edit(folder / "dtd", content)
        index.write_text(json.dumps(content))
        return paths

    return make


def misplace(folder, index):
    names = sorted(index["weight_map"])
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][names[0]] = files[1]


def lose_shard(folder, index):
    min(folder.glob("*.safetensors")).unlink()


def nan(count=1, value=np.nan):
    kernel = flat(expert(1))[KERNEL].copy()
    kernel.flat[:count] = value
    return kernel


def single(folder):
    return write_safetensors(folder)[:1]


def empty_folder(folder):
    (folder / "dtd").mkdir()
    return [*write_safetensors(folder)[:2], str(folder / "dtd")]


def pickled(folder):
    file = folder / "pytorch_model.bin"
    file.write_bytes(b"\x80\x04K\x01.")
    return [*write_safetensors(folder)[:2], str(file)]


def twice(folder):
    paths = write_safetensors(folder)
    return [*paths, paths[0]]


def missing_path(folder):
    return [*write_safetensors(folder)[:2], str(folder / "nowhere")]


def base_of_another_model(folder):
    paths = write_safetensors(folder)
    (folder / "b").mkdir()
    kernel = np.zeros((4, 4), np.float32)
    write_safetensors(folder / "b", names=("cars",), cars={KERNEL: kernel})
    return paths


def bad_head(folder):
    """An expert whose head, which is kept, is not finite."""
    head = np.full((2, 2), np.nan, np.float32)
    return write_safetensors(folder, dtd={"head/kernel": head})


BAD = {
    # structure
    "missing leaf": (leaf(None), GOOD, f"dtd: missing {KERNEL}"),
    "extra leaf": (changed(more=np.ones(2, np.float32)), GOOD, "dtd: extra more"),
    "other shape": (
        leaf(np.ones((16, 4), np.float32)),
        GOOD,
        f"1 difference from 'cars': dtd: {KERNEL} is float32[16, 4], expected float32[",
    ),
    "other dtype": (leaf(np.ones((16, 48), np.float16)), GOOD, "is float16[16, 48]"),
    "integers that differ": (changed(steps=np.int32(8)), GOOD, "dtd: steps (int32[])"),
    "float64": (
        leaf(np.ones((16, 48))),
        GOOD,
        "switch on jax_enable_x64 (JAX_ENABLE_X64=1)",
    ),
    "not a number": (
        leaf(nan()),
        GOOD,
        f"dtd: non-finite values in {KERNEL} (1 NaN, 0 inf)",
    ),
    "infinite": (leaf(nan(2, np.inf)), GOOD, "(0 NaN, 2 inf)"),
    "wrong base": (
        base_of_another_model,
        (
            "--method",
            "task_arithmetic",
            "--scale",
            "1",
            "--base",
            "{}/b/cars.safetensors",
        ),
        f"base: {KERNEL} is float32[4, 4]",
    ),
    "overflow in the output type": (
        leaf(nan(1, 3e38)),
        (*GOOD, "--dtype", "float16"),
        f"the merged model: non-finite values in {KERNEL}",
    ),
    "not a number in what is kept": (
        bad_head,
        (*GOOD, "--keep", "head.*", "--keep-from", "dtd"),
        "dtd: non-finite values in head/kernel (4 NaN, 0 inf)",
    ),
    # files
    "truncated file": (spoiled(lambda b: b[:-10]), GOOD, "dtd.safetensors"),
    "corrupt header": (spoiled(lambda b: b[:8] + b"x" + b[9:]), GOOD, "dtd.safeten"),
    "huge header length": (
        spoiled(lambda b: b"\xff" * 8 + b[8:]),
        GOOD,
        "dtd.safetensors",
    ),
    "empty file": (spoiled(lambda b: b""), GOOD, "dtd.safetensors"),
    "index names a wrong shard": (hub_with(misplace), GOOD, "lacks blocks/0/attn"),
    "missing shard": (hub_with(lose_shard), GOOD, "model-00001-of-00002.safetensors"),
    "empty folder": (empty_folder, GOOD, "dtd"),
    "missing path": (missing_path, GOOD, "nowhere"),
    "a pickle": (pickled, GOOD, "pytorch_model.bin"),
    "the same expert twice": (twice, GOOD, "the name 'cars' is taken"),
    "path inside a safetensors file": (
        write_safetensors,
        (*GOOD, "--path", "params"),
        "params",
    ),
    "unknown path inside Orbax": (write_orbax, (*GOOD, "--path", "prams"), "params"),
    # recipe
    "a single path": (single, GOOD, "of a single checkpoint is that checkpoint"),
    "unknown method": (write_safetensors, ("--method", "crat"), "did you mean cart?"),
    "no rank": (write_safetensors, ("--scale", "1"), "cart needs --rank"),
    "no base": (
        write_safetensors,
        ("--method", "task_arithmetic", "--scale", "1"),
        "needs the pretrained model: --base PATH",
    ),
    "rank that is not taken": (
        write_safetensors,
        ("--method", "weight_average", "--rank", "3"),
        "weight_average takes no --rank",
    ),
    "rank 0": (write_safetensors, ("--rank", "0", "--scale", "1"), "at least 1"),
    "rank 1.5": (
        write_safetensors,
        ("--rank", "1.5", "--scale", "1"),
        "(0, 1], got 1.5",
    ),
    "rank nan": (write_safetensors, ("--rank", "nan", "--scale", "1"), "got nan"),
    "rank above all": (
        write_safetensors,
        ("--rank", "99", "--scale", "1"),
        "rank 99 is",
    ),
    "rank is no number": (write_safetensors, ("--rank", "x", "--scale", "1"), "--rank"),
    "scale inf": (write_safetensors, ("--rank", "1", "--scale", "inf"), "not finite"),
    "unknown flag": (write_safetensors, ("--rnak", "1"), "did you mean --rank?"),
    "unknown dtype": (
        write_safetensors,
        (*GOOD, "--dtype", "int8"),
        "--dtype is one of",
    ),
    "unknown solver": (
        write_safetensors,
        (*GOOD, "--solver", "fast"),
        "--solver is one",
    ),
    "unknown views": (
        write_safetensors,
        (*GOOD, "--views", "aut"),
        "(auto, fused, split)",
    ),
    "unmatched view rule": (
        write_safetensors,
        (*GOOD, "--views", "{}/views.toml"),
        "1 view rule without a matching leaf that no earlier rule took: 'nothing'",
    ),
    "unmatched exclude": (
        write_safetensors,
        (*GOOD, "--exclude", "head.*"),
        "--exclude: 1 pattern without a matching leaf: head.*",
    ),
    "keep without keep-from": (
        write_safetensors,
        (*GOOD, "--keep", "e.*"),
        "go together",
    ),
    "keep from nobody": (
        write_safetensors,
        (*GOOD, "--keep", "e.*", "--keep-from", "sun"),
        "there are cars, dtd, mnist, svhn",
    ),
    "a pattern that is none": (
        write_safetensors,
        (*GOOD, "--exclude", "("),
        "--exclude (",
    ),
    "no expert": (lambda _: [], GOOD, "what is to be merged"),
    "nothing left": (write_safetensors, (*GOOD, "--exclude", ".*"), "nothing to merge"),
    "a name without a path": (
        lambda f: ["a=", *write_safetensors(f)],
        GOOD,
        "NAME=PATH",
    ),
    "a join that is none": (
        write_safetensors,
        (*GOOD, "--views", "{}/join.toml"),
        "rule '.*fc1/kernel': join",
    ),
    "one file as a folder": (
        write_safetensors,
        (*GOOD, "--format", "safetensors"),
        "must",
    ),
    "unknown format": (
        write_safetensors,
        (*GOOD, "--format", "zip"),
        "--format is hub",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind, tmp_path, capsys):
    make, flags, message = BAD[kind]
    (tmp_path / "views.toml").write_text(
        '[[rule]]\npattern = "nothing"\n[[rule]]\npattern = ".*"\n'
    )
    (tmp_path / "join.toml").write_text(
        '[[rule]]\npattern = ".*fc1/kernel"\nrows = [0]\ncols = [-1]\njoin = "\\\\3"\n'
    )
    paths = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.replace("{}", str(tmp_path)) for flag in flags]
    output = ("-o", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as done:
        main(["merge", *paths, *output, *flags])
    captured = capsys.readouterr()
    assert done.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("ERROR: ")
    first, *more = captured.err.splitlines()
    assert bool(more) == first.endswith(":")  # one line, or a list of differences
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "kind", ["file", "folder", "dangling link", "manifest", "parent"]
)
def test_existing_or_impossible_output(kind, tmp_path, capsys):
    paths = write_safetensors(tmp_path)
    out = tmp_path / "out.safetensors"
    if kind == "file":
        out.write_text("precious")
    elif kind == "folder":
        out.mkdir()
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "manifest":
        (tmp_path / "out.safetensors.manifest.json").write_text("precious")
    else:
        out = tmp_path / "no" / "folder" / "out"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as done:
        main(["merge", *paths, "-o", str(out), *GOOD])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert "exists already" in error or "mkdir -p" in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["x" * 250, "\u00e4" * 120, "x" * 238 + ".safetensors"]
)
def test_names_that_leave_no_room_for_hidden_ones(name, tmp_path, capsys):
    paths = write_safetensors(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as done:
        main(["merge", *paths, "-o", str(tmp_path / name), *GOOD])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    length = len(name.encode())
    assert f"the name has {length} bytes; with what is put beside it" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_order_that_is_not_that_of_the_names(tmp_path, capsys):
    cars, dtd, *_ = write_safetensors(tmp_path)
    output = tmp_path / "merged.safetensors"
    settings = ["--method", "lerp", "--set", "t=0", "-o", str(output)]
    with pytest.raises(SystemExit) as caught:
        main(["merge", str(dtd), str(cars), *settings])
    assert caught.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "names, cars, dtd; they are given as dtd, cars" in message
    assert not output.exists()
    main(["merge", f"1={dtd}", f"2={cars}", *settings])
    np.testing.assert_array_equal(load_file(output)[KERNEL], load_file(dtd)[KERNEL])


@pytest.mark.parametrize("form", ["hub", "orbax", "safetensors"])
def test_the_longest_name(form, tmp_path):
    paths = write_safetensors(tmp_path)
    room = os.pathconf(tmp_path, "PC_NAME_MAX") - 32
    suffix = ".safetensors" if form == "safetensors" else ""
    output = tmp_path / ("x" * (room - len(suffix)) + suffix)
    main(["merge", *paths, "-o", str(output), *GOOD, "--format", form, "--quiet"])
    assert output.exists()


@pytest.mark.parametrize("form", ["hub", "orbax"])
@pytest.mark.parametrize("command", ["plan", "merge"])
def test_an_output_inside_an_input(form, command, tmp_path, capsys):
    if form == "orbax":
        paths = write_orbax(tmp_path)
    else:
        leaves = flat(expert(0))
        paths = [write_hub(tmp_path / n, leaves, shards=2) for n in ("cars", "dtd")]
        paths[1] += "/model.safetensors.index.json"
    inside = tmp_path / "dtd" / "merged"
    (tmp_path / "link").symlink_to(tmp_path / "dtd")
    for output in (inside, tmp_path / "link" / "merged"):
        with pytest.raises(SystemExit) as done:
            main([command, *paths, "-o", str(output), *GOOD])
        assert done.value.code == 2
        assert capsys.readouterr().err == (
            f"ERROR: {output}: lies inside of {tmp_path}/dtd, which is an input; "
            "choose an output elsewhere\n"
        )
        assert not output.exists()


def test_many_differences_are_listed_with_their_place(tmp_path, capsys):
    paths = write_safetensors(
        tmp_path,
        dtd={KERNEL: None, "x": np.ones(1, np.float32)},
    )
    with pytest.raises(SystemExit):
        main(["merge", *paths, "-o", f"{tmp_path}/out", *GOOD])
    assert capsys.readouterr().err.splitlines()[:4] == [
        "ERROR: 2 differences from 'cars':",
        f"  dtd: missing {KERNEL}",
        "  dtd: extra x",
        CURE,
    ]


LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


# Where tests run in the background of a shell, SIGINT is ignored from the start.
LISTEN = """
import shlex
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def run(*arguments, before="", **kwargs):
    program = before + "from centermerge_jax.cli import main; main()"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, text=True, **streams)


def big_experts(folder):
    """Enough work that it can be interrupted in the middle."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    paths = []
    for name in ("cars", "dtd", "mnist"):
        leaves = {
            f"mlp/{i}/kernel": rng.normal(size=(1000, 1000)).astype(np.float32)
            for i in range(6)
        }
        save_file(leaves, folder / f"{name}.safetensors")
        paths.append(str(folder / f"{name}.safetensors"))
    return paths


def test_interrupted_in_the_middle(tmp_path):
    paths = big_experts(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    solver = ("--solver", "exact", "--rank", "0.5", "--scale", "1")
    process = run(
        "merge", *paths, "-o", f"{tmp_path}/out.safetensors", *solver, before=LISTEN
    )
    while sorted(tmp_path.rglob("*")) == before:  # until something is being written
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 130
    assert error == "interrupted; nothing is left half-written\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_disk_full(tmp_path):
    """A limit on file sizes stands for the disk: the same call fails, with EFBIG."""
    paths = write_safetensors(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    output = str(tmp_path / "out.safetensors")
    process = run("merge", *paths, "-o", output, *GOOD, before=LIMIT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert error.startswith(f"ERROR: cannot write {output}: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_closed_pipe_is_no_error(tmp_path):
    paths = write_safetensors(tmp_path)
    read, write = os.pipe()
    os.close(read)
    process = run("inspect", paths[0], stdout=write)
    _, error = process.communicate(timeout=60)
    os.close(write)
    assert error == ""
    assert process.returncode == 0
    assert Path(paths[0]).exists()


@pytest.mark.parametrize("reader", ["head -n 1", "true"])
@pytest.mark.parametrize("module", ["experiments.configs.table", "centermerge_jax.cli"])
def test_a_reader_that_goes_away_is_not_worth_a_message(module, reader, tmp_path):
    """Also where all that is printed waits in a buffer until the reader has gone."""
    folder = write_safetensors(tmp_path)[0]
    command = f"import sys; sys.argv[1:] = ['inspect', {str(folder)!r}]\n"
    if module == "centermerge_jax.cli":
        command += "from centermerge_jax.cli import main; main()"
    else:
        command += f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
    # The sleep lets the reader go first.
    program = f"import time; time.sleep({0.3 * (reader == 'true')})\n{command}"
    piped = f"{sys.executable} -c {shlex.quote(program)} | {reader}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {piped}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == (reader != "true")
