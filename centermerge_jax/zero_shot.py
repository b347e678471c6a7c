"""Zero-shot heads: classifiers made of the names of classes by CLIP's text encoder.

For each class, every template is filled with its name and embedded; the embeddings are
normalised, averaged, and the mean is normalised again. These are the columns of the
task's kernel. Images are classified by the logits

    exp(logit_scale) * features / |features| @ kernel.

Heads know from which class names, templates and text encoder they were made: those of
one encoder mean nothing to the images of another. `zero_shot_files` keeps them.

References:
  Radford et al., "Learning Transferable Visual Models From Natural Language
  Supervision", 2021, section 3.1.4. The order of means and normalisations is that of
  `mlfoundations/task_vectors`, whose heads the published merges were evaluated with.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from centermerge_jax.checkpoints import sha256
from centermerge_jax.data.prompts import load_prompts
from centermerge_jax.data.tokenizers import Tokens
from centermerge_jax.errors import DataError, ParameterError, listing
from centermerge_jax.models import clip, heads
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.progress import Report, silent
from centermerge_jax.trees import named_leaves


@runtime_checkable
class TextModel(Protocol):
    """What is read of a CLIP model; what `convert.load_model` returns is one."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Nested dict with `text` and `logit_scale`."""
        ...

    @property
    def config(self) -> Any:
        """Its `CLIPConfig`; other models have no text encoder and are refused."""
        ...


@runtime_checkable
class TextTokenizer(Protocol):
    """What is used of a tokeniser; `data.tokenizers.Tokenizer` is one."""

    @property
    def digest(self) -> str:
        """SHA-256 of what decides which tokens a text has."""
        ...

    def __call__(self, texts: Sequence[str], /) -> Tokens:
        """Tokens of texts, all of the same length."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What a head is made of.

    Attributes:
      classes: Names of the classes in the order of the labels.
      templates: Texts with one `{}`, the place of the name.
      source: Where names and templates are from.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    source: str = ""

    def texts(self) -> Iterator[str]:
        """All texts, class by class.

        Example:
          >>> list(Prompts(("cat", "dog"), ("a {}.", "one {}.")).texts())
          ['a cat.', 'one cat.', 'a dog.', 'one dog.']
        """
        for name in self.classes:
            for template in self.templates:
                yield template.replace("{}", name)


def published_prompts(tasks: Sequence[str]) -> dict[str, Prompts]:
    """The benchmark's own class names and templates.

    Args:
      tasks: Names in `data.registry.SUITES["clip20"]`.

    Raises:
      DataError: There are none for some task.

    Example:
      >>> prompts = published_prompts(["renderedsst2"])["renderedsst2"]
      >>> prompts.classes, next(prompts.texts())
      (('negative', 'positive'), 'a negative review of a movie.')
    """
    found = {task: load_prompts(task) for task in tasks}
    return {
        task: Prompts(one.classes, one.templates, one.source)
        for task, one in found.items()
    }


Head = Mapping[str, Any]
"""The parameters of one head: `kernel [e, classes]` and `logit_scale []`."""


@dataclass(frozen=True, eq=False)
class Heads:
    """Zero-shot heads of several tasks.

    Attributes:
      kernels: By task; columns of length one.
      prompts: What each was made of.
      logit_scale: Natural logarithm of the factor of all logits.
      text_digest: SHA-256 of the text encoder, as from `text_digest`.
      tokenizer_digest: SHA-256 of the tokeniser.
    """

    kernels: Mapping[str, Float32[np.ndarray, "e _"]]
    prompts: Mapping[str, Prompts]
    logit_scale: float
    text_digest: str
    tokenizer_digest: str

    def head(self, task: str) -> Head:
        """What `models.heads.apply` takes for a task."""
        scale = np.float32(self.logit_scale)
        return {"kernel": self.kernels[task], "logit_scale": scale}


def build_heads(
    model: TextModel,
    tokenizer: TextTokenizer,
    tasks: Mapping[str, Prompts],
    *,
    batch: int = 64,
    progress: Report = silent,
) -> Heads:
    """Makes the heads of tasks.

    Args:
      model: A CLIP model with its text encoder; computed in float32.
      tokenizer: Its tokeniser, with its context.
      tasks: Class names and templates by task.
      batch: Texts at a time; the last ones are filled up, so that one shape is
        compiled.
      progress: Told which task is at work.

    Raises:
      ParameterError: The model has no text encoder or logit scale, a task no class or
        template, or a template not one `{}`.
      DataError: An embedding is zero or not finite.
    """
    _check_prompts(tasks)
    params, config = model.params, model.config
    if not isinstance(config, CLIPConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise ParameterError(f"heads are made by a CLIP model; this one is a {kind}")
    if missing := [name for name in ("text", "logit_scale") if name not in params]:
        raise ParameterError(
            f"heads are made by the text encoder, but the model lacks "
            f"{' and '.join(missing)}: give the whole CLIP model they were cut from"
        )
    # The image encoder is not read: it stays where it is.
    text = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params["text"])
    embed = _embedding(config)
    kernels = {}
    for done, (task, prompts) in enumerate(tasks.items()):
        progress(f"heads: {task}", done / len(tasks))
        texts = list(prompts.texts())
        parts = []
        for start in range(0, len(texts), batch):
            some = texts[start : start + batch]
            ids = tokenizer([*some, *[""] * (batch - len(some))]).ids
            parts.append(embed(text, ids)[: len(some)])
        found = np.concatenate(parts).reshape(
            len(prompts.classes), len(prompts.templates), -1
        )
        kernels[task] = _kernel(task, found, prompts)
    return Heads(
        kernels=kernels,
        prompts=dict(tasks),
        logit_scale=float(np.asarray(params["logit_scale"], np.float32)),
        text_digest=text_digest(params),
        tokenizer_digest=tokenizer.digest,
    )


def _embedding(config: CLIPConfig) -> Callable[[Any, Any], Array]:
    @jax.jit
    def embed(text: Any, ids: Int32[Array, "n t"]) -> Float[Array, "n e"]:
        features = clip.text_features({"text": text}, ids, config=config)
        return heads.normalised(features)

    return embed


def _kernel(
    task: str, embeddings: Float32[np.ndarray, "classes templates e"], prompts: Prompts
) -> Float32[np.ndarray, "e classes"]:
    means = embeddings.mean(axis=1, dtype=np.float64)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if len(bad := np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))):
        raise DataError(
            f"{task}: the embeddings of {len(bad)} classes are zero or not finite "
            f"(first: {prompts.classes[bad[0]]!r}); look for NaN in the text encoder"
        )
    return np.ascontiguousarray((means / lengths).T, np.float32)


def _check_prompts(tasks: Mapping[str, Prompts]) -> None:
    problems = [] if tasks else ["no task is given"]
    for task, prompts in tasks.items():
        if not prompts.classes or not prompts.templates:
            problems.append(f"{task}: has no class, or no template")
        problems += [
            f"{task}: {template!r} has not one {{}}"
            for template in prompts.templates
            if template.count("{}") != 1
        ]
    if problems:
        raise ParameterError(listing("{n} problem{s} with prompts", problems))


def text_digest(params: Mapping[str, Any]) -> str:
    """SHA-256 of a model's text encoder.

    It is of the values in float32: storing them in another type that holds them makes
    no difference.
    """
    return tree_digest(params["text"])


def tree_digest(tree: Any) -> str:
    """SHA-256 of parameters: of names, shapes and values in float32."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        values = np.asarray(leaf).astype(np.float32)
        line = f"{name} {list(values.shape)} {sha256(values)}\n"
        digest.update(line.encode())
    return digest.hexdigest()
