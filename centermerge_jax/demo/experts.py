"""Fine-tuning one expert for each task: a frozen linear head, a moving backbone.

The head is fitted on a few labelled images of each class, as a zero-shot head knows the
classes only roughly, and then frozen: what a task teaches goes into the backbone, which
is what is merged. The first blocks are frozen too, and their output is kept.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from centermerge_jax.data.tasks import Task, arrange
from centermerge_jax.demo.settings import Settings
from centermerge_jax.errors import ParameterError
from centermerge_jax.models import dinov2, vit
from centermerge_jax.models.vit import Params

_BATCH = 256


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the frozen blocks make of a split.

    Attributes:
      tokens: Activations after the frozen blocks: an array, or a tree of such, whose
        first axis is the items.
      labels: Index of the right class.
    """

    tokens: Any
    labels: Int[np.ndarray, " n"]

    def __getitem__(self, index: slice | Int[np.ndarray, " m"]) -> "Tokens":
        return Tokens(jax.tree.map(lambda x: x[index], self.tokens), self.labels[index])


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier of features.

    Attributes:
      kernel: Weights.
      bias: Offsets.
    """

    kernel: Float[np.ndarray, "width classes"]
    bias: Float[np.ndarray, " classes"]


class Backbone:
    """A network with its frozen half bound, as jitted pure functions.

    Attributes:
      pretrained: Parameters of the blocks that are fine-tuned, before that.
      features: `trained, tokens -> features [n, width]`, not jitted.
    """

    def __init__(
        self,
        frozen: Params,
        pretrained: Params,
        *,
        prefix: Callable[[Params, Any], Any],
        suffix: Callable[[Params, Any], Any],
    ):
        """Binds the frozen half; nothing is compiled yet.

        Args:
          frozen: Parameters that stay.
          pretrained: The others.
          prefix: `whole, inputs -> tokens`; reads frozen parameters alone.
          suffix: `whole, tokens -> features`.
        """
        self._frozen = frozen
        self.pretrained = pretrained

        def features(trained: Params, tokens: Any) -> Any:
            return suffix(vit.join(frozen, trained), tokens)

        whole = self.whole(pretrained)
        self._through_frozen = jax.jit(functools.partial(prefix, whole))
        self.features = features
        self._features = jax.jit(features)

    @classmethod
    def of_images(cls, params: Params, settings: Settings) -> "Backbone":
        """DINOv2, whose first blocks stay."""
        blocks = settings.frozen_blocks

        def prefix(whole: Params, images: Any) -> Any:
            return dinov2.prefix(whole, dinov2.preprocess(images), blocks=blocks)

        return cls(
            *vit.split(params, blocks=blocks),
            prefix=prefix,
            suffix=functools.partial(dinov2.suffix, blocks=blocks),
        )

    def whole(self, trained: Params) -> Params:
        """The parameters of the whole network."""
        return vit.join(self._frozen, trained)

    def tokens(self, inputs: Any, labels: Int[np.ndarray, " n"]) -> Tokens:
        """Passes inputs through the frozen blocks."""
        return Tokens(_in_batches(self._through_frozen, inputs), labels)

    def logits(self, trained: Params, head: Head) -> Callable[[Any], Any]:
        """The classifier `tokens -> logits`."""

        def predict(tokens: Any) -> Any:
            return np.asarray(self._features(trained, tokens)) @ head.kernel + head.bias

        return predict

    def all_features(
        self, tokens: Any, trained: Params | None = None
    ) -> Float[np.ndarray, "n width"]:
        """Features of all items, under the pretrained parameters by default."""
        params = self.pretrained if trained is None else trained
        return _in_batches(functools.partial(self._features, params), tokens)


def _in_batches(function: Callable[[Any], Any], x: Any) -> Any:
    """One batch size only, so that the function compiles once."""
    total, parts = len(jax.tree.leaves(x)[0]), []

    def padded(leaf: Any, start: int) -> Any:
        part = leaf[start : start + _BATCH]
        return np.pad(part, [(0, _BATCH - len(part))] + [(0, 0)] * (part.ndim - 1))

    for start in range(0, total, _BATCH):
        found = function(jax.tree.map(lambda leaf, at=start: padded(leaf, at), x))
        parts.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *some: np.concatenate(some)[:total], *parts)


def few_shots(task: Task, shots: int, *, seed: int) -> Int[np.ndarray, " n"]:
    """Indices of some training images, as many of each class where there are enough."""
    order = arrange(task.train.labels, seed=seed, balanced=True)
    return order[: shots * len(task.classes)]


def fit_head(
    features: Float[np.ndarray, "n width"],
    labels: Int[np.ndarray, " n"],
    *,
    classes: int,
    decay: float,
    steps: int = 100,
) -> Head:
    """Multinomial logistic regression on standardised features, by L-BFGS.

    Args:
      features: Inputs.
      labels: Index of the right class.
      classes: Number of classes.
      decay: Factor on the sum of squares of the weights.
      steps: Iterations.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    x = jnp.asarray((features - mean) / deviation)
    y = jnp.asarray(labels)

    def loss(head: dict[str, Array]) -> Array:
        logits = x @ head["kernel"] + head["bias"][None]
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return fit + decay * jnp.sum(head["kernel"] ** 2)

    solver = optax.lbfgs()
    both = optax.value_and_grad_from_state(loss)

    @jax.jit
    def solve(head: dict[str, Array]) -> dict[str, Array]:
        def step(_: Any, carry: Any) -> Any:
            head, state = carry
            value, gradient = both(head, state=state)
            change, state = solver.update(
                gradient, state, head, value=value, grad=gradient, value_fn=loss
            )
            return optax.apply_updates(head, change), state

        return jax.lax.fori_loop(0, steps, step, (head, solver.init(head)))[0]

    width = features.shape[1]
    head = solve({"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)})
    kernel = np.asarray(head["kernel"]) / deviation[:, None]
    return Head(kernel, np.asarray(head["bias"]) - mean @ kernel)


def fine_tune(
    backbone: Backbone,
    tokens: Mapping[str, Tokens],
    heads: Mapping[str, Head],
    settings: Settings,
    *,
    progress: Callable[[float], None],
) -> Params:
    """Fine-tunes the open blocks through frozen heads; returns their parameters.

    One task gives its expert. Several give joint (multi-task) training: every step has
    as many items of each, and there are as many steps for each task as for an expert,
    so that as many items are seen in all.

    Args:
      backbone: The network.
      tokens: Training items of each task.
      heads: Of each task.
      settings: Steps for each task, items a step, and the schedule.
      progress: Told the share that is done.

    Raises:
      ParameterError: A step's items cannot be divided among the tasks.
    """
    if settings.batch % len(tokens):
        raise ParameterError(
            f"a batch of {settings.batch} cannot be divided among {len(tokens)} tasks"
        )
    each, steps = settings.batch // len(tokens), settings.steps * len(tokens)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, steps // 10, steps
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )

    def loss(trained: Params, x: Any, y: Array) -> Array:
        features = backbone.features(trained, x)
        total = jnp.zeros(())
        for i, name in enumerate(tokens):
            own, head = slice(i * each, (i + 1) * each), heads[name]
            logits = features[own] @ head.kernel + head.bias[None]
            total += optax.softmax_cross_entropy_with_integer_labels(
                logits, y[own]
            ).mean()
        return total / len(tokens)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained: Params, state: Any, x: Any, y: Array) -> tuple[Any, Any]:
        gradient = jax.grad(loss)(trained, x, y)
        change, state = optimiser.update(gradient, state, trained)
        return optax.apply_updates(trained, change), state

    trained = jax.tree.map(jnp.copy, backbone.pretrained)
    state = optimiser.init(trained)
    rng = np.random.default_rng(settings.seed)
    orders = {
        name: _endless(len(part.labels), each, rng) for name, part in tokens.items()
    }
    for done in range(steps):
        parts = [tokens[name][next(order)] for name, order in orders.items()]
        x = jax.tree.map(lambda *some: np.concatenate(some), *[p.tokens for p in parts])
        y = np.concatenate([part.labels for part in parts])
        trained, state = step(trained, state, x, y)
        progress((done + 1) / steps)
    return trained


def _endless(
    count: int, size: int, rng: np.random.Generator
) -> Iterator[Int[np.ndarray, " size"]]:
    """Indices of one batch after the other, every item once before any comes again."""
    order = np.empty(0, int)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:size]
        order = order[size:]
