"""Quantised checkpoints, in the names and types of the libraries that write them."""

import json

import ml_dtypes
import numpy as np
import pytest
from disk import write_hub
from safetensors.numpy import save_file

import centermerge_jax as cm
from centermerge_jax.checkpoints import open_checkpoint, quantisation
from centermerge_jax.cli import main
from centermerge_jax.named_models import read_model
from centermerge_jax.planning import plan
from centermerge_jax.recipe import Recipe

LINEAR = "model.layers.0.mlp.down_proj"
FP8, FP4 = ml_dtypes.float8_e4m3fn, np.uint8


def leaves(**changes):
    """A model with one linear layer; changes by what follows its name."""
    found = {"model.norm.weight": np.ones(8, np.float32)}
    return found | {f"{LINEAR}.{name}": x for name, x in changes.items()}


def zeros(shape, dtype):
    return np.zeros(shape, dtype)


PLAIN = leaves(weight=zeros((16, 8), np.float32))

FORMATS = {
    "float8 by blocks, as of DeepSeek": (
        leaves(weight=zeros((16, 8), FP8), weight_scale_inv=zeros((1, 1), np.float32)),
        "float8_e4m3fn with scales: model.layers.0.mlp.down_proj.weight_scale_inv",
    ),
    "float8 by channels, as of llm-compressor": (
        leaves(
            weight=zeros((16, 8), FP8),
            weight_scale=zeros((16, 1), ml_dtypes.bfloat16),
            input_scale=zeros(1, ml_dtypes.bfloat16),
        ),
        "float8_e4m3fn with scales: model.layers.0.mlp.down_proj.weight_scale",
    ),
    "float8 of diffusion models": (
        leaves(weight=zeros((16, 8), FP8), scale_weight=zeros((), np.float32))
        | {"scaled_fp8": zeros(2, FP8)},
        "float8_e4m3fn with scales: model.layers.0.mlp.down_proj.scale_weight",
    ),
    "int8 of llm-compressor": (
        leaves(weight=zeros((16, 8), np.int8), weight_scale=zeros((16, 1), np.float32)),
        "int8 with scales: model.layers.0.mlp.down_proj.weight_scale",
    ),
    "four bits of llm-compressor": (
        leaves(
            weight_packed=zeros((16, 1), np.int32),
            weight_scale=zeros((16, 1), np.float32),
            weight_shape=np.int64([16, 8]),
        ),
        "compressed-tensors, packed: model.layers.0.mlp.down_proj.weight_packed",
    ),
    "NVFP4": (
        leaves(
            weight=zeros((16, 4), FP4),
            weight_scale=zeros((16, 1), FP8),
            weight_scale_2=zeros((), np.float32),
        ),
        "uint8 with scales: model.layers.0.mlp.down_proj.weight_scale",
    ),
    "MXFP4": (
        leaves(
            gate_up_proj_blocks=zeros((2, 16, 1, 4), FP4),
            gate_up_proj_scales=zeros((2, 16, 1), FP4),
        ),
        "blocks with common scales, as in MXFP4: model.layers.0.mlp.down_proj.gate",
    ),
    "bitsandbytes, 4 bits": (
        leaves(weight=zeros((64, 1), FP4))
        | {
            f"{LINEAR}.weight.absmax": zeros(2, np.uint8),
            f"{LINEAR}.weight.nested_absmax": zeros(1, np.float32),
            f"{LINEAR}.weight.nested_quant_map": zeros(256, np.float32),
            f"{LINEAR}.weight.quant_map": zeros(16, np.float32),
            f"{LINEAR}.weight.quant_state.bitsandbytes__nf4": zeros(80, np.uint8),
        },
        "bitsandbytes, 4 bits: model.layers.0.mlp.down_proj.weight.absmax",
    ),
    "bitsandbytes, 8 bits": (
        leaves(
            weight=zeros((16, 8), np.int8),
            SCB=zeros(16, np.float32),
            weight_format=zeros((), np.uint8),
        ),
        "bitsandbytes, 8 bits: model.layers.0.mlp.down_proj.SCB",
    ),
    "GPTQ": (
        leaves(
            qweight=zeros((1, 16), np.int32),
            qzeros=zeros((1, 2), np.int32),
            scales=zeros((1, 16), np.float16),
            g_idx=zeros(8, np.int32),
        ),
        "GPTQ or AWQ: model.layers.0.mlp.down_proj.qweight",
    ),
    "AWQ": (
        leaves(
            qweight=zeros((8, 2), np.int32),
            qzeros=zeros((1, 2), np.int32),
            scales=zeros((1, 16), np.float16),
        ),
        "GPTQ or AWQ: model.layers.0.mlp.down_proj.qweight",
    ),
    "HQQ": (
        leaves(W_q=zeros((8, 8), FP4), scale=zeros((16, 1), np.float16)),
        "HQQ: model.layers.0.mlp.down_proj.W_q",
    ),
    "AQLM": (
        leaves(codes=zeros((16, 1, 2), np.int8), codebooks=zeros((2, 4), np.float16)),
        "AQLM: model.layers.0.mlp.down_proj.codes",
    ),
    "quanto": (
        {
            f"{LINEAR}.weight._data": zeros((16, 8), np.int8),
            f"{LINEAR}.weight._scale": zeros((16, 1), np.float32),
        },
        "int8 with scales: model.layers.0.mlp.down_proj.weight._scale",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_quantised_leaves_are_refused(name, tmp_path):
    tensors, how = FORMATS[name]
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(PLAIN, tmp_path / "b.safetensors")
    paths = tuple(str(tmp_path / f"{x}.safetensors") for x in "ba")
    with pytest.raises(cm.CheckpointError) as error:
        plan(Recipe(experts=paths, method="weight_average"))
    message = str(error.value)
    assert message.startswith(f"{paths[1]}: is quantised ({how}")
    assert message.endswith(
        "take the weights that it was made from, before quantisation"
    )
    assert "\n" not in message


CONFIGS = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "compressed-tensors": {"text_config": {"quantization_config": {}}}
    | {"compression_config": {"quant_method": "compressed-tensors"}},
    "fp8": {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
}


@pytest.mark.parametrize("method", CONFIGS)
def test_configurations_that_say_so_are_refused(method, tmp_path):
    config = {"model_type": "llama"} | CONFIGS[method]
    path = write_hub(tmp_path / "a", PLAIN, config=config)
    with pytest.raises(cm.CheckpointError) as error:
        plan(Recipe(experts=(path, path), method="weight_average"))
    assert str(error.value).startswith(f"{path}: is quantised ({method}, says ")
    assert "if that is wrong, take the entry out of the config.json" in str(error.value)


def test_bases_are_refused_and_so_are_models_to_evaluate(tmp_path):
    tensors, _ = FORMATS["GPTQ"]
    save_file(tensors, tmp_path / "base.safetensors")
    save_file(PLAIN, tmp_path / "a.safetensors")
    base = str(tmp_path / "base.safetensors")
    told = {"method": "task_arithmetic", "scale": 1.0, "base": base}
    with pytest.raises(cm.CheckpointError, match=r"base.safetensors: is quantised"):
        plan(Recipe(experts=(str(tmp_path / "a.safetensors"),), **told))
    with pytest.raises(cm.CheckpointError, match=r"base.safetensors: is quantised"):
        read_model(base)


@pytest.mark.parametrize(
    "tensors",
    [
        PLAIN,
        leaves(weight=zeros((16, 8), FP8)),  # rounded weights, no codes
        leaves(weight=zeros((16, 8), np.float32), weight_scale=np.ones(1, np.float32)),
        leaves(scale=np.ones(8, np.float32), mask=zeros(8, np.bool_)),
        leaves(weight=zeros((16, 8), np.float32), scales=np.ones(8, np.float32)),
        leaves(codes=zeros(8, np.float32)),
        {"mask": zeros(8, np.bool_), "mask_scale": np.ones(8, np.float32)},
    ],
)
def test_weights_are_not(tensors, tmp_path):
    path = write_hub(tmp_path / "a", tensors, config={"quantization_config": None})
    assert quantisation(open_checkpoint(path)) is None


def test_a_broken_configuration_is_no_news_here(tmp_path):
    path = write_hub(tmp_path / "a", PLAIN)
    (tmp_path / "a" / "config.json").write_text("{")
    assert quantisation(open_checkpoint(path)) is None


def test_on_the_command_line(tmp_path, capsys):
    tensors, _ = FORMATS["bitsandbytes, 8 bits"]
    config = {"quantization_config": {"quant_method": "bitsandbytes"}}
    bad = write_hub(tmp_path / "bad", tensors, config=config)
    good = write_hub(tmp_path / "good", PLAIN)
    for command in ("plan", "merge"):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as status:
            main([command, good, bad, "-o", str(out), "--method", "weight_average"])
        assert status.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{bad}: is quantised (bitsandbytes, 8 bits" in said
        assert not out.exists()
    main(["inspect", bad, "--json"])
    shown = capsys.readouterr()
    assert "quantised (bitsandbytes, 8 bits" in shown.err
    assert json.loads(shown.out)["leaves"]
