"""Factorisations on the CPU through NumPy and SciPy, several matrices at a time.

Outside of `jax.jit` this is several times faster than XLA's CPU back end: BLAS forms
the Gram matrix in half the operations, products run at the machine's rate, and matrices
are solved side by side, each on one thread, where threads inside of one small product
would wait for each other.
"""

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.linalg
import threadpoolctl

from centermerge_jax.host_memory import cores
from centermerge_jax.linalg.leading import NUMPY, factors, leading
from centermerge_jax.linalg.solved import Solved, workspace

_SAFE = (1e-8, 1e14)
"""Squared norms of x for which squares of its Gram matrix stay in float32's range."""

_one_solve = threading.Lock()


def solve_on_host(
    matrices: Sequence[np.ndarray],
    start: np.ndarray,
    *,
    k: int,
    solver: str,
    tolerance: float,
    dtype: Any,
    memory: int,
) -> list[Solved]:
    """The leading `k` singular triplets of each matrix `[m, n]`, in parallel.

    BLAS is held to one thread meanwhile, in the whole process; calls from several
    threads take turns.
    """
    one = functools.partial(
        _solve, k=k, solver=solver, tolerance=tolerance, start=start, dtype=dtype
    )
    itemsize = np.dtype(dtype).itemsize
    fit = max(1, memory // workspace(*matrices[0].shape, itemsize=itemsize))
    workers = min(len(matrices), fit, cores())
    with _one_solve, _blas().limit(limits=1, user_api="blas"):
        if workers == 1:
            return [one(x) for x in matrices]
        pool = ThreadPoolExecutor(workers)
        try:
            solved: list[Future[Solved]] = [pool.submit(one, x) for x in matrices]
            return [future.result() for future in solved]
        finally:
            # After Ctrl-C the matrices that nobody has begun are not begun any more.
            pool.shutdown(cancel_futures=True)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@np.errstate(all="ignore")  # what is not finite is seen in the error
def _solve(
    x: np.ndarray,
    *,
    k: int,
    solver: str,
    tolerance: float,
    start: np.ndarray,
    dtype: Any,
) -> Solved:
    x = x.astype(dtype, copy=False)
    if x.shape[0] < x.shape[1]:
        flipped = _solve(
            x.T, k=k, solver=solver, tolerance=tolerance, start=start, dtype=dtype
        )
        return flipped._replace(u=flipped.vh.T, vh=flipped.u.T)
    energy = np.vdot(x.T, x.T) if x.flags.f_contiguous else np.vdot(x, x)
    if not np.isfinite(energy) or not _SAFE[0] < energy < _SAFE[1]:
        unit = np.max(np.abs(x))
        if unit == 0 or not np.isfinite(unit):
            return _hopeless(x, k, unit)
        unit = np.exp2(np.floor(np.log2(unit))).astype(dtype)
        scaled = _solve(
            x / unit, k=k, solver=solver, tolerance=tolerance, start=start, dtype=dtype
        )
        return scaled._replace(s=scaled.s * unit)
    if solver == "exact":
        return _exact(x, k, fell_back=False)
    try:
        found = leading(
            NUMPY, x, start, energy=energy, k=k, solver=solver, tolerance=tolerance
        )
    except np.linalg.LinAlgError:
        return _exact(x, k, fell_back=True)
    u, s, vh = factors(NUMPY, x, found.vectors[:, :k])
    error = found.error
    if not error <= tolerance:
        # What is left over bounds what could be missing: small if x has a low rank.
        error = np.linalg.norm(x - (u * s) @ vh) / np.sqrt(energy)
        if not error <= tolerance:
            return _exact(x, k, fell_back=True)
    return Solved(u, s, vh, error, found.products, fell_back=False)


def _exact(x: np.ndarray, k: int, *, fell_back: bool) -> Solved:
    u, s, vh = scipy.linalg.svd(x, full_matrices=False, check_finite=False)
    error = np.finfo(x.dtype).eps * np.sqrt(x.shape[1])
    # Copies, or the whole decomposition would stay alive with its slices.
    u, s, vh = u[:, :k].copy(), s[:k].copy(), vh[:k].copy()
    return Solved(u, s, vh, x.dtype.type(error), 0, fell_back)


def _hopeless(x: np.ndarray, k: int, unit: Any) -> Solved:
    """Factors of a matrix that is zero, or not finite."""
    (m, n), value = x.shape, unit * 0
    s = np.full(k, value)
    u, vh = np.eye(m, k, dtype=x.dtype) + value, np.eye(k, n, dtype=x.dtype) + value
    return Solved(u, s, vh, value, 0, fell_back=False)
