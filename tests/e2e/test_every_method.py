"""Every method on files: in parts as in memory, and what the command line says."""

import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file, save_file

from centermerge_jax import needs, stream
from centermerge_jax.cli import main
from centermerge_jax.methods import METHODS

FREE = [name for name, method in METHODS.items() if method.data is None]


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


@pytest.mark.parametrize("name", FREE)
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
        **values,
    )
    assert manifest["method"] == name
    merged = load_file(tmp_path / "merged.safetensors")
    for leaf, wanted in zoo.run(name, experts, base, **values).items():
        np.testing.assert_allclose(
            merged[leaf], wanted, rtol=0, atol=2e-6, err_msg=f"{name} {leaf}"
        )


def test_a_missing_setting_is_named(files, capsys):
    paths = files(*zoo.models())
    command = ["merge", paths["a"], paths["b"], paths["c"], "--base", paths["base"]]
    flags = ["--method", "lines", "--scale", "0.3", "-o", "out.safetensors"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *flags])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "ERROR: lines needs --set slope=...\n"
