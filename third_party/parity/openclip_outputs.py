"""What open_clip computes with weights that are made by name.

Run by `make parity` in third_party/.venv-openclip:

  openclip_outputs.py                          compares with tests/golden
  openclip_outputs.py --write                  writes tests/golden
  openclip_outputs.py save FOLDER --experts 2  state dicts as safetensors, for a merge
  openclip_outputs.py load FILE OUTPUT         outputs of a state dict, strictly loaded
"""

import argparse
import logging
from pathlib import Path

import goldens
import numpy as np
import open_clip
import torch
import weights
from safetensors.torch import load_file, save_file

# OpenAI's weights want their approximation of GELU, which the shorter names lack.
MODELS = {
    "openclip_vit_b32": "ViT-B-32-quickgelu",
    "openclip_vit_l14": "ViT-L-14-quickgelu",
}
PACKAGES = ("open_clip_torch", "torch", "numpy")


def build(name: str) -> torch.nn.Module:
    """A model without pretrained weights, for inference."""
    logging.disable(logging.WARNING)  # that its weights are random is intended
    return open_clip.create_model(MODELS[name], pretrained=None).eval()


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the leaves in a saved state dict."""
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


def fill(model: torch.nn.Module, *, expert: int | None = None) -> None:
    """Gives every leaf the weights of its name."""
    state = {}
    for name, shape in shapes(model).items():
        made = (
            weights.leaf(name, shape)
            if expert is None
            else weights.expert_leaf(name, shape, index=expert)
        )
        state[name] = torch.from_numpy(made)
    model.load_state_dict(state, strict=True, assign=True)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Two images, and texts of three lengths."""
    ids = weights.token_ids(
        [4, 13, 77], width=77, vocabulary=49406, start=49406, end=49407, pad=0
    )
    return weights.images(2, 224, 224), ids


@torch.inference_mode()
def outputs(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Features as they leave the projections, and logits of images against texts."""
    images, ids = inputs()
    planes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    texts = torch.from_numpy(ids)
    logits, _ = model.get_logits(planes, texts)
    return {
        "ids": ids,
        "image_features": model.encode_image(planes).numpy(),
        "text_features": model.encode_text(texts).numpy(),
        "logits": logits.numpy(),
    }


def check(*, write: bool) -> list[str]:
    """Compares all models with the goldens, or writes those."""
    faults = []
    for name in MODELS:
        model = build(name)
        fill(model)
        facts = {"model": MODELS[name], "leaves": weights.fold(shapes(model))}
        faults += goldens.keep(
            name, outputs(model), facts, packages=PACKAGES, write=write
        )
    return faults


def save(folder: Path, *, name: str, experts: int) -> None:
    """Writes the state dict of the model, and of experts fine-tuned from it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build(name)
    fill(model)
    save_file(model.state_dict(), folder / "pretrained.safetensors")
    for i in range(experts):
        fill(model, expert=i)
        save_file(model.state_dict(), folder / f"expert{i}.safetensors")


def load(file: Path, output: Path, *, name: str) -> None:
    """Loads a state dict strictly and writes the outputs as .npz."""
    model = build(name)
    model.load_state_dict(load_file(file), strict=True)
    np.savez(output, **outputs(model))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tests/golden")
    parser.add_argument("--model", choices=MODELS, default="openclip_vit_b32")
    commands = parser.add_subparsers(dest="command")
    saving = commands.add_parser("save", help="write state dicts")
    saving.add_argument("folder", type=Path)
    saving.add_argument("--experts", type=int, default=0)
    loading = commands.add_parser("load", help="load a state dict, write its outputs")
    loading.add_argument("file", type=Path)
    loading.add_argument("output", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "save":
        save(chosen.folder, name=chosen.model, experts=chosen.experts)
    elif chosen.command == "load":
        load(chosen.file, chosen.output, name=chosen.model)
    else:
        goldens.finish(check(write=chosen.write))


if __name__ == "__main__":
    main()
