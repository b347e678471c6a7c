"""`centermerge analyse` on checkpoints: the file, and what spoils it."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from disk import flat, write_hub, write_orbax, write_safetensors
from models import expert
from safetensors.numpy import save_file

import centermerge_jax as cm
from centermerge_jax import needs
from centermerge_jax.cli import main

NAMES = ("cars", "dtd", "mnist", "svhn")
KERNEL = "blocks/0/mlp/fc1/kernel"
RANKS = (0.1, 0.25, 1.0)
FLAGS = ("--ranks", "0.1,0.25,1.0", "--alignment", "0.25")


def written(folder):
    text = (folder / "analysis.json").read_text()
    assert "NaN" not in text
    return json.loads(text)


def write_base(folder):
    save_file(flat(expert(9)), folder / "base.safetensors")
    return str(folder / "base.safetensors")


def in_memory(base=True, **kwargs):
    trees = {name: flat(expert(seed)) for seed, name in enumerate(NAMES)}
    kwargs = {"shares": RANKS, "alignment": 0.25} | kwargs
    return cm.analysis.analyse(trees, flat(expert(9)) if base else None, **kwargs)


def same(found, wanted, where=""):
    """Of JSON values."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            same(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for one, other in zip(found, wanted, strict=True):
            same(one, other, where)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-3, abs=2e-5), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("pieces", ["whole", "small"])
def test_the_file(pieces, tmp_path, capsys, monkeypatch):
    if pieces == "small":  # leaves in pieces, one matrix at a time
        monkeypatch.setattr(needs, "LEAST", 64)
        monkeypatch.setattr(needs, "AT_ONCE", 64 * 4 * 5)
    paths, base = write_safetensors(tmp_path), write_base(tmp_path)
    out = tmp_path / "out"
    main(["analyse", *paths, "--base", base, "-o", str(out), *FLAGS])
    shown = capsys.readouterr().out
    assert "I(k), top" in shown
    assert "25 %" in shown
    assert f"wrote {out}/analysis.json in " in shown
    assert "4 tasks, 6 matrices, 11 leaves" in shown
    found = written(out)
    assert found.pop("kind") == "analysis"
    assert found.pop("command")[0] == "centermerge"
    assert found.pop("date").endswith("+00:00")
    assert found.pop("versions")["centermerge_jax"] == cm.__version__
    same(found, in_memory())
    assert [path.name for path in out.iterdir()] == ["analysis.json"]


def test_stacks_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "LEAST", 64)
    monkeypatch.setattr(needs, "AT_ONCE", 64 * 4 * 3)
    rng = np.random.default_rng(0)
    stacks = [rng.normal(size=(5, 8, 6)).astype(np.float32) for _ in range(3)]
    (tmp_path / "views.toml").write_text(
        '[[rule]]\npattern = "blocks/kernel"\nbatch = [0]\nrows = [1]\ncols = [2]\n'
    )
    for i, x in enumerate(stacks):
        save_file({"blocks/kernel": x}, tmp_path / f"task{i}.safetensors")
    paths = [f"{tmp_path}/task{i}.safetensors" for i in range(3)]
    views = ("--views", f"{tmp_path}/views.toml")
    main(["analyse", *paths, "-o", f"{tmp_path}/out", "--quiet", *views, *FLAGS])
    found = written(tmp_path / "out")
    assert list(found["matrices"]) == [f"blocks/kernel[{i}]" for i in range(5)]
    for i in range(5):
        alone = cm.analysis.analyse(
            [{"kernel": x[i]} for x in stacks], shares=RANKS, alignment=0.25
        )
        measured = found["matrices"][f"blocks/kernel[{i}]"]
        assert measured["layer"] == i
        same(measured["mean"], alone["matrices"]["kernel"]["mean"])
    assert found["leaves"]["blocks/kernel"]["numbers"] == 5 * 8 * 6


@pytest.mark.parametrize("kind", ["orbax", "hub"])
def test_other_formats_without_a_base(kind, tmp_path, capsys):
    if kind == "orbax":
        paths, flags = write_orbax(tmp_path), ("--path", "params")
    else:
        paths, flags = [], ("--views", "auto")
        for seed, name in enumerate(NAMES):
            leaves = flat(expert(seed))
            paths.append(write_hub(tmp_path / name, leaves, shards=2))
    main(["analyse", *paths, "-o", f"{tmp_path}/out", *FLAGS, *flags, "--quiet"])
    assert capsys.readouterr().out == ""
    found = written(tmp_path / "out")
    assert found["origins"] == ["mean"]
    same({k: found[k] for k in in_memory(base=False)}, in_memory(base=False))


def test_fused_views_and_leaves_left_out(tmp_path):
    paths = write_safetensors(tmp_path)
    out = tmp_path / "there already"
    out.mkdir()
    views = ("--views", "fused", "--exclude", "embed/.*")
    main(["analyse", *paths, "-o", str(out), "--quiet", *FLAGS, *views])
    found = written(out)
    joined = [name for name in found["matrices"] if "+" in name]
    assert [found["matrices"][name]["shape"] for name in joined] == [[48, 16]]
    assert not any(name.startswith("embed") for name in found["leaves"])


def test_two_experts_are_worth_a_note(tmp_path, capsys):
    paths = write_safetensors(tmp_path)[:2]
    main(["analyse", *paths, "-o", f"{tmp_path}/out", "--quiet", *FLAGS])
    assert capsys.readouterr().err == (
        "note: two experts: around their mean they are opposite, and interfere most\n"
    )


def test_one_expert_and_its_base(tmp_path):
    paths, base = write_safetensors(tmp_path)[:1], write_base(tmp_path)
    out = ("-o", f"{tmp_path}/out")
    main(["analyse", *paths, *out, "--base", base, *FLAGS])
    means = written(tmp_path / "out")["mean_over_matrices"]
    assert means["mean"]["matrices"] == 0
    assert means["mean"]["interference_top"] is None
    assert means["base"]["interference_top"] == [0.0, 0.0, 0.0]


def nan():
    kernel = flat(expert(1))[KERNEL].copy()
    kernel.flat[0] = np.nan
    return {KERNEL: kernel}


BAD = {
    "no expert": ([], (), "Give the experts' checkpoints"),
    "a single expert": (NAMES[:1], (), "a single expert is its own mean"),
    "missing": ((*NAMES, "nowhere"), (), "nowhere"),
    "no base": (NAMES, ("--base", "{}/none.safetensors"), "none.safetensors"),
    "ranks are no numbers": (NAMES, ("--ranks", "0.1,x"), "--ranks 0.1,x: expected"),
    "no ranks": (NAMES, ("--ranks", ""), "--ranks : expected"),
    "rank above 1": (NAMES, ("--ranks", "0.5,2"), "a float in (0, 1]; got 2.0"),
    "rank 0": (NAMES, ("--ranks", "0"), "a float in (0, 1]; got 0.0"),
    "ranks fall": (NAMES, ("--ranks", "0.5,0.1"), "ascend"),
    "alignment": (NAMES, ("--alignment", "0"), "got 0.0"),
    "unknown flag": (NAMES, ("--rank", "0.1"), "did you mean"),
    "unknown views": (NAMES, ("--views", "aut"), "(auto, fused, split)"),
    "unknown dtype": (NAMES, ("--dtype", "int8"), "--dtype is one of"),
    "unmatched exclude": (NAMES, ("--exclude", "x"), "without a matching leaf: x"),
    "too little memory": (NAMES, ("--memory", "1MiB"), "--memory 1MiB is too little"),
    "not finite": (("cars", "mnist", "nan"), (), f"non-finite values in {KERNEL}"),
    "another model": (("cars", "other"), (), "other: missing"),
    "no output": (NAMES, ("-o", "{}/no/folder"), "mkdir -p"),
    "a file": (NAMES, ("-o", "{}/cars.safetensors"), "exists already"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind, tmp_path, capsys):
    names, flags, message = BAD[kind]
    write_safetensors(tmp_path)
    write_safetensors(tmp_path, names=("nan",), nan=nan())
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    before = sorted(tmp_path.rglob("*"))
    paths = [f"{tmp_path}/{name}.safetensors" for name in names]
    flags = [flag.replace("{}", str(tmp_path)) for flag in flags]
    output = () if "-o" in flags else ("-o", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as done:
        main(["analyse", *paths, *output, *flags])
    captured = capsys.readouterr()
    assert done.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("ERROR: ")
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_analysis_is_not_written_over(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "analysis.json").write_text("precious")
    with pytest.raises(SystemExit) as done:
        main(["analyse", *write_safetensors(tmp_path), "-o", f"{tmp_path}/out"])
    assert done.value.code == 2
    assert "analysis.json exists already" in capsys.readouterr().err
    assert (tmp_path / "out" / "analysis.json").read_text() == "precious"


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys, monkeypatch):
    """It became so after the first look."""
    from centermerge_jax import analysis_checkpoints

    paths = write_safetensors(tmp_path)
    monkeypatch.setattr(analysis_checkpoints, "refuse_existing", lambda path: None)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit) as done:
        main(["analyse", *paths, "-o", f"{tmp_path}/out", *FLAGS])
    assert done.value.code == 2
    assert capsys.readouterr().err == f"ERROR: {tmp_path}/out: File exists\n"


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from centermerge_jax import part_reading
read = part_reading.read_part

def slow(todo, part, arena):
    print("reading", flush=True)
    time.sleep(0.2)
    return read(todo, part, arena)

from centermerge_jax import analysis_checkpoints, needs
analysis_checkpoints.read_part = slow
needs.LEAST, needs.AT_ONCE = 64, 64 * 4 * 3
from centermerge_jax.cli import main
main()
"""


def test_an_interrupted_analysis_leaves_nothing(tmp_path):
    command = ["analyse", *write_safetensors(tmp_path), "-o", f"{tmp_path}/out"]
    before = sorted(tmp_path.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "reading\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "interrupted; nothing is left half-written\n"
    assert sorted(tmp_path.rglob("*")) == before
