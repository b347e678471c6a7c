"""Gram matrices of the inputs of every matrix in a model."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from centermerge_jax.errors import DataError, ParameterError, listing
from centermerge_jax.progress import Report, silent
from centermerge_jax.statistics.matrix_inputs import fold_inputs
from centermerge_jax.trees import Params, compute_dtype

Apply = Callable[[Any, Any], Any]
"""From parameters and a batch's inputs to anything: features, logits."""


@runtime_checkable
class Batch(Protocol):
    """What is read of a batch; `data.pipeline.Batch` is one."""

    @property
    def inputs(self) -> Any:
        """What the model takes: arrays whose first axis is the items."""
        ...

    @property
    def valid(self) -> Bool[np.ndarray, " b"]:
        """False where padded: such rows count for nothing."""
        ...


def gram_statistics(
    apply: Apply,
    params: Params,
    batches: Iterable[Batch],
    *,
    leaves: Collection[str] | None = None,
    progress: Report = silent,
) -> dict[str, Array]:
    """The mean of x^T x over all inputs x of each matrix of a model.

        G = X^T X / n

    Rows of X are the tokens of all examples, or the examples where there are no tokens.
    Padded examples are left out, and padded tokens where inputs are a mapping with a
    `mask`.

    Args:
      apply: The model. Give the same function again for the next expert, and it is not
        compiled again.
      params: Its parameters, any tree of arrays.
      batches: Of one size, as from `data.pipeline.batches`.
      leaves: Names of those whose inputs are wanted; by default all that are multiplied
        with something that depends on the inputs.
      progress: Told what share of the batches is done, if they have a length.

    Returns:
      By leaf name, float32 `[in, in]`; with axes in front for the layers of a stacked
      leaf. A leaf used more than once has the mean over all its uses; one whose inputs
      are several axes has them as one, in the order that they have in the leaf.

    Raises:
      ParameterError: A wanted leaf is multiplied with nothing.
      DataError: There is no example, or a number is not finite.

    Note:
      Convolutions and embeddings have no Gram matrices here.

    Example:
      >>> from types import SimpleNamespace
      >>> batch = SimpleNamespace(
      ...     inputs=jnp.array([[1.0, 2.0], [3.0, 0.0], [7.0, 7.0]]),
      ...     valid=np.array([True, True, False]),
      ... )
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones((1, 4))}
      >>> gram_statistics(
      ...     lambda p, x: x @ p["kernel"] + p["bias"], params, [batch]
      ... )
      {'kernel': Array([[5., 1.], [1., 2.]], dtype=float32)}

    References:
      Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, 2023,
      arXiv:2212.09849, section 3.
    """
    params = jax.tree.map(jnp.asarray, params)
    step = _step(apply, None if leaves is None else frozenset(leaves))
    total = len(batches) if hasattr(batches, "__len__") else None  # pyright: ignore[reportArgumentType]
    sums: Any = None
    for number, batch in enumerate(batches, start=1):
        inputs, valid = jax.tree.map(jnp.asarray, (batch.inputs, batch.valid))
        if sums is None:
            shapes = jax.eval_shape(step, params, inputs, valid, {})
            if missing := sorted({*(leaves or ())} - shapes.keys()):
                header = "{n} leaf name{s} that no inputs are multiplied with"
                raise ParameterError(listing(header, missing))
            sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums = step(params, inputs, valid, sums)
        if total:
            jax.block_until_ready(sums)
            progress("inputs of the layers", number / total)
    if not sums:
        raise DataError("there are no inputs of any matrix: no batches, or no matrices")
    return _means(sums)


def gram_leaves(apply: Apply, params: Params, inputs: Any) -> list[str]:
    """Names of the leaves that have Gram matrices, without computing any."""

    def run(params: Params, inputs: Any) -> dict[str, Array]:
        return fold_inputs(apply, params, inputs, fold=lambda *_: jnp.zeros(()))

    return list(jax.eval_shape(run, params, inputs))


@functools.lru_cache(maxsize=4)
def _step(apply: Apply, leaves: frozenset[str] | None) -> Callable[..., Any]:
    """Adds the sums of one batch; compiled once for all experts."""

    def step(
        params: Params, inputs: Any, valid: Bool[Array, " b"], sums: Mapping[str, Any]
    ) -> dict[str, Any]:
        mask = inputs.get("mask") if isinstance(inputs, Mapping) else None

        def fold(leaf: str, x: Array, batch: int) -> Any:
            # Others are dropped, and with them what leads to them alone.
            return _sums(leaf, x, batch, valid, mask)

        found = fold_inputs(apply, params, inputs, fold=fold)
        found = {
            name: made
            for name, made in found.items()
            if leaves is None or name in leaves
        }
        return {
            name: jax.tree.map(jnp.add, sums[name], made) if sums else made
            for name, made in found.items()
        }

    return jax.jit(step, donate_argnums=3)


def _sums(
    leaf: str,
    x: Float[Array, "..."],
    batch: int,
    valid: Bool[Array, " b"],
    mask: Array | None,
) -> tuple[Float[Array, "... n n"], Int[Array, "..."]]:
    """The sum of x^T x over real rows, and their number."""
    x = x.astype(compute_dtype(x.dtype))
    shape = x.shape[batch:-1]
    real = _real(leaf, shape, valid, mask)
    rows = real.reshape(-1)
    flat = x.reshape(*x.shape[:batch], rows.size, x.shape[-1])
    keep = rows.reshape((1,) * batch + (rows.size, 1))
    # Not a product: what is padded may be no number.
    flat = jnp.where(keep, flat, jnp.zeros((), flat.dtype))
    product = jnp.matmul(
        flat.swapaxes(-1, -2), flat, precision=jax.lax.Precision.HIGHEST
    )
    return product, jnp.sum(rows.astype(jnp.int32))


def _real(
    leaf: str, shape: tuple[int, ...], valid: Bool[Array, " b"], mask: Array | None
) -> Bool[Array, "..."]:
    """Which rows of a layer's inputs are there, and not padding."""
    items = valid.size
    if mask is not None:
        seen = mask.astype(bool) & valid[:, None]
        if shape[:2] == seen.shape:
            return _spread(seen, shape)
        if shape[:1] == (seen.size,):
            return _spread(seen.reshape(-1), shape)
    if shape[:1] == (items,):
        return _spread(valid, shape)
    if shape and shape[0] % items == 0 and mask is None:  # tokens of all in a row
        return _spread(jnp.repeat(valid, shape[0] // items), shape)
    raise ParameterError(
        f"{leaf}: its inputs have the axes {list(shape)}, of which none is that of the "
        f"{items} items"
    )


def _spread(x: Bool[Array, "..."], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    return jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)


def _means(sums: Mapping[str, Any]) -> dict[str, Array]:
    means, problems = {}, []
    for name, (product, count) in sums.items():
        if not int(jnp.sum(count)):
            raise DataError("all examples are padding")
        ones = (1,) * (product.ndim - count.ndim)
        mean = product / count.reshape(count.shape + ones).astype(product.dtype)
        if not bool(jnp.isfinite(mean).all()):
            problems.append(name)
        means[name] = mean
    if problems:
        header = "{n} leaf name{s} with inputs that are not finite"
        raise DataError(listing(header, problems))
    return means
