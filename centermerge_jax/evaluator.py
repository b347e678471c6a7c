"""Runs a model over a task's test items: any model, any task, any number of devices.

The model is a function `apply(params, inputs) -> logits [items, classes]`; it is jitted
once per shape. A batch is divided among this process's devices, and every process
evaluates its own share of the items: their answers are gathered at the end, so that all
processes hold the whole result. Items come back in the order of the source, however
they were batched, shuffled or shared out.

The device is kept busy: the next batch is sent before the answers to the last one are
asked for, and no more than two batches wait there.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from centermerge_jax.batch_parallel import (
    divided,
    everywhere,
    gathered,
    local_mesh,
    whole_run,
)
from centermerge_jax.errors import DataError, ParameterError
from centermerge_jax.metrics import Metric
from centermerge_jax.progress import Report, silent
from centermerge_jax.task_results import Columns, TaskResult, Timing, task_result

_AHEAD = 2  # batches on the device whose answers are not asked for yet


@runtime_checkable
class Batch(Protocol):
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


def evaluate(
    apply: Callable[[Any, Any], Array],
    params: Any,
    batches: Iterable[Batch],
    *,
    name: str,
    classes: int,
    metric: Metric = "accuracy",
    device_parallel: bool = True,
    bins: int = 15,
    progress: Report = silent,
) -> TaskResult:
    """Evaluates a model on a task.

    Args:
      apply: `params, inputs -> logits [items, classes]`. Give the same function again
        for the next task, and it is not compiled again.
      params: Its parameters; NumPy arrays are sent to the devices first.
      batches: All of one size, as from `data.pipeline.batches`; in a run of several
        processes this one's share.
      name: The task, for messages.
      classes: Number of classes.
      metric: How the task is scored.
      device_parallel: Divide each batch among the local devices. Without it everything
        runs where `params` are, which may themselves be divided.
      bins: Of the calibration error.
      progress: Told what share of the batches is done, if they have a length.

    Returns:
      The same in every process.

    Raises:
      DataError: Logits are not finite, a label is outside the classes, an item came
        twice, or there is none.
      ParameterError: The model has another number of classes.

    Example:
      >>> from types import SimpleNamespace
      >>> batch = SimpleNamespace(
      ...     inputs=np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], np.float32),
      ...     labels=np.array([0, 0, 0]),
      ...     valid=np.array([True, True, False]),
      ...     index=np.array([0, 1, -1]),
      ... )
      >>> result = evaluate(
      ...     lambda scale, x: scale * x, np.float32(1), [batch], name="t", classes=2
      ... )
      >>> result.accuracy, result.answers.confusion.tolist()
      (0.5, [[1, 1], [0, 0]])
    """
    (result,) = _evaluated(
        apply,
        params,
        batches,
        heads={name: lambda logits: logits},
        name=name,
        classes=classes,
        metric=metric,
        mesh=local_mesh() if device_parallel else None,
        bins=bins,
        progress=progress,
    ).values()
    return result


def evaluate_heads(
    features: Callable[[Any, Any], Array],
    params: Any,
    batches: Iterable[Batch],
    heads: Mapping[str, Any],
    *,
    apply_head: Callable[[Any, Array], Array],
    name: str,
    classes: int,
    metric: Metric = "accuracy",
    device_parallel: bool = True,
    bins: int = 15,
    progress: Report = silent,
) -> dict[str, TaskResult]:
    """Evaluates several heads of one model on a task; features are computed once.

    It is also the way to evaluate one model on many tasks with a head for each: the
    model is compiled once, and only the head again where the number of classes changes.

    Args:
      features: `params, inputs -> features [items, d]`.
      params: Its parameters.
      batches: As for `evaluate`.
      heads: Parameters of each head, by name.
      apply_head: `head, features -> logits [items, classes]`.
      name: The task.
      classes: Number of classes.
      metric: How the task is scored.
      device_parallel: As for `evaluate`.
      bins: Of the calibration error.
      progress: As for `evaluate`.

    Returns:
      A result for each head, by its name. All have the timing of the whole pass.

    Raises:
      DataError: As for `evaluate`.
      ParameterError: A head has another number of classes.
    """
    mesh = local_mesh() if device_parallel else None
    jitted = jax.jit(apply_head)
    placed = {key: everywhere(head, mesh) for key, head in heads.items()}
    return _evaluated(
        features,
        params,
        batches,
        heads={
            key: lambda x, head=head: jitted(head, x) for key, head in placed.items()
        },
        name=name,
        classes=classes,
        metric=metric,
        mesh=mesh,
        bins=bins,
        progress=progress,
    )


class _Items(NamedTuple):
    """What is kept of each item's logits."""

    prediction: Int32[Array, " b"]
    confidence: Float32[Array, " b"]
    loss: Float32[Array, " b"]
    finite: Bool[Array, " b"]


@jax.jit
def _judged(logits: Float[Array, "b classes"], labels: Int32[Array, " b"]) -> _Items:
    logits = logits.astype(jnp.float32)
    logs = jax.nn.log_softmax(logits)
    # A label outside the classes gives NaN; it is reported later, by its value.
    loss = -jnp.take_along_axis(logs, labels[:, None], axis=1, mode="fill")[:, 0]
    return _Items(
        prediction=logits.argmax(axis=1).astype(jnp.int32),
        confidence=jnp.exp(logs.max(axis=1)),
        loss=loss,
        finite=jnp.isfinite(logits).all(axis=1),
    )


def _evaluated(
    forward: Callable[[Any, Any], Array],
    params: Any,
    batches: Iterable[Batch],
    *,
    heads: Mapping[str, Callable[[Array], Array]],
    name: str,
    classes: int,
    metric: Metric,
    mesh: Mesh | None,
    bins: int,
    progress: Report,
) -> dict[str, TaskResult]:
    jitted, placed = jax.jit(forward), everywhere(params, mesh)

    def title(key: str) -> str:
        return name if key == name else f"{name}, head {key}"

    def judge(batch: Batch) -> dict[str, _Items]:
        inputs, labels = divided((batch.inputs, batch.labels.astype(np.int32)), mesh)
        x = jitted(placed, inputs)
        found = {}
        for key, head in heads.items():
            logits = head(x)
            if logits.ndim != 2 or logits.shape[1] != classes:
                raise ParameterError(
                    f"{title(key)}: the model gives logits {list(logits.shape)}, the "
                    f"task has {classes} classes"
                )
            found[key] = _judged(logits, labels)
        return found

    parts, timing = _run(judge, batches, name=name, progress=progress)
    timing = whole_run(timing)
    return {
        key: task_result(
            title(key), gathered(parts[key]), classes, metric, bins=bins, timing=timing
        )
        for key in heads
    }


def _run(
    judge: Callable[[Batch], dict[str, _Items]],
    batches: Iterable[Batch],
    *,
    name: str,
    progress: Report,
) -> tuple[dict[str, list[Columns]], Timing]:
    """Feeds the batches, two of them ahead of the answers that are read."""
    total = len(batches) if hasattr(batches, "__len__") else None  # pyright: ignore[reportArgumentType]
    pending: deque[tuple[Batch, dict[str, _Items]]] = deque()
    parts: dict[str, list[Columns]] = {}
    first = waiting = 0.0
    items = number = 0
    begun = asked = time.perf_counter()
    for number, batch in enumerate(batches, start=1):
        waiting += time.perf_counter() - asked
        pending.append((batch, judge(batch)))
        if number == 1:
            jax.block_until_ready(pending[0][1])
            first, waiting = time.perf_counter() - begun, 0.0
        else:
            items += int(batch.valid.sum())
        # The first is read at once: a model that gives NaN gives it there.
        while len(pending) > (_AHEAD if number > 1 else 0):
            finite = _read(*pending.popleft(), parts)
            if not finite:
                # Reported after the gathering, which all processes have to reach.
                return parts, Timing(first, 0.0, 0.0, 0)
        if total and number > 1:
            rate = items / (time.perf_counter() - begun - first)
            progress(f"{name}: {rate:.0f} items/s", number / total)
        asked = time.perf_counter()
    if not number:
        raise DataError(f"{name}: there is no batch to evaluate")
    while pending:
        _read(*pending.popleft(), parts)
    return parts, Timing(first, time.perf_counter() - begun - first, waiting, items)


def _read(
    batch: Batch, judged: Mapping[str, _Items], parts: dict[str, list[Columns]]
) -> bool:
    """Takes answers from the device, without padding; whether all were finite."""
    rows = np.flatnonzero(batch.valid)
    known = {"label": batch.labels[rows], "index": batch.index[rows]}
    good = True
    for key, items in judged.items():
        columns = {field: np.asarray(x)[rows] for field, x in items._asdict().items()}
        parts.setdefault(key, []).append({**known, **columns})
        good &= bool(columns["finite"].all())
    return good
