"""Tiny random checkpoints and made images, in the formats that the real ones have.

The pretrained CLIP is a folder as Hugging Face has them, with its tokeniser; experts
are state dicts with open_clip's names behind `model.`, as the task-vector repositories
store them. Both are then brought into the layout of `docs/benchmark.md` by the commands
that it gives. Data are TFDS sets of the right names, splits, features and numbers of
classes, or image folders where the benchmark reads those.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from centermerge_jax.cli import main as centermerge
from centermerge_jax.convert import convert
from centermerge_jax.data import prompts, registry
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.models import clip
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.text import TextConfig
from centermerge_jax.models.vit import ViTConfig
from experiments.configs.table import Config

IMAGES = 12  # of each split
SIDE = 40

# A text tower that reads bytes: the end token is the last of the vocabulary.
_TEXT = TextConfig(vocabulary=514, width=64, depth=1, heads=1)

MODELS = {
    model: CLIPConfig(
        vision=ViTConfig(
            patch=patch,
            grid=32 // patch,
            width=64,
            depth=depth,
            heads=1,
            epsilon=1e-5,
            patch_bias=False,
            pre_norm=True,
            activation="quick_gelu",
        ),
        text=_TEXT,
        embed=64,
    )
    for model, patch, depth in (
        ("ViT-B-32", 16, 1),
        ("ViT-B-16", 8, 1),
        ("ViT-L-14", 16, 2),
    )
}
"""Models that stand for the real ones."""


def make(folder: Path, configs: Sequence[Config]) -> tuple[Path, Path]:
    """Makes what some configurations need.

    Args:
      folder: Where.
      configs: The configurations.

    Returns:
      Folders of the checkpoints and of the data.
    """
    tasks = registry.select(sorted({config.suite for config in configs}))
    for model in sorted({config.model for config in configs}):
        _make_model(folder, model, tasks)
    for i, task in enumerate(tasks):
        _make_data(folder / "data", task, seed=i)
    return folder / "checkpoints", folder / "data"


def _make_model(folder: Path, model: str, tasks: Sequence[TaskSpec]) -> None:
    downloads, target = folder / "downloads" / model, folder / "checkpoints" / model
    downloads.mkdir(parents=True)
    target.mkdir(parents=True)
    params = clip.init(MODELS[model], jax.random.key(0))
    leaves = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    save_file(leaves, downloads / "clip.safetensors")
    convert(downloads / "clip.safetensors", downloads / "clip", target="hf-clip")
    _write_tokenizer(downloads / "clip")
    for seed, task in enumerate(tasks):
        rng = np.random.default_rng(seed)
        own = {
            name: x + np.float32(0.02) * rng.standard_normal(x.shape, np.float32)
            for name, x in leaves.items()
            if name.startswith("visual/")
        }
        save_file(own, downloads / "flax.safetensors")
        convert(
            downloads / "flax.safetensors",
            downloads / f"{task.title}.safetensors",
            target="openclip",
            prefix="model.",
        )
        (downloads / "flax.safetensors").unlink()
        _command(
            "convert",
            downloads / f"{task.title}.safetensors",
            target / task.title,
            *("--from", "openclip", "--to", "flax", "--quiet"),
        )
    clip_folder = downloads / "clip"
    _command("convert", clip_folder, target / "zeroshot", "--to", "flax", "--quiet")
    _command(
        "heads",
        target / "zeroshot",
        *("--tokenizer", clip_folder, "--tasks", *(task.name for task in tasks)),
        *("--output", target / "heads.safetensors", "--quiet"),
    )


def _command(*words: object) -> None:
    centermerge([str(word) for word in words])


def _write_tokenizer(folder: Path) -> None:
    """CLIP's two files, with bytes for tokens and no merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + i) for i in range(len(others))]
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _make_data(data_dir: Path, task: TaskSpec, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if task.tfds is None:
        assert task.folder is not None
        _make_folders(data_dir, task, rng)
        return
    splits = {task.splits.train, task.splits.test, task.splits.validation} - {None}
    _make_tfds(data_dir, task, sorted(map(str, splits)), rng)


def _make_folders(data_dir: Path, task: TaskSpec, rng: np.random.Generator) -> None:
    """As many images of each class, in each split."""
    assert task.folder is not None
    known = prompts.load_prompts(task.name).folders
    classes = known or tuple(f"{i:05}" for i in range(task.classes))
    splits = task.folder.splits
    for split in {splits.train, splits.test, splits.validation} - {None}:
        for name in classes:
            place = data_dir / task.folder.path / str(split) / name
            place.mkdir(parents=True)
            for i in range(-(-IMAGES // len(classes))):
                (place / f"{i}.png").write_bytes(_picture(rng))


def _make_tfds(
    data_dir: Path, task: TaskSpec, splits: Sequence[str], rng: np.random.Generator
) -> None:
    import tensorflow_datasets as tfds

    name, _, configuration = str(task.tfds).partition("/")

    def info(self: Any) -> Any:
        features = {
            **{feature: tfds.features.Image() for feature in task.inputs},
            task.label: tfds.features.ClassLabel(num_classes=task.classes),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def examples() -> Iterator[tuple[str, dict[str, Any]]]:
        for i in range(IMAGES):
            pictures = {feature: _picture(rng) for feature in task.inputs}
            yield str(i), {**pictures, task.label: int(rng.integers(task.classes))}

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Noise."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (
            [tfds.core.BuilderConfig(name=configuration)] if configuration else []
        )
        _info = info

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {split: examples() for split in splits}

        def _generate_examples(self, **kwargs: Any) -> Any:
            raise NotImplementedError(kwargs)

    Made.name = name
    settings = {"config": configuration} if configuration else {}
    builder = Made(data_dir=data_dir, file_format="array_record", **settings)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def _picture(rng: np.random.Generator) -> bytes:
    from PIL import Image

    pixels = rng.integers(0, 256, (SIDE, SIDE + 8, 3), np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).save(into, "png")
    return into.getvalue()
