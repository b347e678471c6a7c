"""All singular triplets of every matrix, once: what the measures are functions of."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from centermerge_jax.errors import ParameterError
from centermerge_jax.linalg import MEMORY, LowRank, truncated_svd
from centermerge_jax.matrixwise import joint_matrices
from centermerge_jax.task_vectors import TaskVectors
from centermerge_jax.trees import layer_of
from centermerge_jax.views import MatrixView, Views, groups, resolve


def factorise(
    tv: TaskVectors, *, views: Views | None = None, memory: int = MEMORY
) -> dict[str, LowRank]:
    """The full singular value decomposition of each matrix of each task vector.

        delta_t = u_t diag(s_t) vh_t

    Matrices are as the literature writes them, `[out, in]`, whatever the layout of the
    leaves: rows of `vh` are directions of a layer's inputs.

    Args:
      tv: Task vectors as `cm.center` or `cm.subtract` makes them.
      views: Which leaves are matrices; `cm.views.auto` by default.
      memory: Bytes of work space; the factors themselves are all held.

    Returns:
      By the name of the matrix its factors `u [tasks, out, r]`, `s [tasks, r]`,
      `vh [tasks, r, in]`, with `r = min(out, in)`, in float32 (float64 for float64
      leaves). A joined matrix is called by its leaves, with + between them; stacked
      ones by their leaf and number, such as `blocks/mlp/kernel[3]`.

    Raises:
      ParameterError: The task vectors are truncated already.
      ViewError: A leaf of two or more axes has no view.

    Example:
      >>> import jax.numpy as jnp
      >>> from centermerge_jax.task_vectors import center
      >>> experts = [{"kernel": scale * jnp.eye(2)} for scale in (1.0, 3.0)]
      >>> factorise(center(experts))["kernel"].s
      Array([[1., 1.],
             [1., 1.]], dtype=float32)
    """
    table = resolve(tv.origin, views)
    matrices = {name: view for name, view in table.items() if view is not None}
    return {place.name: x for place, x in factorised(tv, matrices, memory=memory)}


@dataclass(frozen=True)
class Place:
    """Where a matrix lies.

    Attributes:
      name: As `factorise` calls it.
      layer: The first number in its name, else its number in a stack of layers; None if
        there is neither.
    """

    name: str
    layer: int | None


def factorised(
    tv: TaskVectors,
    matrices: Mapping[str, MatrixView],
    *,
    memory: int,
    starts: Mapping[str, int] | None = None,
) -> Iterator[tuple[Place, LowRank]]:
    """As `factorise`, one matrix after the other.

    Args:
      tv: Task vectors.
      matrices: Views of the leaves that are matrices.
      memory: Bytes of work space.
      starts: By leaf, which number the first of its stacked matrices has; 0 by default.
    """
    deltas = {name: delta for name, (_, delta) in tv.flat().items()}
    if any(isinstance(deltas[name], LowRank) for name in matrices):
        raise ParameterError("these task vectors are truncated: analyse the full ones")
    dtypes = {name: deltas[name].dtype for name in matrices}
    for bundle in (names for group in groups(matrices, dtypes) for names in group):
        views = [matrices[name] for name in bundle]
        x = joint_matrices([deltas[name] for name in bundle], views)
        found = truncated_svd(x, rank=1.0, solver="exact", memory=memory)
        first = (starts or {}).get(bundle[0], 0)
        for i, place in enumerate(_places(bundle, views[0], first)):
            yield place, LowRank(found.u[:, i], found.s[:, i], found.vh[:, i])


def _places(bundle: Sequence[str], view: MatrixView, first: int) -> list[Place]:
    """The matrices of some leaves, in the order in which they are solved.

    Example:
      >>> stack = MatrixView((2, 4, 4), rows=(1,), cols=(2,), batch=(0,))
      >>> [(place.name, place.layer) for place in _places(["w"], stack, 0)]
      [('w[0]', 0), ('w[1]', 1)]
    """
    name = "+".join(bundle)
    number = layer_of(bundle[0])[1]
    places = []
    for i in range(math.prod(view.batch_shape)):
        index = [int(at) for at in np.unravel_index(i, view.batch_shape)]
        if view.batch:
            index[0] += first
        layer = number if number >= 0 else index[0] if view.batch else None
        places.append(Place(f"{name}{index}" if index else name, layer))
    return places
