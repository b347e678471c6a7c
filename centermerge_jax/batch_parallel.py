"""Batches over the devices of a process, and rows of items from all processes.

Parameters lie whole on each device, and the items of a batch are divided among them.
Processes do not see each other's batches: each evaluates its share, and what is known
of the items is gathered at the end.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from centermerge_jax.task_results import Columns, Timing


def local_mesh() -> Mesh:
    """This process's devices in a row."""
    return Mesh(np.array(jax.local_devices()), ("items",))


def everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """A tree on all devices of the mesh; arrays that are there already stay."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def divided(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays with their rows divided among the devices, padded with zeros to do so."""
    if mesh is None:
        return tree

    def padded(x: np.ndarray) -> np.ndarray:
        short = -len(x) % mesh.size
        return np.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)) if short else x

    rows = NamedSharding(mesh, PartitionSpec("items"))
    return jax.device_put(jax.tree.map(padded, tree), rows)


def gathered(parts: Sequence[Columns]) -> dict[str, np.ndarray]:
    """The rows of all batches, and of all processes."""
    columns = {
        field: np.concatenate([part[field] for part in parts]) for field in parts[0]
    }
    # JAX gathers int64 only where it is switched on.
    for field in ("label", "index"):
        columns[field] = columns[field].astype(np.int32)
    if jax.process_count() == 1:
        return columns
    from jax.experimental.multihost_utils import process_allgather

    count = np.array([len(columns["label"])], np.int32)
    counts = np.ravel(process_allgather(count))
    longest = counts.max()

    def everybody(x: np.ndarray) -> np.ndarray:
        rows = process_allgather(np.pad(x, (0, longest - len(x))))
        return np.concatenate([r[:n] for r, n in zip(rows, counts, strict=True)])

    return {field: everybody(x) for field, x in columns.items()}


def whole_run(timing: Timing) -> Timing:
    """The slowest process's times, and everybody's items."""
    if jax.process_count() == 1:
        return timing
    from jax.experimental.multihost_utils import process_allgather

    times = np.array(
        [timing.first_seconds, timing.seconds, timing.waiting_seconds], np.float32
    )
    first, seconds, waiting = np.max(process_allgather(times), axis=0).tolist()
    items = int(np.sum(process_allgather(np.array([timing.items], np.int32))))
    return Timing(first, seconds, waiting, items)
