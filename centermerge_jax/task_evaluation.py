"""A model on disk, its heads, and tasks: what `centermerge evaluate` puts together.

An `Encoder` is a model as an evaluator needs it: what has to be done to the inputs, and
a pure function from them to features. The head of a task makes logits of those.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Float

from centermerge_jax.convert import LoadedModel, load_model
from centermerge_jax.data import preprocess
from centermerge_jax.data.cache import Repeatable
from centermerge_jax.data.examples import Source, Subset
from centermerge_jax.data.pipeline import Batches, batches
from centermerge_jax.data.preprocess import Preprocessing
from centermerge_jax.data.registry import class_names
from centermerge_jax.data.sources import Split, carve, open_source
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.data.tokenizers import Tokenizer, load_tokenizer
from centermerge_jax.errors import ParameterError
from centermerge_jax.evaluator import evaluate_heads
from centermerge_jax.models import bert, clip, gpt2, heads, vit
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.vit import Params, ViTConfig
from centermerge_jax.progress import Report, silent
from centermerge_jax.task_results import TaskResult
from centermerge_jax.zero_shot import text_digest
from centermerge_jax.zero_shot_files import check_heads, load_heads

Features = Callable[[Params, Any], Array]
"""From parameters and a batch's inputs to features `[items, d]`."""

_HALF = (0.5, 0.5, 0.5)

PREPROCESSINGS: Mapping[str, Preprocessing] = {
    "clip": preprocess.CLIP,
    "dino": preprocess.DINO,
    "imagenet": preprocess.IMAGENET,
    "half": Preprocessing(resized=256, mean=_HALF, std=_HALF),
}
"""By name; `half` is that of the AugReg vision transformers in timm."""

_USUAL = {"openclip": "clip", "hf-clip": "clip", "hf-dinov2": "dino", "timm": "half"}
_LONGEST = 128  # tokens of a text, as the GLUE tasks are evaluated


@dataclass(frozen=True)
class Encoder:
    """A model as an evaluator needs it.

    Attributes:
      features: The same function for all models of one shape, so that it is compiled
        once.
      preparation: What is done to the inputs on the host.
      width: Length of the features.
    """

    features: Features
    preparation: Preprocessing | Tokenizer
    width: int


def encoder(
    model: LoadedModel,
    *,
    preprocessing: str | None = None,
    tokenizer: str | Path | None = None,
) -> Encoder:
    """What a model needs and gives.

    Args:
      model: From `load_model`.
      preprocessing: Name of one of `PREPROCESSINGS`, for models of images; what is
        usual in the model's family by default.
      tokenizer: What `load_tokenizer` opens, for models of text; the files beside the
        weights by default.

    Raises:
      ParameterError: There is no such preprocessing, or none is usual.
      CheckpointError: There is no tokeniser.
    """
    config = model.config
    if isinstance(config, CLIPConfig | ViTConfig):
        vision = config.vision if isinstance(config, CLIPConfig) else config
        usual = "clip" if isinstance(config, CLIPConfig) else _USUAL.get(model.family)
        name = preprocessing or usual or "none"
        if name not in PREPROCESSINGS:
            known = ", ".join(PREPROCESSINGS)
            raise ParameterError(f"--preprocessing is one of {known}; got {name}")
        pixels = PREPROCESSINGS[name].at(vision.grid * vision.patch)
        width = config.embed if isinstance(config, CLIPConfig) else vision.width
        return Encoder(_image_features(config, pixels), pixels, width)
    tokens = load_tokenizer(
        tokenizer or model.checkpoint.path,
        context=min(config.context, _LONGEST),
        vocabulary=config.vocabulary,
    )
    return Encoder(_text_features(config), tokens, config.width)


@functools.cache
def _image_features(config: CLIPConfig | ViTConfig, pixels: Preprocessing) -> Features:
    run: Callable[..., Any] = (
        clip.image_features if isinstance(config, CLIPConfig) else vit.apply
    )

    def features(params: Params, images: Any) -> Float[Array, "n d"]:
        normal = preprocess.normalise(images, pixels)
        dtype = jax.tree.leaves(params)[0].dtype
        return run(params, normal.astype(dtype), config=config)

    return features


@functools.cache
def _text_features(config: BertConfig | GPT2Config) -> Features:
    def features(params: Params, tokens: Any) -> Float[Array, "n d"]:
        ids, mask = tokens["ids"], tokens["mask"]
        if isinstance(config, GPT2Config):
            return gpt2.last_token(gpt2.apply(params, ids, mask, config=config), mask)
        types = tokens.get("types") if config.types > 1 else None
        hidden = bert.apply(params, ids, mask, types=types, config=config)
        if config.position_offset:  # RoBERTa's head has its own pooler
            return hidden[:, 0]
        if config.pooler:
            return bert.pool(params, hidden)
        return bert.mean_pool(hidden, mask)

    return features


def read_heads(
    given: Sequence[str], model: LoadedModel, tasks: Sequence[TaskSpec], width: int
) -> tuple[dict[str, Any], list[str]]:
    """The head of each task.

    Args:
      given: A file of zero-shot heads for all of them; or TASK=CHECKPOINT, whose linear
        head is that of a task; or nothing, where the model has a head itself.
      model: The model.
      tasks: The tasks.
      width: Length of the model's features.

    Returns:
      Parameters for `heads.apply` by task; and remarks for the user.

    Raises:
      CheckpointError: A file cannot be read, or its heads are not those of these tasks.
      ParameterError: A task has no head.
    """
    found: dict[str, Any] = {}
    remarks: list[str] = []
    for text in given:
        task, equals, path = text.partition("=")
        if equals:
            found[task] = load_model(path).head
            continue
        zero_shot = load_heads(text)
        own = {t.name: class_names(t.name) for t in tasks}
        digest = text_digest(model.params) if "text" in model.params else None
        remarks += check_heads(zero_shot, own, embed=width, digest=digest)
        found |= {task: zero_shot.head(task) for task in own}
    if not given and model.head:
        found |= {task.name: model.head for task in tasks}
    if missing := [task.name for task in tasks if not found.get(task.name)]:
        raise ParameterError(
            f"no head for {', '.join(missing)}: --heads FILE, from `centermerge "
            "heads`, or --heads TASK=CHECKPOINT"
        )
    return {task.name: found[task.name] for task in tasks}, remarks


def open_tasks(
    tasks: Sequence[TaskSpec],
    preparation: Preprocessing | Tokenizer,
    *,
    data_dir: str | Path,
    split: Split = "test",
    limit: int | None = None,
    batch: int = 64,
    workers: int = 0,
) -> dict[str, Batches]:
    """This host's batches of several tasks, by name.

    Args:
      tasks: The tasks.
      preparation: What is done to their inputs.
      data_dir: As for `open_source`.
      split: Which examples: those for reporting or for choosing.
      limit: At most so many of them, the same ones every time.
      batch: Examples at a time on this host.
      workers: Processes that prepare them.

    Raises:
      DataError: A task's data is not there, or damaged.
      ParameterError: A number is out of range.
    """
    if limit is not None and limit < 1:
        raise ParameterError(f"limit is at least 1; got {limit}")
    return {
        task.name: batches(
            _limited(open_source(task, split, data_dir=data_dir), limit),
            batch=batch,
            preprocessing=preparation,
            shard=(jax.process_index(), jax.process_count()),
            workers=workers,
        )
        for task in tasks
    }


def evaluate_tasks(
    features: Features,
    params: Params,
    tasks: Sequence[TaskSpec],
    task_heads: Mapping[str, Any],
    inputs: Mapping[str, Repeatable],
    *,
    progress: Report = silent,
) -> dict[str, TaskResult]:
    """Evaluates one model on several tasks.

    Args:
      features: Of an `Encoder`.
      params: The model's parameters.
      tasks: The tasks.
      task_heads: Head of each task, for `heads.apply`.
      inputs: Batches of each task, as from `open_tasks`; cached, where they are used
        more than once.
      progress: Told which task is at work, and the share of all that is done.

    Raises:
      DataError: Data is damaged, or logits are not finite.
      ParameterError: A head does not fit its task.
    """
    total, done = sum(len(inputs[task.name]) for task in tasks), 0
    results = {}
    for task in tasks:
        size = len(inputs[task.name])

        def report(text: str, share: float, done: int = done, size: int = size):
            progress(text, (done + share * size) / total)

        results |= evaluate_heads(
            features,
            params,
            inputs[task.name],
            {task.name: task_heads[task.name]},
            apply_head=heads.apply,
            name=task.name,
            classes=task.classes,
            metric=task.metric,
            progress=report,
        )
        done += size
    return results


def _limited(source: Source, limit: int | None) -> Source:
    if limit is None or limit >= len(source):
        return source
    return Subset(source, carve(len(source), validation=limit)[1])
