"""Merges of what people have: adapters, other formats and names, recipes, in one go."""

import json

import chex
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from centermerge_jax.cli import main

SHAPES = {
    "layers.0.mlp.weight": (10, 6),
    "layers.0.mlp.bias": (10,),
    "layers.1.mlp.weight": (10, 6),
    "layers.1.mlp.bias": (10,),
    "layers.2.mlp.weight": (10, 6),
    "norm.weight": (6,),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]


def tree(seed):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def svd(x, k):
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:k]


def cart(trees, *, rank, scale):
    """The formula in float64; rank and scale may differ from leaf to leaf."""
    merged = {}
    for name in SHAPES:
        stack = np.stack([np.float64(t[name]) for t in trees])
        mean = stack.mean(0)
        merged[name] = mean
        if name in MATRICES:
            k = max(1, int(rank(name) * 6))
            merged[name] = mean + scale(name) * sum(svd(x - mean, k) for x in stack)
    return merged


def check(path, wanted, atol=5e-5):
    found = load_file(path)
    chex.assert_trees_all_close(
        found, {n: np.float32(x) for n, x in wanted.items()}, rtol=0, atol=atol
    )


def write_adapter(folder, seed):
    """A LoRA folder for all matrices; returns the changes that it means."""
    rng = np.random.default_rng(seed)
    tensors, changes = {}, {}
    for name in MATRICES:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = rng.normal(size=(2, 6)), rng.normal(size=(10, 2))
        tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
        changes[name] = 4 / 2 * b.astype(np.float32) @ a.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["mlp"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return changes


@pytest.mark.parametrize("method", ["cart", "task_arithmetic"])
def test_adapters_of_one_base(tmp_path, method):
    base = tree(0)
    save_file(base, tmp_path / "base.safetensors")
    experts = []
    for seed in (1, 2, 3):
        changes = write_adapter(tmp_path / f"task{seed}", seed)
        experts.append({n: x + changes.get(n, 0) for n, x in base.items()})
    paths = [str(tmp_path / f"task{seed}") for seed in (1, 2, 3)]
    output = str(tmp_path / "out.safetensors")
    flags = ["--base", str(tmp_path / "base.safetensors"), "--method", method]
    rank = ["--rank", "0.34"] if method == "cart" else []
    main(["merge", *paths, *flags, "-o", output, "--scale", "0.5", *rank])
    if method == "cart":
        wanted = cart(experts, rank=lambda _: 0.34, scale=lambda _: 0.5)
    else:
        wanted = {n: x + 0.5 * sum(e[n] - x for e in experts) for n, x in base.items()}
    check(output, wanted)


def test_an_adapter_without_its_base(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_adapter(tmp_path / f"task{seed}", seed)
    paths = [str(tmp_path / f"task{seed}") for seed in (1, 2, 3)]
    with pytest.raises(SystemExit):
        main(["merge", *paths, "-o", str(tmp_path / "out"), "--rank", "1", "--scale=1"])
    assert "--base" in capsys.readouterr().err


NAMES = r"""
[[leaf]]
from = 'layers\.(\d+)\.mlp\.weight'
to = 'layers/\1/mlp/kernel'
transpose = [1, 0]
[[leaf]]
from = 'layers\.(\d+)\.mlp\.bias'
to = 'layers/\1/mlp/bias'
[[leaf]]
from = 'norm\.weight'
to = 'norm/scale'
"""


def flax_names(leaves):
    def other(name):
        parts = name.replace("norm.weight", "norm.scale").split(".")
        return "/".join(parts).replace("mlp/weight", "mlp/kernel")

    return {other(n): x.T if n in MATRICES else x for n, x in leaves.items()}


def test_a_torch_base_with_orbax_and_numpy_experts(tmp_path):
    import orbax.checkpoint as ocp

    base = tree(0)
    save_file(base, tmp_path / "base.safetensors")
    (tmp_path / "names.toml").write_text(NAMES)
    trees = [tree(seed) for seed in (1, 2)]
    nested = {}
    for name, leaf in flax_names(trees[0]).items():
        node = nested
        *above, last = name.split("/")
        for key in above:
            node = node.setdefault(key, {})
        node[last] = np.ascontiguousarray(leaf)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", nested)
    np.savez(tmp_path / "b.npz", **flax_names(trees[1]))
    output = tmp_path / "out.safetensors"
    how = ("--method", "task_arithmetic", "--scale", "0.4")
    how += ("--base", str(tmp_path / "base.safetensors"))
    how += ("--names", f"base={tmp_path / 'names.toml'}")
    paths = [str(tmp_path / "a"), str(tmp_path / "b.npz")]
    main(["merge", *paths, "-o", str(output), *how])
    wanted = {n: x + 0.4 * sum(t[n] - x for t in trees) for n, x in base.items()}
    check(output, flax_names(wanted))


RECIPE = """
method: cart
experts: {a: a.safetensors, b: b.safetensors, c: c.safetensors}
rank: [0.2, 0.4, 0.6]
scale: 1.5
overrides:
  - {match: 'layers\\.1\\..*', scale: 0.5, rank: 0.9}
  - {match: 'norm\\..*', scale: 1.0}
memory: 1GiB
"""


def write_experts(folder, names=("a", "b", "c"), dtype=np.float32):
    trees = [tree(seed) for seed in range(len(names))]
    for name, leaves in zip(names, trees, strict=True):
        stored = {n: x.astype(dtype) for n, x in leaves.items()}
        save_file(stored, folder / f"{name}.safetensors")
    return trees


def test_a_recipe_with_overrides_and_a_gradient(tmp_path, capsys):
    trees = write_experts(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    output = tmp_path / "out.safetensors"
    recipe = str(tmp_path / "recipe.yaml")
    main(["merge", recipe, "-o", str(output)])
    ranks = {"0": 0.2, "1": 0.9, "2": 0.6}
    wanted = cart(
        trees,
        rank=lambda name: ranks[name.split(".")[1]],
        scale=lambda name: 0.5 if ".1." in name else 1.5,
    )
    check(output, wanted)
    # A flag goes before what the file says.
    main(["merge", recipe, "-o", str(tmp_path / "more.safetensors"), "--scale", "3"])
    wanted = cart(
        trees,
        rank=lambda name: ranks[name.split(".")[1]],
        scale=lambda name: 0.5 if ".1." in name else 3.0,
    )
    check(tmp_path / "more.safetensors", wanted)
    capsys.readouterr()
    main(["plan", recipe])
    shown = capsys.readouterr().out
    assert [line.split()[-2:] for line in shown.splitlines() if "weight" in line][:1]


MERGEKIT = """
merge_method: task_arithmetic
base_model: base
models:
  - model: {folder}/b
    parameters: {{weight: 0.5}}
  - model: {folder}/c
    parameters:
      weight:
        - {{filter: layers.1, value: 0.25}}
        - {{value: 1.0}}
parameters: {{lambda: 0.5}}
dtype: float32
out_dtype: bfloat16
"""


def test_a_recipe_written_for_mergekit(tmp_path, monkeypatch, capsys):
    trees = [tree(seed) for seed in range(3)]
    for name, leaves in zip(("base", "b", "c"), trees, strict=True):
        (tmp_path / name).mkdir()
        save_file(leaves, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kit.yaml").write_text(MERGEKIT.format(folder=tmp_path))
    main(["merge", "kit.yaml", "-o", "out.safetensors"])
    assert "note: " in capsys.readouterr().err
    base, b, c = trees
    wanted = {}
    for name, x in base.items():
        weight = 0.25 if "layers.1" in name else 1.0
        wanted[name] = x + 0.5 * (0.5 * (b[name] - x) + weight * (c[name] - x))
    found = load_file(tmp_path / "out.safetensors")
    assert found["norm.weight"].dtype == ml_dtypes.bfloat16
    for name, x in wanted.items():
        np.testing.assert_allclose(np.float32(found[name]), x, rtol=2**-8, atol=1e-6)


def test_experts_of_two_types_are_summed_in_float32(tmp_path):
    trees = write_experts(tmp_path)
    half = {n: x.astype(np.float16) for n, x in trees[1].items()}
    save_file(half, tmp_path / "b.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    output = tmp_path / "out.safetensors"
    how = ("--method", "weight_average", "--dtype", "float32")
    main(["merge", *paths, "-o", str(output), *how])
    trees[1] = half
    wanted = {n: np.mean([np.float64(t[n]) for t in trees], 0) for n in SHAPES}
    check(output, wanted)
