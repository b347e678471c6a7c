"""How many images a second open_clip's ViT-B/32 encodes and classifies.

Run by `experiments/benchmarks/evaluation.py` in third_party/.venv-openclip, which reads
one line of JSON. The folder holds `images.npy` (uint8 [n, 224, 224, 3]), `labels.npy`
(int32 [n]), `head.npy` (float32 [512, classes]) and, from `openclip_outputs.py save`,
`pretrained.safetensors`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openclip_outputs
import torch
from safetensors.torch import load_file

# Statistics of the pixels that CLIP was trained on, as open_clip has them.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])


@torch.inference_mode()
def main() -> None:
    """Measures, with each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    images, labels, head = (
        torch.from_numpy(np.load(chosen.folder / f"{name}.npy"))
        for name in ("images", "labels", "head")
    )
    model = openclip_outputs.build("openclip_vit_b32")
    state = load_file(chosen.folder / "pretrained.safetensors")
    model.load_state_dict(state, strict=True)
    batches = list(
        zip(images.split(chosen.batch), labels.split(chosen.batch), strict=True)
    )
    planes = [preprocess(x) for x, _ in batches]

    def encode() -> None:
        for x in planes:
            model.encode_image(x)

    def evaluate() -> None:
        for x, y in batches:
            features = model.encode_image(preprocess(x), normalize=True)
            logits = model.logit_scale.exp() * features @ head
            (logits.argmax(dim=-1) == y).sum().item()

    record: dict[str, Any] = {"torch": torch.__version__, "rates": []}
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        model.encode_image(planes[0])
        for kind, call in (("encoder", encode), ("evaluation", evaluate)):
            rate = len(images) / seconds(call)
            line = {"kind": kind, "threads": threads, "images_per_second": rate}
            record["rates"].append(line)
    record["features"] = model.encode_image(planes[0][:2]).tolist()
    print(json.dumps(record))


def preprocess(images: torch.Tensor) -> torch.Tensor:
    """Bytes to normalised planes."""
    x = (images.float() / 255 - MEAN) / DEVIATION
    return x.permute(0, 3, 1, 2).contiguous()


def seconds(call: Callable[[], None]) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
