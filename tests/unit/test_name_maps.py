"""Checkpoints under other names: those of DINOv2 in PyTorch as our Flax ones."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from centermerge_jax.checkpoints import Piece, open_checkpoint, save
from centermerge_jax.checkpoints.name_maps import NameRule, load_name_map, rename
from centermerge_jax.errors import CheckpointError

WIDTH, HEADS, HIDDEN, PATCH = 12, 3, 20, 2
LAYER = "encoder.layer.0"

# The layouts that models.dinov2 and models.vit speak of, and one with heads apart.
DINO = r"""
[[leaf]]
from = 'encoder\.layer\.(\d+)\.attention\.attention\.(q)uery\.weight'
to = 'blocks/\1/attn/\2/kernel'
transpose = [1, 0]
shape = [-1, 3, 4]

[[leaf]]
from = 'encoder\.layer\.(\d+)\.mlp\.(fc[12])\.weight'
to = 'blocks/\1/mlp/\2/kernel'
transpose = [1, 0]

[[leaf]]
from = 'encoder\.layer\.(\d+)\.mlp\.(fc[12])\.bias'
to = 'blocks/\1/mlp/\2/bias'

[[leaf]]
from = 'encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1'
to = 'blocks/\1/layer_scale\2/scale'

[[leaf]]
from = 'embeddings\.patch_embeddings\.projection\.weight'
to = 'embed/patch/kernel'
transpose = [2, 3, 1, 0]

[[leaf]]
from = 'embeddings\.cls_token'
to = 'embed/class_token'
shape = [12]

[[leaf]]
from = 'embeddings\.mask_token'
drop = true
"""
SHAPES = {
    f"{LAYER}.attention.attention.query.weight": (WIDTH, WIDTH),
    f"{LAYER}.mlp.fc1.weight": (HIDDEN, WIDTH),
    f"{LAYER}.mlp.fc2.weight": (WIDTH, HIDDEN),
    f"{LAYER}.mlp.fc1.bias": (HIDDEN,),
    f"{LAYER}.layer_scale1.lambda1": (WIDTH,),
    "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
    "embeddings.cls_token": (1, 1, WIDTH),
    "embeddings.mask_token": (1, WIDTH),
}


def write(folder, **more):
    leaves = {
        name: np.random.default_rng(i).normal(size=shape).astype(np.float16)
        for i, (name, shape) in enumerate((SHAPES | more).items())
    }
    save_file(leaves, folder / "torch.safetensors", metadata={"format": "pt"})
    return open_checkpoint(folder / "torch.safetensors"), leaves


def rules(folder, text):
    (folder / "map.toml").write_text(text, encoding="utf-8")
    return load_name_map(folder / "map.toml")


def rule(source, rest):
    return f"[[leaf]]\nfrom = '{source}'\n{rest}\n"


def test_a_torch_checkpoint_as_a_flax_one(tmp_path):
    checkpoint, torch = write(tmp_path)
    renamed = rename(checkpoint, rules(tmp_path, DINO))
    expected = {
        "blocks/0/attn/q/kernel": torch[f"{LAYER}.attention.attention.query.weight"].T,
        "blocks/0/mlp/fc1/kernel": torch[f"{LAYER}.mlp.fc1.weight"].T,
        "blocks/0/mlp/fc2/kernel": torch[f"{LAYER}.mlp.fc2.weight"].T,
        "blocks/0/mlp/fc1/bias": torch[f"{LAYER}.mlp.fc1.bias"],
        "blocks/0/layer_scale1/scale": torch[f"{LAYER}.layer_scale1.lambda1"],
        "embed/patch/kernel": np.einsum(
            "oihw->hwio", torch["embeddings.patch_embeddings.projection.weight"]
        ),
        "embed/class_token": torch["embeddings.cls_token"][0, 0],
    }
    name = "blocks/0/attn/q/kernel"
    expected[name] = expected[name].reshape(WIDTH, HEADS, WIDTH // HEADS)
    assert list(renamed.leaves) == sorted(expected)
    assert str(renamed.leaves[name]) == "float16[12, 3, 4]"
    read = renamed.read_all()
    for name, leaf in expected.items():
        assert read[name].flags.c_contiguous, name
        np.testing.assert_array_equal(read[name], leaf, strict=True)
        np.testing.assert_array_equal(renamed.read(name), leaf, strict=True)
    assert renamed.structure is None
    assert renamed.fetch_range is None
    same = (checkpoint.path, checkpoint.format, checkpoint.files, checkpoint.metadata)
    assert (renamed.path, renamed.format, renamed.files, renamed.metadata) == same


def test_parts_of_leaves_are_read_where_none_is_transposed(tmp_path):
    checkpoint, torch = write(tmp_path)
    text = rule(r"(.*mlp.fc1)\.weight", r"to = '\1/kernel'" + "\nshape = [2, -1]")
    renamed = rename(checkpoint, rules(tmp_path, 'rest = "keep"\n' + text))
    name = f"{LAYER}.mlp.fc1/kernel"
    assert renamed.leaves[name].shape == (2, HIDDEN * WIDTH // 2)
    assert set(renamed.leaves) == {name, *SHAPES} - {f"{LAYER}.mlp.fc1.weight"}
    ((_, part),) = renamed.read_pieces([Piece(name, 5, 9, (4,))])
    flat = torch[f"{LAYER}.mlp.fc1.weight"].reshape(-1)
    np.testing.assert_array_equal(part, flat[5:9])
    np.testing.assert_array_equal(renamed.read(name).reshape(-1), flat)


def test_an_orbax_tree_becomes_flat_and_keeps_its_numbers(tmp_path):
    import orbax.checkpoint as ocp

    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "flax", {"dense": {"kernel": kernel}, "step": 7})
    text = rule("(.*)/kernel", r"to = '\1.weight'" + "\ntranspose = [1, 0]")
    checkpoint = open_checkpoint(tmp_path / "flax")
    assert checkpoint.structure is not None
    renamed = rename(checkpoint, rules(tmp_path, 'rest = "keep"\n' + text))
    read = renamed.read_all()
    np.testing.assert_array_equal(read.pop("dense.weight"), kernel.T, strict=True)
    assert read == {"step": 7}
    assert renamed.structure is None
    save(renamed.read_all(), tmp_path / "out.safetensors", manifest={})
    again = open_checkpoint(tmp_path / "out.safetensors")
    assert set(again.leaves) == {"dense.weight", "step"}


def test_the_first_rule_that_matches_the_whole_name_wins(tmp_path):
    checkpoint, _ = write(tmp_path)
    text = (
        rule(r"embeddings\..*", "drop = true")
        + rule("encoder", "to = 'never, as it is not the whole name'")
        + rule(".*", r"to = 'x/\g<0>'")
    )
    with pytest.raises(CheckpointError, match=r"'encoder': matches no leaf"):
        rename(checkpoint, rules(tmp_path, text))
    text = text.replace("'encoder'", rf"'{LAYER}\.mlp\.fc1\.bias'")
    renamed = rename(checkpoint, rules(tmp_path, text))
    assert sorted(renamed.leaves) == [
        "never, as it is not the whole name",
        *sorted(f"x/{n}" for n in SHAPES if "encoder" in n and "fc1.bias" not in n),
    ]


KEEP = "rest = 'keep'\n"
UNFIT = {
    "unmatched": (
        DINO.replace("cls_token", "cls"),
        ["cls_token: is matched by no rule"],
    ),
    "idle": (KEEP + rule("x", "drop = true"), ["'x': matches no leaf"]),
    "one name": (
        KEEP + rule(".*(fc.).weight", "to = 'w'"),
        [f"w: is the name of {LAYER}.mlp.fc1.weight and {LAYER}.mlp.fc2.weight"],
    ),
    "a kept name": (
        KEEP + rule(".*cls_token", "to = 'embeddings.mask_token'"),
        ["embeddings.mask_token: is the name of"],
    ),
    "axes": (
        KEEP + rule(".*cls_token", "to = 'c'\ntranspose = [1, 0]"),
        ["embeddings.cls_token: is float16[1, 1, 12]", "transpose = [1, 0]"],
    ),
    "lengths": (
        KEEP + rule(".*cls_token", "to = 'c'\nshape = [13]"),
        ["embeddings.cls_token: is float16[1, 1, 12]", "shape = [13]"],
    ),
    "free length": (
        KEEP + rule(".*cls_token", "to = 'c'\nshape = [5, -1]"),
        ["embeddings.cls_token", "shape = [5, -1]"],
    ),
    "free beside zero": (
        KEEP + rule(".*cls_token", "to = 'c'\nshape = [0, -1]"),
        ["embeddings.cls_token", "shape = [0, -1]"],
    ),
    "group": (KEEP + rule(".*cls_token", r"to = '\1'"), ["cls_token: to = '\\\\1'"]),
    "empty": (KEEP + rule("(x?).*cls_token", r"to = '\1'"), ["leaves no name"]),
    "everything": (rule(".*", "drop = true"), ["drops every leaf"]),
    "several": (
        rule("x", "drop = true") + rule(".*cls_token", "to = 'c'\nshape = [13]"),
        ["9 problems", "matched by no rule", "matches no leaf", "does not fit", "keep"],
    ),
}


@pytest.mark.parametrize(("text", "parts"), UNFIT.values(), ids=UNFIT)
def test_maps_that_do_not_fit(tmp_path, text, parts):
    checkpoint, _ = write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        rename(checkpoint, rules(tmp_path, text))
    assert str(caught.value).startswith(f"{checkpoint.path}: ")
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_what_is_no_array_has_no_axes(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "flax", {"step": 7, "w": np.ones(2, np.float32)})
    checkpoint = open_checkpoint(tmp_path / "flax")
    with pytest.raises(CheckpointError, match="step: is a scalar, which has no axes"):
        rename(checkpoint, [NameRule("step", "s", shape=(1,)), NameRule("w", "w")])


FAULTS = {
    "no TOML": ("[[leaf", "not a TOML file"),
    "nothing": ("", r"there is no \[\[leaf\]\] table"),
    "one table": ("[leaf]\nfrom = 'x'", r"there is no \[\[leaf\]\] table"),
    "no tables": ("leaf = [1]", "leaf 1: is 1, not a table"),
    "unknown key": (rule("x", "to = 'y'\nname = 1"), "leaf 1: name: is not one of"),
    "unknown top": ("other = 1\n" + rule("x", "to = 'y'"), "other: is not known"),
    "rest": ("rest = 'drop'\n" + rule("x", "to = 'y'"), "rest: is 'keep'"),
    "no from": ("[[leaf]]\nto = 'x'", "from: a regular expression"),
    "pattern": (rule("(", "to = 'x'"), "from: '\\('"),
    "no to": (rule("x", ""), "to: the new name"),
    "empty to": (rule("x", "to = ''"), "to: the new name"),
    "drop": (rule("x", "drop = false"), "drop: is true"),
    "drop and name": (rule("x", "drop = true\nto = 'y'"), "has no name or shape"),
    "axes twice": (rule("x", "to = 'y'\ntranspose = [0, 0]"), "transpose: names each"),
    "axes missing": (rule("x", "to = 'y'\ntranspose = [1]"), "transpose: names each"),
    "no axes": (rule("x", "to = 'y'\ntranspose = 'T'"), "transpose: names each"),
    "two free": (rule("x", "to = 'y'\nshape = [-1, -1]"), "shape: is a list"),
    "negative": (rule("x", "to = 'y'\nshape = [-2]"), "shape: is a list"),
    "booleans": (rule("x", "to = 'y'\nshape = [true]"), "shape: is a list"),
    "several": (rule("(", "") + rule("x", ""), "3 faults"),
}


@pytest.mark.parametrize(("text", "match"), FAULTS.values(), ids=FAULTS)
def test_files_that_are_no_maps(tmp_path, text, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        rules(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "map.toml"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.toml: cannot be read"):
        load_name_map(tmp_path / "none.toml")
    (tmp_path / "map.toml").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not a TOML file"):
        load_name_map(tmp_path / "map.toml")
