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

MODELS = {
    "timm_vit_b16": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "timm_dinov2_reg4": "vit_small_patch14_reg4_dinov2.lvd142m",
}
PACKAGES = ("timm", "torch", "numpy")


@torch.inference_mode()
def outputs(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Features of images of the model's own size, and logits if it has a head."""
    side = model.pretrained_cfg["input_size"][-1]
    planes = weights.images(2, side, side).transpose(0, 3, 1, 2).copy()
    tokens = model.forward_features(torch.from_numpy(planes))
    arrays = {"features": model.forward_head(tokens, pre_logits=True).numpy()}
    if model.num_classes:
        arrays["logits"] = model.forward_head(tokens).numpy()
    return arrays


def check(name: str, *, write: bool) -> list[str]:
    """Compares one model with its golden, or writes that."""
    model = timm.create_model(MODELS[name], pretrained=False).eval()
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
        "model": MODELS[name],
        "leaves": weights.fold(shapes),
        "config": {"architecture": MODELS[name], "pretrained_cfg": stated},
    }
    return goldens.keep(name, outputs(model), facts, packages=PACKAGES, write=write)


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
