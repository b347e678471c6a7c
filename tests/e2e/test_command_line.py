"""The commands on checkpoints on disk: the tree that the library gives in memory."""

import hashlib
import json
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from disk import flat, write_hub, write_orbax, write_safetensors
from models import expert, experts
from safetensors.numpy import load_file

import centermerge_jax as cm
from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.cli import main

RECIPE = ("--rank", "0.25", "--scale", "1.5")


def wanted():
    trees = experts(names=("cars", "dtd", "mnist", "svhn"))
    return flat(cm.cart(trees, rank=0.25, scale=1.5))


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_safetensors_in_memory_and_on_disk_are_the_same(tmp_path, capsys):
    paths = write_safetensors(tmp_path)
    for name in ("one", "two"):
        output = f"{tmp_path}/{name}.safetensors"
        main(["merge", *paths, "-o", output, *RECIPE, "--hash-files"])
    assert "wrote" in capsys.readouterr().out
    chex.assert_trees_all_equal(load_file(tmp_path / "one.safetensors"), wanted())
    assert sha256(tmp_path / "one.safetensors") == sha256(tmp_path / "two.safetensors")
    manifest = json.loads((tmp_path / "one.safetensors.manifest.json").read_text())
    assert manifest["method"] == "cart"
    assert manifest["hyperparameters"] == {"rank": 0.25, "scale": 1.5}
    assert list(manifest["inputs"]) == ["cars", "dtd", "mnist", "svhn"]
    (file,) = manifest["inputs"]["dtd"]["files"]
    assert file["sha256"] == sha256(paths[1])
    digest = cm.views.digest(cm.views.resolve(flat(expert(0))))
    assert manifest["views_sha256"] == digest
    assert manifest["wall_seconds"] > 0
    assert manifest["peak_memory_bytes"] > 1e8
    assert {solve["solver"] for solve in manifest["solves"]} == {"exact"}
    assert sum(solve["matrices"] for solve in manifest["solves"]) == 4 * 6
    assert all(solve["fell_back"] == 0 for solve in manifest["solves"])


def test_orbax_in_memory_and_on_disk_are_the_same(tmp_path):
    import orbax.checkpoint as ocp

    paths = write_orbax(tmp_path)
    for name in ("one", "two"):
        output = f"{tmp_path}/{name}"
        main(["merge", *paths, "-o", output, *RECIPE, "--path", "params"])
    trees = []
    for name in ("one", "two"):
        with ocp.StandardCheckpointer() as checkpointer:
            trees.append(checkpointer.restore(tmp_path / name)["params"])
    found = flat(trees[0])
    chex.assert_trees_all_equal(found, flat(trees[1]), wanted())
    assert (tmp_path / "one" / "centermerge.json").is_file()


def write_numbers(folder, **numbers):
    """Orbax folders that hold an array, and numbers that are Python's own."""
    paths = []
    for i, name in enumerate(("a", "b", "c")):
        leaves = {k: x[i] if isinstance(x, list) else x for k, x in numbers.items()}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / name, {"w": np.full(3, i, np.float32), **leaves})
        paths.append(str(folder / name))
    return paths


@pytest.mark.parametrize("output", ["merged", "merged.safetensors"])
def test_numbers_of_python_are_carried_as_they_are(tmp_path, output):
    # None of them is a number of 32 bits.
    numbers = {"epsilon": 0.001, "step": 2**40 + 1, "on": True}
    paths = write_numbers(tmp_path, **numbers)
    out = str(tmp_path / output)
    main(["merge", *paths, "-o", out, "--method", "weight_average", "--quiet"])
    merged = open_checkpoint(out).read_all()
    assert {name: merged[name] for name in numbers} == numbers
    if output == "merged":
        assert {name: type(merged[name]) for name in numbers} == {
            name: type(x) for name, x in numbers.items()
        }
    np.testing.assert_array_equal(merged["w"], np.ones(3))


def test_numbers_of_python_that_differ(tmp_path, capsys):
    paths = write_numbers(tmp_path, loss=[0.1, 0.1, 0.2], step=3)
    with pytest.raises(SystemExit):
        main(["merge", *paths, "-o", f"{tmp_path}/out", "--method", "weight_average"])
    assert capsys.readouterr().err == (
        "ERROR: 1 number not the same in all models; only arrays are merged: c: loss "
        "is 0.2, expected 0.1. --exclude leaves them out, --keep and --keep-from take "
        "one model's.\n"
    )


def test_three_hub_folders_with_torch_names_shards_and_heads(tmp_path):
    """As public checkpoints lie: other files beside, heads of different size."""
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.patch_embeddings.projection.weight": (16, 3, 4, 4),
        "embeddings.position_embeddings": (1, 5, 16),
        "encoder.layer.0.attention.attention.query.weight": (16, 16),
        "encoder.layer.0.attention.output.dense.weight": (16, 16),
        "encoder.layer.0.intermediate.dense.weight": (64, 16),
        "encoder.layer.0.intermediate.dense.bias": (64,),
    }
    trees, paths = {}, []
    for i, name in enumerate(("cars", "dtd", "mnist")):
        body = {k: np.float32(rng.normal(size=s)) for k, s in shapes.items()}
        head = {"classifier.weight": np.float32(rng.normal(size=(2 + i, 16)))}
        trees[name] = body
        config = {"model_type": "vit", "id2label": {str(j): name for j in range(2 + i)}}
        folder = tmp_path / name
        paths.append(write_hub(folder, body | head, shards=1 + i % 2, config=config))
    out = tmp_path / "out"
    heads = ("--keep", r"classifier\..*", "--keep-from", "dtd")
    main(["merge", *paths, "-o", str(out), *RECIPE, *heads])
    found = open_checkpoint(out).read_all()
    dtd = open_checkpoint(paths[1]).read_all()
    np.testing.assert_array_equal(
        found.pop("classifier.weight"), dtd["classifier.weight"]
    )
    chex.assert_trees_all_equal(found, flat(cm.cart(trees, rank=0.25, scale=1.5)))
    assert json.loads((out / "config.json").read_text())["id2label"] == {
        "0": "dtd",
        "1": "dtd",
        "2": "dtd",
    }
    assert (out / "tokenizer.json").is_file()
    # Its own card, not that of an expert.
    assert "Merged by `cart`" in (out / "README.md").read_text()


def test_flax_names_in_hub_folders(tmp_path):
    paths = [
        write_hub(tmp_path / name, flat(expert(i)), shards=2)
        for i, name in enumerate(("cars", "dtd", "mnist", "svhn"))
    ]
    main(["merge", *paths, "-o", f"{tmp_path}/out", *RECIPE])
    found = open_checkpoint(tmp_path / "out").read_all()
    chex.assert_trees_all_equal(found, wanted())


def test_every_method(tmp_path):
    paths = write_safetensors(tmp_path)
    changes = {"pretrained": flat(expert(9)) | {"steps": np.int32(0)}}
    (base,) = write_safetensors(tmp_path, names=("pretrained",), **changes)
    trees = experts(names=("cars", "dtd", "mnist", "svhn"))
    pretrained = expert(9)
    flags = {
        "weight_average": [],
        "task_arithmetic": ["--scale", "0.3", "--base", base],
        "truncated_task_arithmetic": [*RECIPE, "--rest", "base", "--base", base],
    }
    given = {
        "weight_average": cm.weight_average(trees),
        "task_arithmetic": cm.task_arithmetic(trees, pretrained, scale=0.3),
        "truncated_task_arithmetic": cm.truncated_task_arithmetic(
            trees, pretrained, rank=0.25, scale=1.5, rest="base"
        ),
    }
    for method, more in flags.items():
        out = tmp_path / f"{method}.out.safetensors"
        main(["merge", *paths, "-o", str(out), "--method", method, *more])
        chex.assert_trees_all_equal(load_file(out), flat(given[method]))


def test_dtype_lets_types_be_mixed(tmp_path):
    half = {k: v.astype(np.float16) for k, v in flat(expert(1)).items() if v.ndim}
    double = {k: v.astype(np.float64) for k, v in flat(expert(2)).items() if v.ndim}
    paths = write_safetensors(tmp_path, dtd=half, mnist=double)
    out = tmp_path / "out.safetensors"
    main(["merge", *paths, "-o", str(out), *RECIPE, "--dtype", "bfloat16"])
    leaves = open_checkpoint(out).leaves
    assert {str(info.dtype) for info in leaves.values()} == {"bfloat16", "int32"}


def test_plan_reads_headers_only_and_names_each_rank(tmp_path, capsys):
    paths = write_safetensors(tmp_path)
    # Beyond the header these are not even numbers any more.
    for path in paths:
        content = bytearray(Path(path).read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        content[start:] = b"\xff" * (len(content) - start)
        Path(path).write_bytes(content)
    main(["plan", *paths, "--rank", "3", "--scale", "1", "--views", "fused"])
    text = capsys.readouterr().out
    row = (
        "blocks/0/attn/key/kernel    [16, 2, 8]  1 x 16 x 48 (blocks/0/attn/qkv)     3"
        "  exact"
    )
    assert row in text
    assert "4 models, 12 leaves to merge, 6 of them as matrices; reads" in text
    main(["plan", *paths[:2], "--rank", "1.0", "--scale", "1", "--json"])
    todo = json.loads(capsys.readouterr().out)
    assert {row["rank"] for row in todo["views"]} == {None, 16}
    assert todo["warnings"][0].startswith(
        "two experts: their centred vectors are opposite"
    )
    assert todo["read_bytes"] == 2 * sum(x.nbytes for x in flat(expert(0)).values())


def test_kept_leaves_of_the_base_are_cast_and_recorded(tmp_path):
    paths = write_safetensors(tmp_path)
    head = {"head/kernel": np.float32([[1.0, 2.5]])}
    (base,) = write_safetensors(tmp_path, names=("pretrained",), pretrained=head)
    out = tmp_path / "out.safetensors"
    keep = ("--base", base, "--keep", "head/.*", "--keep-from", "base")
    how = ("--dtype", "bfloat16", "--hash-files")
    main(["merge", *paths, "-o", str(out), *RECIPE, *keep, *how])
    kept = open_checkpoint(out).read("head/kernel")
    assert str(kept.dtype) == "bfloat16"
    np.testing.assert_array_equal(np.float32(kept), head["head/kernel"])
    manifest = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())
    assert manifest["inputs"]["base"]["files"][0]["sha256"] == sha256(base)


def test_two_experts_are_warned_of(tmp_path, capsys):
    paths = write_safetensors(tmp_path)[:2]
    main(["merge", *paths, "-o", f"{tmp_path}/out.safetensors", *RECIPE])
    assert "note: two experts" in capsys.readouterr().err
    main(["merge", *paths, "-o", f"{tmp_path}/two.safetensors", *RECIPE, "--json"])
    assert "two experts" in json.loads(capsys.readouterr().out)["warnings"][0]


def test_inspect(tmp_path, capsys):
    (path,) = write_safetensors(tmp_path, names=("cars",))
    main(["inspect", path])
    text = capsys.readouterr().out
    assert "blocks/0/mlp/fc1/kernel     float32[16, 48]  3.1 kB" in text
    assert "safetensors: 12 leaves" in text
    assert "all finite" in text
    main(["inspect", path, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["non_finite"] == []
    assert found["leaves"][-1] == {
        "leaf": "steps",
        "shape": [],
        "dtype": "int32",
        "bytes": 4,
    }


def test_names_given_with_an_equals_sign(tmp_path):
    paths = write_safetensors(tmp_path)
    named = [f"{x}={p}" for x, p in zip("dcba", paths, strict=True)]
    main(["merge", *named, "-o", f"{tmp_path}/out.safetensors", *RECIPE])
    manifest = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())
    assert {n: i["path"] for n, i in manifest["inputs"].items()} == dict(
        zip("abcd", reversed(paths), strict=True)
    )


MEANINGS = {
    "merge": "0.08 is 8 % of min(m, n), 1.0 is everything",
    "plan": "0.08 is 8 % of min(m, n), 1.0 is everything",
    "inspect": "Do not read the tensors to see whether they are finite",
    "report": "one self-contained file if it ends in .html",
    "demo": "What an earlier demo left there is replaced",
}


def test_help_of_every_command_says_what_the_flags_mean(capsys):
    for command, meaning in MEANINGS.items():
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert not done.value.code
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert meaning in text
