"""Factorisations in `jax.numpy`: under `jax.jit`, and on GPU and TPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from centermerge_jax.linalg.leading import JAX, factors, leading
from centermerge_jax.linalg.solved import Solved, workspace


@functools.partial(
    jax.jit, static_argnames=("k", "solver", "tolerance", "memory", "dtype")
)
def solve_on_device(
    x: Float[Array, "count m n"],
    start: Float[Array, "size b"],
    *,
    k: int,
    solver: str,
    tolerance: float,
    memory: int,
    dtype: Any,
) -> Solved:
    """The leading `k` singular triplets of each matrix, as many at once as fit.

    Args:
      x: Matrices in any floating type; each chunk is widened to `dtype` by itself.
      start: Gaussian block for the iteration, at least `block_width` columns.
      k: Number of directions.
      solver: exact, gram or subspace.
      tolerance: Error above which the full decomposition is taken instead.
      memory: Bytes of work space.
      dtype: Type to compute in.
    """
    count, m, n = x.shape
    if m < n:
        flipped = solve_on_device(
            x.mT,
            start,
            k=k,
            solver=solver,
            tolerance=tolerance,
            memory=memory,
            dtype=dtype,
        )
        return flipped._replace(u=flipped.vh.mT, vh=flipped.u.mT)

    def chunk(part: Float[Array, "chunk m n"]) -> Solved:
        return _solve_chunk(
            part.astype(dtype), start, k=k, solver=solver, tolerance=tolerance
        )

    size = chunk_size(count, m, n, itemsize=np.dtype(dtype).itemsize, memory=memory)
    whole = count // size * size
    parts = x[:whole].reshape(-1, size, m, n)
    solved = jax.tree.map(
        lambda y: y.reshape(whole, *y.shape[2:]), jax.lax.map(chunk, parts)
    )
    if whole == count:
        return solved
    rest = chunk(x[whole:])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), solved, rest)


def chunk_size(count: int, m: int, n: int, *, itemsize: int, memory: int) -> int:
    """Matrices solved at once: at most what fits into `memory`, in equal chunks."""
    fit = memory // workspace(m, n, itemsize=itemsize)
    most = max(1, min(count, fit))
    return -(-count // max(1, -(-count // most))) or 1


def _solve_chunk(
    x: Float[Array, "chunk m n"],
    start: Float[Array, "n b"],
    *,
    k: int,
    solver: str,
    tolerance: float,
) -> Solved:
    if solver == "exact":
        return _exact(x, k, fell_back=False)
    # Squares of very large or small entries would leave the range of the type.
    largest = jnp.max(jnp.abs(x), axis=(1, 2))
    unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    y = x / unit[:, None, None]

    def find(z: Float[Array, "m n"]) -> tuple[Array, ...]:
        found = leading(
            JAX,
            z,
            start,
            energy=jnp.sum(z * z),
            k=k,
            solver=solver,
            tolerance=tolerance,
        )
        return *factors(JAX, z, found.vectors[:, :k]), found.error, found.products

    u, s, vh, error, products = jax.vmap(find)(y)
    # A zero matrix leaves the iteration nothing to find directions in.
    u, vh = (
        jnp.where(largest[:, None, None] == 0, jnp.eye(*z.shape[1:], dtype=z.dtype), z)
        for z in (u, vh)
    )

    def bad(error: Float[Array, " chunk"]) -> Array:
        # What is not finite cannot be helped by another solver.
        return ~(error <= tolerance) & jnp.isfinite(largest)

    def by_residual() -> Float[Array, " chunk"]:
        # What is left over bounds what could be missing: small if x has a low rank.
        left = y - JAX.matmul(u * s[:, None], vh)
        residual = jnp.linalg.norm(left, axis=(1, 2)) / jnp.linalg.norm(y, axis=(1, 2))
        return jnp.where(bad(error), residual, error)

    error = jax.lax.cond(jnp.any(bad(error)), by_residual, lambda: error)
    fell_back = bad(error)
    found = Solved(u, s, vh, error, products, fell_back)

    def by_exact() -> Solved:
        exact = _exact(y, k, fell_back=True)

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(fell_back.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        return jax.tree.map(choose, exact, found)

    solved = jax.lax.cond(jnp.any(fell_back), by_exact, lambda: found)
    return solved._replace(s=solved.s * unit[:, None])


def _exact(x: Float[Array, "chunk m n"], k: int, *, fell_back: bool) -> Solved:
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    error = np.finfo(x.dtype).eps * np.sqrt(x.shape[2])
    count = x.shape[0]
    return Solved(
        u[:, :, :k],
        s[:, :k],
        vh[:, :k],
        jnp.full(count, error, x.dtype),
        jnp.zeros(count, jnp.int32),
        jnp.full(count, fell_back),
    )
