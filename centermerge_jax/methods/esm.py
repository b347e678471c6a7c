"""ESM: task vectors in the principal directions of what they do to the outputs."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from centermerge_jax.linalg import MEMORY, Solver
from centermerge_jax.matrixwise import matrixwise, rest_scale
from centermerge_jax.methods.regmean import Grams, check_grams
from centermerge_jax.methods.tsv import an_equal_part, whitened
from centermerge_jax.scales import leaf_scales
from centermerge_jax.task_vectors import Experts, check_dtype, subtract
from centermerge_jax.transforms import truncate
from centermerge_jax.transforms.spectra import absent, beside, isometry
from centermerge_jax.trees import Params
from centermerge_jax.views import MatrixView, Views, resolve

_POWER = 2
"""Of the norms by which tasks, columns and layers are weighed."""

_SPREAD = 0.15
"""Power of the eigenvalues by which directions are weighed."""


def esm(
    experts: Experts,
    base: Params,
    *,
    grams: Grams,
    scale: Any,
    views: Views | None = None,
    solver: Solver = "auto",
    dtype: Any = None,
    memory: int = MEMORY,
) -> Params:
    """Task vectors by what they change in the outputs, weighed and made orthogonal.

        P_t   = eigenvectors of tau_t G_t tau_t^T, the leading out / tasks of them
        A_t   = P_t^T tau_t (|tau_t| / mean_t |tau_t|)^2
        U     = [P_1 ... P_T],  V = [A_1; ...; A_T], directions weighed by their
                eigenvalues^0.15, and columns of V by (norm / mean)^2
        D     = 2 mean(s_U) mean(s_V) polar(U) polar(V)
        theta = theta_0 + scale * (|D| / mean over like layers that changed)^2 D

    G_t is the mean of x^T x over the inputs x of the matrix under expert t. Matrices
    without such statistics are merged as `tsv_m` does, and the same weight by layer is
    given to them; what is no matrix is averaged.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      grams: As for `regmean`; the paper takes 32 unlabelled images of each task, and
        statistics of the MLPs' and the fused input projections of attention.
      scale: One number, or one for each leaf, as a tree prefix.
      views: Which leaves are matrices; `cm.views.auto` by default.
      solver: As for `cm.truncated_svd`.
      dtype: Type of the result; the experts' by default.
      memory: Bytes of work space.

    Raises:
      StructureError: The trees are not the same.
      ViewError: A leaf of two or more axes has no view.
      ParameterError: `scale` is out of range, or statistics do not fit.

    References:
      "Essential Subspace Merging", 2026, arXiv:2602.20208.
    """
    check_dtype(dtype)
    grams = check_grams(grams, experts)
    table = resolve(base, views)
    matrices = {leaf: view for leaf, view in table.items() if view is not None}
    known = {
        leaf: view
        for leaf, view in matrices.items()
        if all(leaf in statistics for statistics in grams.values())
    }
    tv = subtract(experts, base)
    merged: dict[str, Any] = dict(matrixwise(_essential, tv, known, given=grams))
    part = an_equal_part(experts)
    for size in {view.size for view in matrices.values()}:
        others = {
            n: v for n, v in matrices.items() if n not in known and v.size == size
        }
        if others:
            seen = {n: v if n in others else None for n, v in table.items()}
            low = truncate(
                tv, rank=part(size), views=seen, solver=solver, memory=memory
            )
            merged |= matrixwise(whitened, low, others)
    weights = _layer_weights(merged, matrices)
    scales = leaf_scales(scale, base, tv.tasks)
    leaves = []
    for (leaf, (origin, delta)), own, stored in zip(
        tv.flat().items(), scales, tv.dtypes, strict=True
    ):
        if delta is None:
            leaves.append(origin)
            continue
        factor = jnp.asarray(own, origin.dtype)
        if leaf in merged:
            whole = origin + factor * weights[leaf] * merged[leaf]
        else:
            mean = rest_scale("scaled_mean", factor, len(tv.tasks))
            whole = origin + mean * delta.sum(0)
        leaves.append(whole.astype(stored if dtype is None else dtype))
    return jax.tree.structure(tv.origin).unflatten(leaves)


def _essential(
    x: Float[Array, "tasks out in"], g: Float[Array, "tasks in in"]
) -> Float[Array, "out in"]:
    tasks, size = x.shape[:2]
    k = max(1, size // tasks)
    values, vectors = jnp.linalg.eigh(_matmul(_matmul(x, g), x.mT))
    values = values[:, ::-1][:, :k]
    # Fewer inputs than directions leave some at zero, but for rounding errors, which
    # the small power would make something of.
    least = absent(x.shape, x.dtype) * values[:, :1]
    values = jnp.where(values > least, values, 0)
    vectors = vectors[:, :, ::-1][:, :, :k]
    spread = _relative(values) ** _SPREAD
    spread = spread / _nonzero(spread.mean(-1, keepdims=True))
    norms = _relative(jnp.sqrt((x * x).sum((1, 2))))
    rows = _matmul(vectors.mT, x) * norms[:, None, None] ** _POWER
    left = beside(vectors * spread[:, None, :])
    right = (rows * spread[:, :, None]).reshape(-1, x.shape[-1])
    columns = _relative(jnp.sqrt((right * right).sum(0)))
    right = right * columns[None] ** _POWER
    return 2 * _matmul(_level(left), _level(right))


def _layer_weights(
    merged: Mapping[str, Any], views: Mapping[str, MatrixView]
) -> dict[str, Any]:
    """For each leaf the squared norm of its matrix relative to those of like layers."""
    squares: dict[str, Any] = {}
    for leaf, delta in merged.items():
        name = _matrix_name(leaf, views[leaf])
        batch = views[leaf].batch
        axes = tuple(axis for axis in range(delta.ndim) if axis not in batch)
        own = (delta * delta).sum(axes, keepdims=True)
        before = squares[name].reshape(-1) if name in squares else 0
        squares[name] = before + own.reshape(-1)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in squares:
        alike[re.sub(r"(^|[/.])[0-9]+([/.])", r"\1*\2", name, count=1)].append(name)
    weights = {}
    for names in alike.values():
        norms = [jnp.sqrt(squares[name]) for name in names]
        every = jnp.concatenate(norms)
        # A layer that was frozen is none that changed little.
        mean = every.sum() / _nonzero((every > 0).sum().astype(every.dtype))
        for name, n in zip(names, norms, strict=True):
            weights[name] = (n / _nonzero(mean)) ** _POWER
    found = {}
    for leaf, delta in merged.items():
        weight = weights[_matrix_name(leaf, views[leaf])]
        shape = [
            n if axis in views[leaf].batch else 1 for axis, n in enumerate(delta.shape)
        ]
        found[leaf] = weight.reshape(shape)
    return found


def _matrix_name(leaf: str, view: MatrixView) -> str:
    return view.join.group if view.join else leaf


def _level(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """The isometry of a matrix, as long as its singular values are on average."""
    return isometry(x)[0] * jnp.linalg.svd(x, compute_uv=False).mean()


def _relative(x: Any) -> Any:
    """Numbers along the last axis relative to their mean."""
    return x / _nonzero(x.mean(-1, keepdims=True))


def _nonzero(x: Any) -> Any:
    return jnp.where(x == 0, 1, x)


def _matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=Precision.HIGHEST)
