"""What timm computes with weights that are made by name.

Run by `make parity` in third_party/.venv-openclip:

  timm_outputs.py          compares with tests/golden
  timm_outputs.py --write  writes tests/golden
"""

import argparse

import goldens
import numpy as np
import timm
import torch
import weights

# With the height and width of the images; the second model resizes its positions.
MODELS = {
    "timm_vit_b16": ("vit_base_patch16_224.augreg_in21k_ft_in1k", (224, 224)),
    "timm_dinov2_reg4": ("vit_small_patch14_reg4_dinov2.lvd142m", (98, 126)),
}
PACKAGES = ("timm", "torch", "numpy")


@torch.inference_mode()
def outputs(model: torch.nn.Module, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Features of images, and logits if the model has a head."""
    planes = weights.images(2, *size).transpose(0, 3, 1, 2).copy()
    tokens = model.forward_features(torch.from_numpy(planes))
    arrays = {"features": model.forward_head(tokens, pre_logits=True).numpy()}
    if model.num_classes:
        arrays["logits"] = model.forward_head(tokens).numpy()
    return arrays


def check(name: str, *, write: bool) -> list[str]:
    """Compares one model with its golden, or writes that."""
    model_name, size = MODELS[name]
    model = timm.create_model(model_name, dynamic_img_size=True).eval()
    shapes = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    made = {
        key: torch.from_numpy(weights.leaf(key, shape)) for key, shape in shapes.items()
    }
    model.load_state_dict(made, strict=True)
    # What timm writes into the config.json beside the weights.
    stated = {
        key: model.pretrained_cfg[key]
        for key in ("input_size", "crop_pct", "interpolation", "mean", "std")
    }
    facts = {
        "model": model_name,
        "size": size,
        "leaves": weights.fold(shapes),
        "config": {"architecture": model_name, "pretrained_cfg": stated},
    }
    return goldens.keep(name, outputs(model, size), facts, packages=PACKAGES, write=write)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tests/golden")
    chosen = parser.parse_args()
    faults: list[str] = []
    for name in MODELS:
        faults += check(name, write=chosen.write)
    goldens.finish(faults)


if __name__ == "__main__":
    main()
