"""Fine-tuning one expert for each task: a frozen linear head, a moving backbone.

The head is fitted on a few labelled images of each class, as a zero-shot head knows the
classes only roughly, and then frozen: what a task teaches goes into the backbone, which
is what is merged. The first blocks are frozen too, and their output is kept.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from centermerge_jax.data.tasks import Split, Task, arrange
from centermerge_jax.demo.settings import Settings
from centermerge_jax.models import dinov2, vit
from centermerge_jax.models.vit import Params

_BATCH = 250


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the frozen blocks make of a split.

    Attributes:
      tokens: Activations after the frozen blocks.
      labels: Index of the right class.
    """

    tokens: Float[np.ndarray, "n tokens width"]
    labels: Int[np.ndarray, " n"]


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
    """The network with its frozen half bound, as jitted pure functions.

    Attributes:
      pretrained: Parameters of the blocks that are fine-tuned, before that.
    """

    def __init__(self, params: Params, settings: Settings):
        """Splits the parameters; nothing is compiled yet."""
        blocks = settings.frozen_blocks
        self._params = params
        self._frozen, self.pretrained = vit.split(params, blocks=blocks)

        def through_frozen(images: Any) -> Any:
            return dinov2.prefix(params, dinov2.preprocess(images), blocks=blocks)

        def features(trained: Params, tokens: Any) -> Any:
            whole = vit.join(self._frozen, trained)
            return dinov2.suffix(whole, tokens, blocks=blocks)

        self._through_frozen = jax.jit(through_frozen)
        self.features = features
        self._features = jax.jit(features)

    def whole(self, trained: Params) -> Params:
        """The parameters of the whole network."""
        return vit.join(self._frozen, trained)

    def tokens(self, split: Split) -> Tokens:
        """Passes images through the frozen blocks."""
        parts = _in_batches(self._through_frozen, split.images)
        return Tokens(parts, split.labels)

    def logits(self, trained: Params, head: Head) -> Callable[[Any], Any]:
        """The classifier `tokens -> logits`."""

        def predict(tokens: Any) -> Any:
            return np.asarray(self._features(trained, tokens)) @ head.kernel + head.bias

        return predict

    def all_features(self, tokens: Tokens) -> Float[np.ndarray, "n width"]:
        """Features of all items under the pretrained parameters."""
        one = functools.partial(self._features, self.pretrained)
        return _in_batches(one, tokens.tokens)


def _in_batches(function: Callable[[Any], Any], x: Any) -> Any:
    """One batch size only, so that the function compiles once."""
    parts = []
    for start in range(0, len(x), _BATCH):
        part = x[start : start + _BATCH]
        padding = [(0, _BATCH - len(part))] + [(0, 0)] * (x.ndim - 1)
        parts.append(np.asarray(function(np.pad(part, padding)))[: len(part)])
    return np.concatenate(parts)


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
    tokens: Tokens,
    head: Head,
    settings: Settings,
    *,
    progress: Callable[[float], None],
) -> Params:
    """Fine-tunes the open blocks through the frozen head; returns their parameters."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.steps // 10, settings.steps
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )

    def loss(trained: Params, x: Array, y: Array) -> Array:
        logits = backbone.features(trained, x) @ head.kernel + head.bias[None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained: Params, state: Any, x: Array, y: Array) -> tuple[Any, Any]:
        gradient = jax.grad(loss)(trained, x, y)
        change, state = optimiser.update(gradient, state, trained)
        return optax.apply_updates(trained, change), state

    trained = jax.tree.map(jnp.copy, backbone.pretrained)
    state = optimiser.init(trained)
    rng = np.random.default_rng(settings.seed)
    order = np.empty(0, int)
    for done in range(settings.steps):
        if len(order) < settings.batch:
            order = np.concatenate([order, rng.permutation(len(tokens.labels))])
        index, order = order[: settings.batch], order[settings.batch :]
        trained, state = step(
            trained, state, tokens.tokens[index], tokens.labels[index]
        )
        progress((done + 1) / settings.steps)
    return trained
