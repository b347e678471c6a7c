"""Adapter folders as PEFT writes them, against NumPy in float64."""

import json
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from centermerge_jax.checkpoints import Piece, open_checkpoint
from centermerge_jax.checkpoints.adapters import is_adapter, open_adapter, read_factors
from centermerge_jax.errors import CheckpointError

WIDTH, HIDDEN, RANK, ALPHA = 6, 10, 2, 8
ATTENTION = "transformer.h.0.attn.c_attn"
MLP = "transformer.h.0.mlp.c_fc"
EMBEDDING = "transformer.wte"
SHAPES = {
    f"{ATTENTION}.weight": (3 * WIDTH, WIDTH),
    f"{ATTENTION}.bias": (3 * WIDTH,),
    f"{MLP}.weight": (HIDDEN, WIDTH),
    f"{EMBEDDING}.weight": (11, WIDTH),
    "transformer.conv.weight": (5, 3, 2, 2),
    "score.weight": (4, WIDTH),
}
CONFIG = {
    "alpha_pattern": {},
    "base_model_name_or_path": "some/model",
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "layer_replication": None,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "rank_pattern": {},
    "target_modules": ["c_attn", "c_fc"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}


def values(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def write_base(folder, *, dtype=np.float32, rename=lambda name: name, **shapes):
    leaves = {
        rename(name): values(*shape, seed=i, dtype=dtype)
        for i, (name, shape) in enumerate((SHAPES | shapes).items())
    }
    leaves["steps"] = np.array([3], np.int32)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(leaves, folder / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(folder), leaves


def write_adapter(folder, tensors, *, prefix="base_model.model.", **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    (folder / "README.md").write_text("the card")
    tensors = {
        prefix + name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def linear(module, *, r=RANK, name="", dtype=np.float32, seed=100):
    rows, columns = SHAPES[f"{module}.weight"]
    return {
        f"{module}.lora_A{name}.weight": values(r, columns, seed=seed, dtype=dtype),
        f"{module}.lora_B{name}.weight": values(rows, r, seed=seed + 1, dtype=dtype),
    }


def product(tensors, scale):
    """The change that two tensors, A and B, mean."""
    a, b = (np.asarray(x, np.float64) for x in tensors.values())
    return scale * np.einsum("or,ri->oi", b, a)


def check(opened, leaves, changes, tolerance=1e-6):
    """Every leaf of the base, some with a change, and nothing else."""
    read = opened.read_all()
    assert set(read) == set(leaves)
    assert changes
    for name, leaf in leaves.items():
        assert (read[name].dtype, read[name].shape) == (leaf.dtype, leaf.shape), name
        if name not in changes:
            assert read[name].tobytes() == leaf.tobytes(), name
            continue
        expected = leaf.astype(np.float64) + changes[name]
        error = np.abs(read[name].astype(np.float64) - expected).max()
        assert error <= tolerance * np.abs(expected).max(), name
        assert np.abs(changes[name]).max() > 100 * tolerance, name


def refused(path, base, *parts):
    with pytest.raises(CheckpointError) as caught:
        open_adapter(path, base)
    message = str(caught.value)
    assert message.startswith(str(path))
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("name", ["", ".default"], ids=["new", "old"])
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_a_linear_layer(tmp_path, name, rslora):
    base, leaves = write_base(tmp_path / "base")
    tensors = linear(ATTENTION, name=name) | linear(MLP, name=name, seed=7)
    folder = write_adapter(tmp_path / "task", tensors, use_rslora=rslora)
    opened = open_adapter(folder, base)
    scale = ALPHA / (math.sqrt(RANK) if rslora else RANK)
    changes = {
        f"{ATTENTION}.weight": product(linear(ATTENTION), scale),
        f"{MLP}.weight": product(linear(MLP, seed=7), scale),
    }
    check(opened, leaves, changes)
    assert (opened.path, opened.name, opened.format) == (folder, "task", "hub")
    assert opened.leaves == base.leaves
    assert opened.sidecars == base.sidecars
    assert opened.metadata == {"format": "pt"}
    sizes = {file.name: size for file, size in opened.files.items()}
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert sizes == {n: (folder / n).stat().st_size for n in names} | {
        "model.safetensors": (base.path / "model.safetensors").stat().st_size
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-14), (np.float16, 1e-3), (ml_dtypes.bfloat16, 8e-3)],
    ids=["float64", "float16", "bfloat16"],
)
def test_sums_are_rounded_once_to_the_type_of_the_base(tmp_path, dtype, tolerance):
    base, leaves = write_base(tmp_path / "base", dtype=dtype)
    tensors = linear(ATTENTION, dtype=ml_dtypes.bfloat16)
    opened = open_adapter(write_adapter(tmp_path / "task", tensors), base)
    name = f"{ATTENTION}.weight"
    change = product(tensors, ALPHA / RANK)
    check(opened, leaves, {name: change}, tolerance)
    if dtype == ml_dtypes.bfloat16:
        once = (leaves[name].astype(np.float32) + change.astype(np.float32)).astype(
            dtype
        )
        assert np.mean(opened.read(name) == once) > 0.99


def test_patterns_give_ranks_and_alphas_as_in_peft(tmp_path):
    base, leaves = write_base(tmp_path / "base")
    tensors = linear(ATTENTION, r=3) | linear(MLP, seed=7)
    folder = write_adapter(
        tmp_path / "task",
        tensors,
        # The first match of an ending at a dot counts; "attn" ends no module.
        rank_pattern={"attn": 7, r"h\.\d\.attn\.c_attn": 3, "c_attn": 5},
        alpha_pattern={"^transformer.h.0.mlp.c_fc": 1, "_attn": 99},
    )
    changes = {
        f"{ATTENTION}.weight": product(linear(ATTENTION, r=3), ALPHA / 3),
        f"{MLP}.weight": product(linear(MLP, seed=7), 1 / RANK),
    }
    check(open_adapter(folder, base), leaves, changes)


def test_layers_that_store_inputs_first(tmp_path):
    shapes = {f"{ATTENTION}.weight": (WIDTH, 3 * WIDTH)}
    base, leaves = write_base(tmp_path / "base", **shapes)
    tensors = linear(ATTENTION)
    folder = write_adapter(tmp_path / "task", tensors, fan_in_fan_out=True)
    change = product(tensors, ALPHA / RANK).T
    check(open_adapter(folder, base), leaves, {f"{ATTENTION}.weight": change})
    wrong = write_adapter(tmp_path / "wrong", tensors)
    refused(wrong, base, f"{ATTENTION}.weight", "'fan_in_fan_out'")


@pytest.mark.parametrize("name", ["", ".default"])
def test_an_embedding_whose_own_table_lies_there_too(tmp_path, name):
    base, leaves = write_base(tmp_path / "base")
    a, b = values(RANK, 11, seed=1), values(WIDTH, RANK, seed=2)
    table = values(11, WIDTH, seed=3)
    tensors = {
        f"{EMBEDDING}.lora_embedding_A{name}": a,
        f"{EMBEDDING}.lora_embedding_B{name}": b,
        f"{EMBEDDING}.base_layer.weight": table,
    }
    opened = open_adapter(write_adapter(tmp_path / "task", tensors), base)
    leaves[f"{EMBEDDING}.weight"] = table
    change = ALPHA / RANK * (b.astype(np.float64) @ a).T
    check(opened, leaves, {f"{EMBEDDING}.weight": change})


def test_a_convolution(tmp_path):
    base, leaves = write_base(tmp_path / "base")
    a, b = values(RANK, 3, 2, 2, seed=1), values(5, RANK, 1, 1, seed=2)
    tensors = {"transformer.conv.lora_A.weight": a, "transformer.conv.lora_B.weight": b}
    opened = open_adapter(write_adapter(tmp_path / "task", tensors), base)
    b64 = b[:, :, 0, 0].astype(np.float64)
    change = ALPHA / RANK * np.einsum("or,rihw->oihw", b64, a)
    check(opened, leaves, {"transformer.conv.weight": change})


@pytest.mark.parametrize(
    "wrapper", ["", ".modules_to_save", ".modules_to_save.default"]
)
def test_saved_modules_and_biases_replace_leaves(tmp_path, wrapper):
    base, leaves = write_base(tmp_path / "base", dtype=np.float16)
    head = values(4, WIDTH, seed=1)
    bias = values(3 * WIDTH, seed=2)
    tensors = {
        **linear(ATTENTION),
        f"{ATTENTION}.base_layer.bias": bias,
        f"score{wrapper}.weight": head,
    }
    folder = write_adapter(
        tmp_path / "task", tensors, bias="all", modules_to_save=["score"]
    )
    leaves["score.weight"] = head.astype(np.float16)
    leaves[f"{ATTENTION}.bias"] = bias.astype(np.float16)
    change = product(linear(ATTENTION), ALPHA / RANK)
    opened = open_adapter(folder, base)
    check(opened, leaves, {f"{ATTENTION}.weight": change}, 1e-3)
    assert opened.read("score.weight").dtype == np.float16


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("transformer."),
        lambda name: f"model.{name}" if name.startswith("transformer.") else name,
    ],
    ids=["less", "more"],
)
def test_a_base_with_one_prefix_less_or_more(tmp_path, rename):
    base, leaves = write_base(tmp_path / "base", rename=rename)
    tensors = linear(ATTENTION) | linear(MLP, seed=7)
    tensors["score.weight"] = values(4, WIDTH, seed=5)
    opened = open_adapter(write_adapter(tmp_path / "task", tensors), base)
    leaves["score.weight"] = tensors["score.weight"]
    changes = {
        rename(f"{ATTENTION}.weight"): product(linear(ATTENTION), ALPHA / RANK),
        rename(f"{MLP}.weight"): product(linear(MLP, seed=7), ALPHA / RANK),
    }
    check(opened, leaves, changes)


def test_two_tensors_for_one_leaf_are_refused(tmp_path):
    def rename(name):
        return name.removeprefix("transformer.")

    base, _ = write_base(tmp_path / "base", rename=rename)
    tensors = linear(ATTENTION) | {
        "score.weight": values(4, WIDTH),
        "transformer.score.weight": values(4, WIDTH),
    }
    folder = write_adapter(tmp_path / "task", tensors)
    refused(folder, base, "transformer.score.weight: the base has no such leaf")


def test_an_ending_that_two_leaves_have_is_not_guessed(tmp_path):
    base, _ = write_base(
        tmp_path / "base", **{"a.0.q.weight": (4, 4), "b.0.q.weight": (4, 4)}
    )
    tensors = {"0.q.lora_A.weight": values(2, 4), "0.q.lora_B.weight": values(4, 2)}
    folder = write_adapter(tmp_path / "task", tensors)
    refused(folder, base, "0.q.weight: the base has no such leaf", "'a.0.q.weight'")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_of_a_leaf_is_what_lies_in_the_whole(tmp_path, monkeypatch, transposed):
    from centermerge_jax.checkpoints import adapters

    size, rank = (200, 133), 64  # sums whose rounding depends on the block
    monkeypatch.setattr(adapters, "_BLOCK", 20 * size[1])  # several blocks, some cut
    shapes = dict.fromkeys(("u.weight", "v.weight", "w.weight"), size)
    base, _ = write_base(tmp_path / "base", **shapes)
    order = -1 if transposed else 1
    rows, columns = size[::order]
    tensors = {
        "w.lora_A.weight": values(rank, columns, seed=1),
        "w.lora_B.weight": values(rows, rank, seed=2),
        "v.weight": values(*size, seed=3),
    }
    folder = write_adapter(
        tmp_path / "task", tensors, fan_in_fan_out=transposed, r=rank
    )
    opened = open_adapter(folder, base)
    for name in ("w.weight", "v.weight", "u.weight"):
        whole = opened.read(name).reshape(-1)
        for start, stop in [(0, 7), (13, 14), (5, whole.size - 1), (26470, 26600)]:
            pieces = [Piece(name, start, stop, (stop - start,))]
            ((_, part),) = opened.read_pieces(pieces)
            assert part.tobytes() == whole[start:stop].tobytes(), (name, start, stop)


def test_a_base_that_cannot_be_read_in_parts_is_read_whole(tmp_path):
    import orbax.checkpoint as ocp

    tree = {"dense.weight": values(6, 4), "dense.bias": values(6)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "base", tree)
    base = open_checkpoint(tmp_path / "base")
    tensors = {"dense.lora_A.weight": values(2, 4), "dense.lora_B.weight": values(6, 2)}
    folder = write_adapter(tmp_path / "task", tensors)
    opened = open_adapter(folder, base)
    assert opened.fetch_range is None
    change = product(tensors, ALPHA / RANK)
    check(opened, tree, {"dense.weight": change})


def test_factors_without_a_base(tmp_path):
    base, _ = write_base(tmp_path / "base")
    tensors = linear(ATTENTION)
    conv = {
        "transformer.conv.lora_A.weight": values(RANK, 3, 2, 2, seed=1),
        "transformer.conv.lora_B.weight": values(5, RANK, 1, 1, seed=2),
    }
    folder = write_adapter(tmp_path / "task", tensors | conv, fan_in_fan_out=True)
    found = read_factors(folder, base.leaves)
    assert set(found) == {f"{ATTENTION}.weight", "transformer.conv.weight"}
    factors = found[f"{ATTENTION}.weight"]
    np.testing.assert_array_equal(factors.a, tensors[f"{ATTENTION}.lora_A.weight"])
    assert (factors.scale, factors.transposed) == (ALPHA / RANK, True)
    left, right = factors.pair()
    expected = product(tensors, ALPHA / RANK).T
    np.testing.assert_allclose(left @ right, expected, rtol=1e-5, atol=1e-5)
    left, right = found["transformer.conv.weight"].pair(np.float64)
    assert (left.shape, right.shape, left.dtype) == ((5, 2), (2, 12), np.float64)

    tensors["score.weight"] = values(4, WIDTH)
    folder = write_adapter(tmp_path / "other", tensors)
    with pytest.raises(CheckpointError, match=r"score.weight is replaced"):
        read_factors(folder, base.leaves)


def test_what_is_an_adapter(tmp_path):
    base, _ = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "task", linear(ATTENTION))
    assert is_adapter(folder)
    assert not is_adapter(base.path)
    assert not is_adapter(folder / "adapter_config.json")
    assert not is_adapter(tmp_path / "missing")


SETTINGS = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no method": ({"peft_type": None}, "peft_type is None"),
    "dora": ({"use_dora": True}, "DoRA"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["w"]}, "target_parameters"),
    "bias of factors": ({"lora_bias": True}, "lora_bias"),
    "pissa": ({"init_lora_weights": "pissa_niter_16"}, "changed base"),
    "loftq": ({"init_lora_weights": "loftq"}, "changed base"),
    "no rank": ({"r": None}, "r is None"),
    "rank 0": ({"r": 0}, "r is 0"),
    "rank true": ({"r": True}, "r is True"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is None"),
    "alpha nan": ({"lora_alpha": math.nan}, "lora_alpha is nan"),
    "alpha infinite": ({"lora_alpha": math.inf}, "lora_alpha is inf"),
    "rank in pattern": ({"rank_pattern": {"x": 0}}, "'x' is 0"),
    "alpha in pattern": ({"alpha_pattern": {"x": math.nan}}, "'x' is nan"),
    "pattern": ({"rank_pattern": {"(": 2}}, "'('"),
    "patterns": ({"rank_pattern": [2]}, "not an object"),
    "switch": ({"use_rslora": "yes"}, "neither true nor false"),
}


@pytest.mark.parametrize(("config", "part"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_are_refused(tmp_path, config, part):
    base, _ = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "task", linear(ATTENTION), **config)
    refused(folder, base, "adapter_config.json", part)


A, B = f"{ATTENTION}.lora_A.weight", f"{ATTENTION}.lora_B.weight"
TENSORS = {
    "no B": ({A: values(2, WIDTH)}, [A, "lora_B is missing"]),
    "no A": ({B: values(18, 2)}, [B, "lora_A is missing"]),
    "magnitudes": (
        linear(ATTENTION) | {f"{ATTENTION}.lora_magnitude_vector": values(18)},
        ["lora_magnitude_vector: is not understood"],
    ),
    "bias of B": (
        linear(ATTENTION) | {f"{ATTENTION}.lora_B.bias": values(18)},
        ["lora_B.bias: is not understood"],
    ),
    "unknown leaf": (
        {"transformer.h.0.mlp.c_fcc.weight": values(HIDDEN, WIDTH)},
        ["c_fcc.weight: the base has no such leaf", f"did you mean '{MLP}.weight'"],
    ),
    "two unknown": (
        {"x.weight": values(2), "y.original_module.weight": values(2)},
        ["2 problems", "x.weight", "y.original_module.weight"],
    ),
    "twice": (
        linear(ATTENTION) | linear(ATTENTION, name=".default"),
        ["says the same"],
    ),
    "wrong rank": (linear(ATTENTION, r=3), ["the rank of 2"]),
    "rank of A": ({A: values(3, WIDTH), B: values(18, 2)}, ["do not multiply"]),
    "rank of B": ({A: values(2, WIDTH), B: values(18, 3)}, ["do not multiply"]),
    "vector": ({A: values(2), B: values(18)}, ["do not multiply"]),
    "wrong out": ({A: values(2, WIDTH), B: values(17, 2)}, ["[17, 6]", "[18, 6]"]),
    "wrong head": ({"score.weight": values(5, WIDTH)}, ["score.weight", "[5, 6]"]),
    "integers": ({"score.weight": np.ones((4, WIDTH), np.int8)}, ["int8[4, 6]"]),
    "integer base": ({"steps": values(1)}, ["steps: is int32[1] in the base"]),
    "embedding and linear": (
        linear(EMBEDDING)
        | {
            f"{EMBEDDING}.lora_embedding_A": values(2, 11),
            f"{EMBEDDING}.lora_embedding_B": values(WIDTH, 2),
        },
        ["linear layer and of an embedding"],
    ),
    "nothing": ({}, ["holds no tensor"]),
}


@pytest.mark.parametrize(("tensors", "parts"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_refused(tmp_path, tensors, parts):
    base, _ = write_base(tmp_path / "base")
    refused(write_adapter(tmp_path / "task", tensors), base, *parts)


@pytest.mark.parametrize("text", ["{", "[]", b"\xff\xfe"])
def test_a_configuration_that_is_no_json_object(tmp_path, text):
    base, _ = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "task", linear(ATTENTION))
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "adapter_config.json").write_bytes(data)
    refused(folder, base, "adapter_config.json", "not")


def test_weights_that_are_missing_or_pickled(tmp_path):
    base, _ = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "task", linear(ATTENTION))
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, base, "there is no adapter_model.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"")
    refused(folder, base, "adapter_model.bin may run any code")


def test_a_change_of_one_of_two_tied_names_is_refused(tmp_path):
    base, _ = write_base(tmp_path / "base")
    tied = replace(base, tied={"lm_head.weight": f"{EMBEDDING}.weight"})
    tensors = {f"{EMBEDDING}.weight": values(11, WIDTH)}
    folder = write_adapter(tmp_path / "task", tensors)
    refused(folder, tied, f"{EMBEDDING}.weight: is also lm_head.weight")
    other = write_adapter(tmp_path / "other", linear(ATTENTION))
    assert open_adapter(other, tied).tied == tied.tied
