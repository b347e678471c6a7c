"""Every method on files: in parts as in memory, and what the command line says."""

import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file, save_file

from centermerge_jax import needs, stream
from centermerge_jax.cli import main
from centermerge_jax.methods import METHODS
from centermerge_jax.statistics import (
    Origin,
    expert_digest,
    leaf_digests,
    write_statistics,
)


@pytest.fixture
def files(tmp_path):
    """Writes experts and their base; returns their paths by name."""

    def write(experts, base):
        paths = {}
        for name, tree in {**experts, "base": base}.items():
            paths[name] = str(tmp_path / f"{name}.safetensors")
            save_file({leaf: np.array(x) for leaf, x in tree.items()}, paths[name])
        return paths

    return write


def statistics(method, experts, folder):
    """The file of each expert, of what a method has to know of the data."""
    found = []
    for known in zoo.data(method, experts).values():
        digests = {task: leaf_digests(tree.items()) for task, tree in experts.items()}
        together = {task: expert_digest(own) for task, own in digests.items()}
        for task, values in known.items():
            path = folder / f"{task}.{method.data}.safetensors"
            origin = Origin(
                kind=method.data,
                task=task,
                examples=60,
                source="drawn",
                expert=task,
                expert_sha256=digests[task],
                together=together if method.data == "merged_gram" else {},
            )
            write_statistics(path, values, origin=origin)
            found.append(f"{task}={path}")
    return tuple(found)


@pytest.mark.parametrize("name", METHODS)
def test_in_parts_it_is_what_it_is_in_memory(name, files, tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "LEAST", 64)  # as many parts as there can be
    monkeypatch.setattr(needs, "AT_ONCE", 64)
    method = METHODS[name]
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    values = zoo.settings(method)
    paths = files(experts, base)
    manifest = stream.merge(
        {task: paths[task] for task in experts},
        tmp_path / "merged.safetensors",
        name,
        base=paths["base"] if method.needs_base else None,
        statistics=statistics(method, experts, tmp_path),
        **values,
    )
    assert manifest["method"] == name
    merged = load_file(tmp_path / "merged.safetensors")
    for leaf, wanted in zoo.run(name, experts, base, **values).items():
        np.testing.assert_allclose(
            merged[leaf], wanted, rtol=0, atol=2e-6, err_msg=f"{name} {leaf}"
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["iso_cts", "--set", "common=7"], "common is a share in [0, 1]; got 7.0"),
        (
            ["emr", "--set", "task=mnist"],
            "no task is called 'mnist'; there are a, b, c",
        ),
        (["dare", "--density", "0.5", "--set", "seed=x"], "seed is a whole number"),
        (["tsv_m", "--set", "comon=1"], "tsv_m has no 'comon' (it has none to set)"),
        (["iso_cts", "--set", "comon=1"], "did you mean common?"),
        (["iso_cts", "--set", "scale=1"], "it has a flag of its own, --scale"),
        (["lata", "--set", "instruct=a", "--set", "curve=x"], "curve is one of linear"),
        (["della", "--density", "0.95"], "have to lie in (0, 1]"),
    ],
)
def test_what_a_method_refuses_is_refused_before_anything_is_read(
    flags, message, files, capsys
):
    paths = files(*zoo.models())
    scale = [] if flags[0] == "emr" else ["--scale", "1"]
    inputs = [paths["a"], paths["b"], paths["c"], "--base", paths["base"]]
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *inputs, "--method", *flags, *scale])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_setting_is_named(files, capsys):
    paths = files(*zoo.models())
    command = ["merge", paths["a"], paths["b"], paths["c"], "--base", paths["base"]]
    flags = ["--method", "lines", "--scale", "0.3", "-o", "out.safetensors"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *flags])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "ERROR: lines needs --set slope=...\n"
