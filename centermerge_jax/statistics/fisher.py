"""The diagonal of the Fisher information of a classifier."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from centermerge_jax.errors import DataError, ParameterError, listing
from centermerge_jax.progress import Report, silent
from centermerge_jax.trees import Params, compute_dtype, is_merged, named_leaves

Labels = Literal["sampled", "given"]
"""Where labels are from: one drawn from what the model says, or those of the data."""

_AT_ONCE = 2**28  # bytes of gradients of single examples that are held together


@runtime_checkable
class LabelledBatch(Protocol):
    """What is read of a batch; `data.pipeline.Batch` is one."""

    @property
    def inputs(self) -> Any:
        """What the model takes: arrays whose first axis is the items."""
        ...

    @property
    def labels(self) -> Int[np.ndarray, " b"]:
        """The right classes; anything where padded."""
        ...

    @property
    def valid(self) -> Bool[np.ndarray, " b"]:
        """False where padded: such rows count for nothing."""
        ...

    @property
    def index(self) -> Int[np.ndarray, " b"]:
        """Place of each item in the source, different for each."""
        ...


def fisher_statistics(
    apply: Callable[[Any, Any], Array],
    params: Params,
    batches: Iterable[LabelledBatch],
    *,
    key: PRNGKeyArray,
    labels: Labels = "sampled",
    progress: Report = silent,
) -> Params:
    """The mean over examples of the squared derivatives of each example's loss.

        F = 1/n sum_i (d log p(y_i | x_i) / d theta)^2,   y_i drawn from p(. | x_i)

    Squares are of single examples: the square of a batch's mean gradient is another,
    smaller number.

    Args:
      apply: `params, inputs -> logits [items, classes]`; items do not see each other.
      params: Its parameters, any tree of arrays.
      batches: Of one size, as from `data.pipeline.batches`.
      key: Typed random key. The label of an example depends on it and on the example's
        place in the source, not on how examples are batched.
      labels: `sampled` for one label from the model's own distribution, as the Fisher
        information is defined; `given` for those of the data (the empirical one).
      progress: Told what share of the batches is done, if they have a length.

    Returns:
      A tree like the parameters, of float32; leaves that are not floating as they are.

    Raises:
      ParameterError: `labels` is neither of the two.
      DataError: There is no example, a label is outside the classes, or a number is not
        finite.

    Note:
      Takes one backward pass for each example. Gradients of as many examples as fit
      into 256 MiB are held together.

    Example:
      >>> from types import SimpleNamespace
      >>> batch = SimpleNamespace(
      ...     inputs=jnp.array([[2.0], [4.0], [9.0]]),
      ...     labels=np.array([0, 1, 0]),
      ...     valid=np.array([True, True, False]),
      ...     index=np.array([0, 1, -1]),
      ... )
      >>> fisher_statistics(
      ...     lambda w, x: x @ w,
      ...     jnp.zeros((1, 2)),
      ...     [batch],
      ...     key=jax.random.key(0),
      ...     labels="given",
      ... )
      Array([[2.5, 2.5]], dtype=float32)

    References:
      Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2022,
      arXiv:2111.09832, section 3.
    """
    if labels not in get_args(Labels):
        raise ParameterError(f"labels are sampled or given; got {labels!r}")
    params = jax.tree.map(_widened, params)
    step = _step(apply, labels)
    total = len(batches) if hasattr(batches, "__len__") else None  # pyright: ignore[reportArgumentType]
    sums = jax.tree.map(_zeros, params)
    count = classes = 0
    for number, batch in enumerate(batches, start=1):
        given = jax.tree.map(
            jnp.asarray,
            {
                "inputs": batch.inputs,
                "label": batch.labels.astype(np.int32),
                "index": batch.index.astype(np.int32),
                "valid": batch.valid,
            },
        )
        if number == 1:
            classes = _classes(jax.eval_shape(apply, params, given["inputs"]), batch)
        if labels == "given":
            _check_labels(batch, classes)
        sums = step(params, given, key, sums)
        count += int(batch.valid.sum())
        if total:
            jax.block_until_ready(sums)
            progress("gradients of examples", number / total)
    if not count:
        raise DataError("there is no example: no batches, or all of them padding")
    means = jax.tree.map(
        lambda x: x / jnp.asarray(count, x.dtype) if is_merged(x) else x, sums
    )
    _refuse_non_finite(means)
    return means


@functools.lru_cache(maxsize=4)
def _step(apply: Callable[[Any, Any], Array], labels: Labels) -> Callable[..., Any]:
    """Adds the squares of one batch; compiled once for all experts."""

    def loss(
        floating: Any, rest: Any, example: dict[str, Any], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        params = jax.tree.map(
            lambda a, b: b if a is None else a, floating, rest, is_leaf=_is_none
        )
        inputs = jax.tree.map(lambda x: x[None], example["inputs"])
        logits = apply(params, inputs)[0]
        logs = jax.nn.log_softmax(logits.astype(compute_dtype(logits.dtype)))
        label = example["label"]
        if labels == "sampled":
            own = jax.random.fold_in(key, example["index"])
            label = jax.random.categorical(own, jax.lax.stop_gradient(logs))
        return -logs[label]

    def step(params: Any, batch: dict[str, Any], key: PRNGKeyArray, sums: Any) -> Any:
        floating = jax.tree.map(lambda x: x if is_merged(x) else None, params)
        rest = jax.tree.map(lambda x: None if is_merged(x) else x, params)
        gradient = jax.vmap(jax.grad(loss), in_axes=(None, None, 0, None))

        def turn(sums: Any, some: dict[str, Any]) -> tuple[Any, None]:
            gradients = gradient(floating, rest, some, key)
            return jax.tree.map(
                lambda total, g: total if g is None else total + _squares(g, some),
                sums,
                gradients,
                is_leaf=_is_none,
            ), None

        items = batch["valid"].size
        numbers = sum(x.size for x in jax.tree.leaves(floating))
        most = max(1, _AT_ONCE // (4 * max(1, numbers)))
        together = next(n for n in range(min(items, most), 0, -1) if items % n == 0)
        chunks = jax.tree.map(
            lambda x: x.reshape(items // together, together, *x.shape[1:]), batch
        )
        return jax.lax.scan(turn, sums, chunks)[0]

    return jax.jit(step, donate_argnums=3)


def _squares(gradients: Float[Array, "b ..."], some: dict[str, Any]) -> Array:
    """The sum of squares over examples that are no padding."""
    valid = some["valid"].reshape(-1, *[1] * (gradients.ndim - 1))
    # Not a product: what is padded may be no number.
    return jnp.where(valid, gradients * gradients, jnp.zeros_like(gradients)).sum(0)


def _widened(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(compute_dtype(leaf.dtype)) if is_merged(leaf) else leaf


def _zeros(leaf: Array) -> Array:
    return jnp.zeros_like(leaf) if is_merged(leaf) else leaf


def _is_none(x: Any) -> bool:
    return x is None


def _classes(logits: Any, batch: LabelledBatch) -> int:
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != batch.valid.size:
        raise ParameterError(
            f"the model gives an array {list(shape)} for {batch.valid.size} items; "
            "logits [items, classes] are needed"
        )
    return shape[1]


def _check_labels(batch: LabelledBatch, classes: int) -> None:
    labels = batch.labels[batch.valid]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise DataError(f"label {wrong[0]} is outside the {classes} classes")


def _refuse_non_finite(means: Params) -> None:
    problems = [
        name
        for name, leaf in named_leaves(means).items()
        if is_merged(leaf) and not math.isfinite(float(jnp.sum(leaf)))
    ]
    if problems:
        header = "{n} leaf name{s} with derivatives that are not finite"
        raise DataError(listing(header, problems))
