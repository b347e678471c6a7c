"""What torchvision, open_clip and timm make of pictures.

Run by `make parity` in third_party/.venv-openclip:

  preprocessing_outputs.py          compares with tests/golden
  preprocessing_outputs.py --write  writes tests/golden
"""

import argparse
from collections.abc import Callable
from typing import Any

import goldens
import numpy as np
import open_clip
import timm
import torch
import torchvision
import weights
from PIL import Image
from torchvision import transforms

PACKAGES = ("torchvision", "open_clip_torch", "timm", "pillow", "torch", "numpy")
PICTURES = {
    "portrait": (640, 227),
    "landscape": (331, 500),
    "square": (257, 257),
    "tiny": (17, 9),
    "digit": (28, 28),
    "panorama": (150, 1001),
    "grey": (301, 200),
}
"""Heights and widths."""

# Places of the pixels that are kept: the corners and edges are among them.
ROWS = [0, 1, 2, 17, 50, 83, 111, 112, 149, 190, 221, 222, 223]
COLUMNS = [0, 1, 2, 23, 47, 90, 111, 112, 160, 201, 221, 222, 223]

Transform = Callable[[Image.Image], torch.Tensor]


def reference_transforms() -> dict[str, Transform]:
    """Of images for evaluation, by our names of what they are."""
    openai = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    fields = open_clip.transform.PreprocessCfg.__dataclass_fields__
    stated = {key: value for key, value in openai.items() if key in fields}
    clip = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**stated), is_train=False
    )
    augreg = timm.create_model("vit_base_patch16_224.augreg_in21k_ft_in1k")
    return {
        "clip": clip,
        # DINOv2's own repository, which is no package, writes it down like this.
        "dino": transforms.Compose(
            [
                transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        ),
        "imagenet": torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms(),
        "half": timm.data.create_transform(
            **timm.data.resolve_data_config({}, model=augreg)
        ),
    }


def outputs(transform: Transform) -> dict[str, np.ndarray]:
    """Some pixels of each picture, and the mean and deviation of all, by colour."""
    found = {}
    for name, (height, width) in PICTURES.items():
        picture = weights.picture(height, width, grey=name == "grey")
        # As data sets for classification open pictures.
        opened = Image.fromarray(picture).convert("RGB")
        pixels = transform(opened).numpy().transpose(1, 2, 0)
        found[name] = pixels[np.ix_(ROWS, COLUMNS)]
        wide = pixels.astype(np.float64)
        found[f"{name}_mean"] = wide.mean((0, 1)).astype(np.float32)
        found[f"{name}_deviation"] = wide.std((0, 1)).astype(np.float32)
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tests/golden")
    chosen = parser.parse_args()
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {"pictures": PICTURES, "rows": ROWS, "columns": COLUMNS}
    for name, transform in reference_transforms().items():
        arrays |= {f"{name}_{key}": x for key, x in outputs(transform).items()}
    goldens.finish(
        goldens.keep(
            "preprocessing", arrays, facts, packages=PACKAGES, write=chosen.write
        )
    )


if __name__ == "__main__":
    main()
