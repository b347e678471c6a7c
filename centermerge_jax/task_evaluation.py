"""A model on disk, its heads, and tasks: what `centermerge evaluate` puts together.

An `Encoder` is a model as an evaluator needs it: what has to be done to the inputs, and
a pure function from them to features. The head of a task makes logits of those.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from centermerge_jax.convert import LoadedModel, load_model
from centermerge_jax.data import preprocess
from centermerge_jax.data.cache import Repeatable
from centermerge_jax.data.examples import Source, Subset
from centermerge_jax.data.pipeline import Batches, batches
from centermerge_jax.data.preprocess import Preprocessing
from centermerge_jax.data.registry import class_names, find
from centermerge_jax.data.sources import Split, carve, open_source
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.data.tokenizers import Tokenizer, load_tokenizer
from centermerge_jax.errors import DataError, ParameterError
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
    "half": Preprocessing(resized=248, mean=_HALF, std=_HALF),
}
"""By name; `half` is that of the AugReg vision transformers in timm at 224 pixels."""

_USUAL = {"openclip": "clip", "hf-clip": "clip", "hf-dinov2": "dino", "timm": "half"}
_LONGEST = 128  # tokens of a text, as the GLUE tasks are evaluated


@dataclass(frozen=True)
class Encoder:
    """A model as an evaluator needs it.

    Attributes:
      features: By their length, which a head chooses; the usual ones first. All models
        of one shape have the same functions, so that each is compiled once.
      preparation: What is done to the inputs on the host.
    """

    features: Mapping[int, Features]
    preparation: Preprocessing | Tokenizer

    @property
    def usual(self) -> Features:
        """The features where no head chooses."""
        return next(iter(self.features.values()))


def encoder(
    model: LoadedModel,
    *,
    preprocessing: str | None = None,
    size: int | None = None,
    tokenizer: str | Path | None = None,
) -> Encoder:
    """What a model needs and gives.

    Args:
      model: From `load_model`.
      preprocessing: Name of one of `PREPROCESSINGS`, for models of images; by default
        what timm's `config.json` says, or what is usual in the model's family.
      size: Side of the images in pixels; by default that of the stored positions, and
        224 for DINOv2, as it is evaluated.
      tokenizer: What `load_tokenizer` opens, for models of text; the files beside the
        weights by default.

    Raises:
      ParameterError: There is no such preprocessing, or none is usual.
      CheckpointError: There is no tokeniser.
    """
    config = model.config
    if isinstance(config, CLIPConfig | ViTConfig):
        vision = config.vision if isinstance(config, CLIPConfig) else config
        pixels = _pixels(model, preprocessing)
        usual = pixels.size if pixels is preprocess.DINO else vision.grid * vision.patch
        pixels = pixels.at(size or usual)
        return Encoder(_image_features(config, pixels), pixels)
    tokens = load_tokenizer(
        tokenizer or model.checkpoint.path,
        context=min(config.context, _LONGEST),
        vocabulary=config.vocabulary,
    )
    return Encoder({config.width: _text_features(config)}, tokens)


def _pixels(model: LoadedModel, name: str | None) -> Preprocessing:
    stated = model.settings.get("pretrained_cfg")
    if name is None and isinstance(stated, Mapping):
        return _of_timm(stated)
    if name is None:
        is_clip = isinstance(model.config, CLIPConfig)
        name = "clip" if is_clip else _USUAL.get(model.family)
    known = ", ".join(PREPROCESSINGS)
    if name is None:
        raise ParameterError(
            f"how images are prepared is not known for {model.family} names: give "
            f"--preprocessing, one of {known}"
        )
    if name not in PREPROCESSINGS:
        raise ParameterError(f"--preprocessing is one of {known}; got {name}")
    return PREPROCESSINGS[name]


def _of_timm(stated: Mapping[str, Any]) -> Preprocessing:
    """What timm writes beside the weights of a model."""
    try:
        size = int(stated["input_size"][-1])
        return Preprocessing(
            size=size,
            resized=int(size / stated.get("crop_pct", 0.875)),
            filter=stated.get("interpolation", "bicubic"),
            mean=tuple(stated["mean"]),
            std=tuple(stated["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ParameterError(
            f"config.json: pretrained_cfg does not say how images are prepared "
            f"({error}); give --preprocessing"
        ) from error


@functools.cache
def _image_features(
    config: CLIPConfig | ViTConfig, pixels: Preprocessing
) -> Mapping[int, Features]:
    def of(run: Callable[..., Any]) -> Features:
        def features(params: Params, images: Any) -> Float[Array, "n d"]:
            normal = preprocess.normalise(images, pixels)
            dtype = jax.tree.leaves(params)[0].dtype
            return run(params, normal.astype(dtype), config=config)

        return features

    if isinstance(config, CLIPConfig):
        return {config.embed: of(clip.image_features)}
    found = {config.width: of(vit.apply)}
    if config.class_token:  # the heads of DINOv2 see more
        found[2 * config.width] = of(vit.class_and_mean)
    return found


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
    given: Sequence[str],
    model: LoadedModel,
    tasks: Sequence[TaskSpec],
    lengths: Collection[int],
) -> tuple[dict[str, Any], list[str]]:
    """The head of each task.

    Args:
      given: A file of zero-shot heads for all of them; or TASK=CHECKPOINT, whose linear
        head is that of a task; or nothing, where the model has a head itself.
      model: The model.
      tasks: The tasks.
      lengths: Those of features that the model can give, the usual one first.

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
        if equals and not Path(text).exists():
            spec = find(task)
            owner = load_model(path)
            found[spec.name], said = _own_head(owner, spec)
            remarks += said
            continue
        zero_shot = load_heads(text)
        own = {t.name: class_names(t.name) for t in tasks}
        digest = text_digest(model.params) if "text" in model.params else None
        embed = next(iter(lengths))
        remarks += check_heads(zero_shot, own, embed=embed, digest=digest)
        found |= {task: zero_shot.head(task) for task in own}
    if not given and model.head:
        for task in tasks:
            found[task.name], said = _own_head(model, task)
            remarks += said
    if missing := [task.name for task in tasks if not found.get(task.name)]:
        raise ParameterError(
            f"no head for {', '.join(missing)}: --heads FILE, from `centermerge "
            "heads`, or --heads TASK=CHECKPOINT"
        )
    if unused := found.keys() - {task.name for task in tasks}:
        raise ParameterError(
            f"a head is given for {', '.join(sorted(unused))}, no task"
        )
    for name, head in found.items():
        if heads.length(head) not in lengths:
            known = " or ".join(map(str, lengths))
            raise ParameterError(
                f"{name}: the head is for features of length {heads.length(head)}, "
                f"the model's have {known}"
            )
    return {task.name: found[task.name] for task in tasks}, remarks


def _own_head(model: LoadedModel, task: TaskSpec) -> tuple[Any, list[str]]:
    """The head of a checkpoint, with its classes in the order of the task's labels."""
    head, note = dict(model.head), f"{task.name}: {task.note}" if task.note else ""
    if isinstance(model.config, CLIPConfig) and head:
        # As the task-vector repositories apply it: to normalised features.
        head["logit_scale"] = np.float32(0)
    stated = model.settings.get("id2label") or {}
    theirs = [str(stated[key]).casefold() for key in sorted(stated, key=int)]
    ours = [name.casefold() for name in class_names(task.name)]
    if sorted(theirs) == sorted(ours):
        order = np.array([theirs.index(name) for name in ours])
        return _reordered(head, order), []
    return head, [note] if note else []


def _reordered(head: Mapping[str, Any], order: Int[np.ndarray, " classes"]) -> Any:
    """A head whose outputs are in another order."""
    if "out" in head:
        return {**head, "out": _reordered(head["out"], order)}
    moved = {
        key: np.asarray(head[key])[..., order]
        for key in ("kernel", "bias")
        if key in head
    }
    return {**head, **moved}


def open_tasks(
    tasks: Sequence[TaskSpec],
    preparation: Preprocessing | Tokenizer,
    *,
    data_dir: str | Path,
    split: Split = "test",
    limit: int | None = None,
    batch: int = 64,
    workers: int = 0,
    seed: int = 0,
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
      seed: Decides which examples a limit leaves.

    Raises:
      DataError: A task's data is not there, or damaged.
      ParameterError: A number is out of range.
    """
    if limit is not None and limit < 1:
        raise ParameterError(f"limit is at least 1; got {limit}")
    reads = "image" if isinstance(preparation, Preprocessing) else "text"
    if wrong := [task.name for task in tasks if task.kind != reads]:
        raise ParameterError(f"the model takes {reads}s: {', '.join(wrong)} has none")
    found = {}
    for task in tasks:
        source = _limited(open_source(task, split, data_dir=data_dir), limit, seed)
        with _naming(task):
            found[task.name] = batches(
                source,
                batch=batch,
                preprocessing=preparation,
                shard=(jax.process_index(), jax.process_count()),
                workers=workers,
            )
    return found


def counted(tasks: Sequence[TaskSpec], inputs: Mapping[str, Batches]) -> list[str]:
    """Remarks on tasks with another number of test examples than was published."""
    return [
        f"{task.name}: {len(inputs[task.name].source)} test examples; published "
        f"results are over {task.tests}"
        for task in tasks
        if task.tests not in (None, len(inputs[task.name].source))
    ]


@contextlib.contextmanager
def _naming(task: TaskSpec) -> Iterator[None]:
    """Errors about data say of which task."""
    try:
        yield
    except DataError as error:
        said = str(error)
        if said.startswith(task.name):
            raise
        raise DataError(f"{task.name}: {said}") from error


def evaluate_tasks(
    features: Mapping[int, Features],
    params: Params,
    tasks: Sequence[TaskSpec],
    task_heads: Mapping[str, Any],
    inputs: Mapping[str, Repeatable],
    *,
    known: Mapping[str, TaskResult] = MappingProxyType({}),
    keep: Callable[[Mapping[str, TaskResult]], None] | None = None,
    progress: Report = silent,
) -> dict[str, TaskResult]:
    """Evaluates one model on several tasks.

    Args:
      features: Of an `Encoder`, from which each head takes those of its length.
      params: The model's parameters.
      tasks: The tasks.
      task_heads: Head of each task, for `heads.apply`.
      inputs: Batches of each task, as from `open_tasks`; cached, where they are used
        more than once.
      known: Results of tasks that are not evaluated again.
      keep: Given the results of each task as soon as it is finished.
      progress: Told which task is at work, and the share of all that is done.

    Raises:
      DataError: Data is damaged, or logits are not finite.
      ParameterError: A head does not fit its task.
    """
    results = {task.name: known[task.name] for task in tasks if task.name in known}
    todo = [task for task in tasks if task.name not in known]
    total, done = sum(len(inputs[task.name]) for task in todo), 0
    for task in todo:
        size = len(inputs[task.name])

        def report(text: str, share: float, done: int = done, size: int = size):
            progress(text, (done + share * size) / total)

        with _naming(task):
            head = task_heads[task.name]
            found = evaluate_heads(
                features[heads.length(head)],
                params,
                inputs[task.name],
                {task.name: head},
                apply_head=heads.apply,
                name=task.name,
                classes=task.classes,
                metric=task.metric,
                progress=report,
            )
        results |= found
        if keep is not None:
            keep(found)
        done += size
    return {task.name: results[task.name] for task in tasks}


def _limited(source: Source, limit: int | None, seed: int) -> Source:
    if limit is None or limit >= len(source):
        return source
    return Subset(source, carve(len(source), validation=limit, seed=seed)[1])
