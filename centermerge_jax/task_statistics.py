"""Statistics of experts on disk from examples of tasks: `centermerge statistics`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from centermerge_jax.checkpoints import Checkpoint
from centermerge_jax.convert import LoadedModel
from centermerge_jax.data.cache import Cached
from centermerge_jax.data.pipeline import Batches
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.errors import ParameterError
from centermerge_jax.models import families, heads
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.clip import CLIPConfig
from centermerge_jax.models.families import Kind as ModelKind
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.naming.pairs import EXTRA
from centermerge_jax.models.vit import Params
from centermerge_jax.progress import Report, silent
from centermerge_jax.statistics import (
    Labels,
    Origin,
    expert_digest,
    fisher_statistics,
    gram_statistics,
    leaf_digests,
    merged_prefix_grams,
)
from centermerge_jax.task_evaluation import Encoder
from centermerge_jax.trees import compute_dtype, is_merged, named_leaves

Stored = dict[str, np.ndarray]
"""Statistics by the leaf names of a checkpoint."""


@dataclass(frozen=True)
class TaskExpert:
    """An expert, and the examples of its task.

    Attributes:
      model: The expert.
      encoder: What runs it; the same features for all experts of one shape.
      task: Its task.
      batches: Examples of it.
      source: Which ones, for people to read.
    """

    model: LoadedModel
    encoder: Encoder
    task: TaskSpec
    batches: Batches
    source: str


def task_grams(expert: TaskExpert, *, progress: Report = silent) -> Stored:
    """Gram matrices of the inputs of all layers of an expert, in float32.

    Raises:
      DataError: Data is damaged, or a number is not finite.
    """
    params = _wide(expert.model.params)
    features = expert.encoder.usual
    found = gram_statistics(features, params, expert.batches, progress=progress)
    return stored_grams(expert.model, found)


def task_fisher(
    expert: TaskExpert,
    head: Params,
    *,
    seed: int = 0,
    labels: Labels = "sampled",
    progress: Report = silent,
) -> Stored:
    """Diagonal Fisher information of an expert: of its backbone, with the head given.

    Args:
      expert: The expert.
      head: For `heads.apply`; it is not merged, and has no Fisher information here.
      seed: Decides the labels that are drawn.
      labels: As for `fisher_statistics`.
      progress: Told what share is done.

    Raises:
      DataError: Data is damaged, or a number is not finite.
      ParameterError: `labels` is unknown.
    """
    head = _wide(head)
    features = expert.encoder.features[heads.length(head)]

    def logits(params: Params, inputs: Any) -> Any:
        return heads.apply(head, features(params, inputs))

    found = fisher_statistics(
        logits,
        _wide(expert.model.params),
        expert.batches,
        key=jax.random.key(seed),
        labels=labels,
        progress=progress,
    )
    return stored_fisher(expert.model, found)


def task_merged_grams(
    experts: Mapping[str, TaskExpert],
    *,
    progress: Report = silent,
) -> dict[str, Stored]:
    """Gram matrices of each expert's layers, behind layers that are merged already.

    Args:
      experts: By task name.
      progress: Told the block, and the share of all that is done.

    Raises:
      ParameterError: The experts are networks of different shapes.
      DataError: Data is damaged, or a number is not finite.
    """
    first = next(iter(experts.values()))
    for name, expert in experts.items():
        if expert.model.config != first.model.config:
            raise ParameterError(
                f"{name}: {expert.model.checkpoint.path} is a network of another shape "
                f"than {first.model.checkpoint.path}"
            )
    found = merged_prefix_grams(
        first.encoder.usual,
        {name: _wide(expert.model.params) for name, expert in experts.items()},
        # They are gone through once for each block.
        {name: Cached(expert.batches) for name, expert in experts.items()},
        progress=progress,
    )
    return {
        name: stored_grams(expert.model, found[name])
        for name, expert in experts.items()
    }


def origins(experts: Mapping[str, TaskExpert], kind: Any) -> dict[str, Origin]:
    """What statistics of experts are of; their leaves are read once for the digests."""
    digests = {
        name: _digests(expert.model.checkpoint) for name, expert in experts.items()
    }
    together = {}
    if kind == "merged_gram":
        together = {name: expert_digest(found) for name, found in digests.items()}
    return {
        name: Origin(
            kind=kind,
            task=expert.task.name,
            examples=len(expert.batches.source),
            source=expert.source,
            expert=str(expert.model.checkpoint.path),
            expert_sha256=digests[name],
            together=together,
        )
        for name, expert in experts.items()
    }


def _digests(checkpoint: Checkpoint) -> dict[str, str]:
    leaves = ((name, checkpoint.read(name)) for name in checkpoint.leaves)
    return leaf_digests(leaves)


def _wide(params: Params) -> Any:
    """Parameters for computing: in float32, however they are stored."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, compute_dtype(x.dtype) if is_merged(x) else None),
        params,
    )


def stored_grams(model: LoadedModel, grams: Mapping[str, Any]) -> Stored:
    """Under the names of the checkpoint.

    Queries, keys and values that it holds as one have the same inputs.
    """
    return {
        theirs: np.asarray(grams[ours[0]])
        for theirs, ours, _ in _lines(model)
        if ours[0] in grams
    }


def stored_fisher(model: LoadedModel, fisher: Params) -> Stored:
    """Under the names, and in the layout, of the checkpoint."""
    values = {name: np.asarray(leaf) for name, leaf in named_leaves(fisher).items()}
    found: Stored = {}
    for theirs, ours, layout in _lines(model):
        if all(name in values for name in ours):
            found[theirs] = layout([values[name] for name in ours])
    # The output does not depend on what the model has no use for.
    unused = [theirs for theirs, ours, _ in _lines(model) if ours[0].startswith(EXTRA)]
    leaves = model.checkpoint.leaves
    unused += [name for name in leaves if name.startswith(model.prefix + EXTRA)]
    zeros = {name: np.zeros(leaves[name].shape, np.float32) for name in unused}
    return found | {
        name: x
        for name, x in zeros.items()
        if jnp.issubdtype(leaves[name].dtype, jnp.floating)
    }


def _lines(
    model: LoadedModel,
) -> list[tuple[str, tuple[str, ...], Callable[[Any], np.ndarray]]]:
    """Of each leaf of a checkpoint its name, our names for it, and the way to it."""
    leaves = dict(model.checkpoint.leaves)
    tied = {other: leaves[name] for other, name in model.checkpoint.tied.items()}
    table = families.find(model.family, _kind(model)).table
    where = str(model.checkpoint.path)
    match = table.match(leaves | tied, prefix=model.prefix, where=where)
    return [
        (line.theirs(model.prefix), line.ours, line.pair.layout.theirs)
        for line in match.found
        if line.theirs(model.prefix) in leaves
    ]


def _kind(model: LoadedModel) -> ModelKind:
    if isinstance(model.config, CLIPConfig):
        return "clip"
    if isinstance(model.config, BertConfig):
        return "bert"
    return "gpt2" if isinstance(model.config, GPT2Config) else "vit"
