"""How good a truncated SVD is: `svd_report`, and `recorded_solves` for whole merges."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float, Int

_SMALL = 64  # below it all eigenvalues cost no more than Lanczos for one

_recorder: ContextVar["list[SolveRecord] | None"] = ContextVar("solves", default=None)


@dataclass(frozen=True)
class SolveRecord:
    """One batched factorisation.

    Attributes:
      matrices: How many matrices.
      m: Their rows.
      n: Their columns.
      k: Directions kept of each.
      solver: The solver that was used; `polar` for frames of several tasks that were
        made orthogonal.
      fell_back: How many of them it could not bring below the tolerance, so that they
        were decomposed fully; how many frames lack directions, as tasks share them.
      error: The largest estimated error among them.
      products: The most products with a Gram matrix that one of them took.
    """

    matrices: int
    m: int
    n: int
    k: int
    solver: str
    fell_back: int
    error: float
    products: int


@contextlib.contextmanager
def recorded_solves() -> Iterator[list[SolveRecord]]:
    """Collects a record of every factorisation made inside of the `with` block.

    Only what runs outside of `jax.jit` and in this thread is seen.

    Example:
      >>> import centermerge_jax as cm, jax.numpy as jnp
      >>> with recorded_solves() as solves:
      ...     _ = cm.truncated_svd(jnp.ones((3, 80, 70)), rank=2)
      >>> [(s.matrices, s.solver, s.fell_back) for s in solves]
      [(3, 'gram', 0)]
    """
    solves: list[SolveRecord] = []
    token = _recorder.set(solves)
    try:
        yield solves
    finally:
        _recorder.reset(token)


def record(solved: Any, *, m: int, n: int, solver: str) -> None:
    """Adds a stack of results to the record, if one is being kept."""
    solves = _recorder.get()
    if solves is not None and solved.error.size:
        solves.append(
            SolveRecord(
                matrices=int(solved.error.size),
                m=m,
                n=n,
                k=solved.s.shape[-1],
                solver=solver,
                fell_back=int(np.sum(solved.fell_back)),
                error=float(np.max(solved.error)),
                products=int(np.max(solved.products)),
            )
        )


def record_frames(
    smallest: Float[np.ndarray, " count"], *, m: int, n: int, lack: float
) -> None:
    """Adds frames that were made orthogonal to the record, if one is being kept.

    Args:
      smallest: Smallest singular value of each matrix relative to its largest, of the
        left and right frame the smaller one.
      m: Rows of the merged matrices.
      n: Their columns.
      lack: Value up to which a direction counts as absent.
    """
    solves = _recorder.get()
    if solves is not None and smallest.size:
        absent = smallest <= lack
        least = float(np.min(smallest, where=~absent, initial=1.0))
        error = float(np.finfo(smallest.dtype).eps) / least
        found = (int(smallest.size), m, n, min(m, n), "polar", int(absent.sum()))
        solves.append(SolveRecord(*found, error=error, products=0))


@dataclass(frozen=True)
class SvdReport:
    """How near a truncated SVD is to the best one, matrix by matrix.

    Norms are Frobenius norms; for a zero matrix everything is 0.

    Attributes:
      energy: Kept share of the energy, `|ours|^2 / |x|^2`.
      residual: `|x - ours| / |x|`.
      excess: Upper bound on `sqrt(|x - ours|^2 - |x - best|^2) / |x|`, where `best` is
        the best approximation of the same rank.
      solver: The solver that `auto` chose, or that was asked for.
      products: Products with the Gram matrix that the iteration took.
      fell_back: Whether the full decomposition had to be taken in the end.
    """

    energy: Float[np.ndarray, "*batch"]
    residual: Float[np.ndarray, "*batch"]
    excess: Float[np.ndarray, "*batch"]
    solver: str
    products: Int[np.ndarray, "*batch"]
    fell_back: Any


def certify(
    x: Float[np.ndarray, "m n"], ours: Float[np.ndarray, "m n"], vh: Any
) -> tuple[float, float, float]:
    """Energy, residual and a certified bound on the excess, in float64.

    With `g` the Gram matrix of x, `v` orthonormal columns near the right factor, and
    `theta`, `r` the Ritz values and residuals of g on v, `g` is at most, in the order
    of positive semidefinite matrices,

        diag(theta) + r^T r / e   on the span of v,   mu + e   beside it,

    for every e > 0, if mu bounds g beside v. So the k largest eigenvalues of g sum to
    at most `sum_i max(eigenvalue_i(diag(theta) + r^T r / e), mu + e)`. That mu is a
    bound is proved, to rounding, by the Cholesky factorisation of `mu - g` beside v;
    Lanczos only proposes it. The best e of a grid is taken.

    Args:
      x: The matrix, m >= n.
      ours: Its approximation.
      vh: Right factor of the approximation `[k, n]`.

    Returns:
      `|ours|^2 / |x|^2`, `|x - ours| / |x|` and the bound on the excess, relative to x.

    References:
      Parlett, "The Symmetric Eigenvalue Problem", 1998, chapters 10 and 11.
    """
    unit = np.max(np.abs(x))
    if not 0 < unit < np.inf:
        nothing = 0.0 if unit == 0 else float("nan")
        return nothing, nothing, nothing
    x, ours = x / unit, ours / unit
    total, left = np.sum(x * x), np.sum((x - ours) ** 2)
    g = x.T @ x
    v = np.asarray(vh, np.float64).T
    for _ in range(2):  # any v will do; without float32's rounding the bound is tighter
        v = np.linalg.qr(g @ np.linalg.qr(v)[0])[0]
    w = g @ v
    theta, rotation = np.linalg.eigh(v.T @ w)
    v, w = v @ rotation, w @ rotation
    r = w - v * theta
    cross = v @ w.T
    beside = g - cross - cross.T + (v * theta) @ v.T
    mu = _bound(beside, total)
    sums = [
        np.sum(np.maximum(np.linalg.eigvalsh(np.diag(theta) + r.T @ r / e), mu + e))
        for e in max(mu, 1e-12 * total) * np.logspace(-12, 0, 25)
    ]
    best = max(0.0, total - min(sums))  # at least so much is left by any rank k
    excess = max(0.0, left - best)
    return np.sum(ours * ours) / total, np.sqrt(left / total), np.sqrt(excess / total)


def _bound(g: Float[np.ndarray, "n n"], most: float) -> float:
    """A proved upper bound on the largest eigenvalue of `g`, as tight as it can be."""
    n = len(g)
    guess = 0.0
    if n < _SMALL:
        guess = max(0.0, float(np.linalg.eigvalsh(g)[-1]))
    else:
        with contextlib.suppress(scipy.sparse.linalg.ArpackError):
            start = np.random.default_rng(0).standard_normal(n)
            top = scipy.sparse.linalg.eigsh(
                g, k=1, which="LA", v0=start, return_eigenvectors=False
            )
            guess = max(0.0, float(top[0]))
    slack = 1e-14 * most
    while guess + slack < most:
        try:
            scipy.linalg.cholesky((guess + slack) * np.eye(n) - g, check_finite=False)
        except np.linalg.LinAlgError:
            slack *= 10
        else:
            return guess + slack
    return most
