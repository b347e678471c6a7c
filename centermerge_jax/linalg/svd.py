"""`truncated_svd`: the leading singular triplets of a batch of matrices."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from centermerge_jax.errors import ParameterError
from centermerge_jax.host_memory import as_jax, on_host
from centermerge_jax.linalg.device import solve_on_device
from centermerge_jax.linalg.host import solve_on_host
from centermerge_jax.linalg.leading import block_width
from centermerge_jax.linalg.low_rank import LowRank
from centermerge_jax.linalg.report import SvdReport, certify, record
from centermerge_jax.linalg.solved import Solved
from centermerge_jax.ranks import Rank, check_fits, resolve_rank
from centermerge_jax.trees import X64, compute_dtype

Solver = Literal["auto", "exact", "gram", "subspace"]
SOLVERS: tuple[Solver, ...] = ("auto", "exact", "gram", "subspace")

MEMORY = 2**30
"""Default bytes for the work space of factorisations in flight."""

BYTES_PER_NUMBER = 12
"""What a budget reckons for each number of a task vector: it in float32, as much again
stacked or copied, and as work space."""

TOLERANCE = 3e-5
"""Default bound on a result's distance from the optimum, relative to the matrix.

Reachable in float32 for the spectra of fine-tuning at any share of the rank; a larger
one saves little, as a round of the iteration gains two digits or more."""


def choose_solver(k: int, size: int) -> Solver:
    """What `auto` stands for when keeping `k` of `size = min(m, n)` directions.

    The limits are where the measured times cross (`experiments/benchmarks/solvers.py`,
    on CPU; GPU and TPU get the same, unmeasured): below 200 a dense eigensolver is as
    fast as the iteration, and below 64 the full decomposition; beyond a third of the
    rank the blocks get too wide.

    Example:
      >>> choose_solver(61, 768), choose_solver(300, 768), choose_solver(768, 768)
      ('subspace', 'gram', 'exact')
    """
    if size <= 64 or 2 * k > size:
        return "exact"
    return "subspace" if size >= 200 and 3 * k <= size else "gram"


def truncated_svd(
    x: Float[Array, "*batch m n"],
    *,
    rank: Rank,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    key: Any = None,
    memory: int = MEMORY,
) -> LowRank:
    """The leading singular triplets of each matrix of a batch.

        x ~ u @ diag(s) @ vh, the best approximation of rank k in the Frobenius norm

    `exact` decomposes fully and cuts. The others look for the right singular vectors in
    the smaller of the Gram matrices `x^T x` and `x x^T`: `gram` by a dense eigensolver,
    `subspace` by block iteration with Chebyshev filters, which is matrix products but
    for eigenproblems of the block's size. Both estimate how far they are from the best
    approximation (`cm.svd_report` shows it), and a matrix for which that is more than
    `tolerance` is decomposed fully.

    Args:
      x: Matrices; low-precision types are widened to float32 a few at a time.
      rank: Share of `min(m, n)` in (0, 1], or a number of directions.
      solver: `auto`, `exact`, `gram` or `subspace`; see `choose_solver` for `auto`.
      tolerance: Largest `sqrt(|x - ours|^2 - |x - best|^2) / |x|`, in Frobenius norms,
        as estimated for each matrix.
      key: Typed PRNG key of the iteration's start; `jax.random.key(0)` by default. It
        changes the result within `tolerance`.
      memory: Bytes of work space; no more matrices than fit are solved at a time.

    Returns:
      Factors in float32 (float64 for float64 input). Singular vectors are unique only
      up to sign and rotation among equal singular values; compare products. A left
      vector of a singular value 0 may be zero.

    Raises:
      ParameterError: `rank` is out of range or above `min(m, n)`, there is no such
        solver, `tolerance` is not positive, `key` is no typed key, `x` is not floating
        matrices, or its gradient is asked for: it does not exist where singular values
        coincide at the cut. Differentiate with respect to scales and factors instead.

    Note:
      Where singular values at the cut agree to rounding, float32 cannot tell which are
      larger: then no solver, `exact` included, is surer than about 1e-4.
      Not-a-number in one matrix spreads over that matrix, not over the batch. Outside
      of `jax.jit`, matrices on the CPU are solved by NumPy and SciPy, side by side.

    Example:
      >>> x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
      >>> truncated_svd(x, rank=2).s
      Array([3., 2.], dtype=float32)

    References:
      Halko, Martinsson and Tropp, "Finding structure with randomness", 2011,
      arXiv:0909.4061, for block iteration from a random start.
    """
    (solved,) = solve(
        [x], rank=rank, solver=solver, tolerance=tolerance, key=key, memory=memory
    )
    return LowRank(solved.u, solved.s, solved.vh)


def solve(
    stacks: Sequence[Any],
    *,
    rank: Rank,
    solver: Solver,
    tolerance: float,
    key: Any,
    memory: int,
) -> list[Solved]:
    """Factors, and how they were found, of stacks `[*batch, m, n]` of equal m and n.

    Args:
      stacks: JAX or NumPy arrays; NumPy views need not be contiguous.
      rank: As for `truncated_svd`, as are all others.
      solver: Its name.
      tolerance: Of the error.
      key: Of the start.
      memory: Bytes.
    """
    check_solver(solver, tolerance, memory)
    for x in stacks:
        check_matrices(x)
    m, n = stacks[0].shape[-2:]
    size = min(m, n)
    check_fits(rank, {f"[{m}, {n}]": size})
    k = resolve_rank(rank, size)
    if solver == "auto":
        solver = choose_solver(k, size)
    dtype = compute_dtype(stacks[0].dtype)
    start = _start(key, size, block_width(k, size), dtype)
    how = {"k": k, "solver": solver, "tolerance": tolerance, "dtype": dtype}
    empty = not any(math.prod(x.shape) for x in stacks)
    if all(map(on_host, stacks)) and not empty and not isinstance(start, Tracer):
        solved = _on_host(stacks, start, memory=memory, **how)
    else:
        flat = jnp.concatenate([jnp.asarray(x).reshape(-1, m, n) for x in stacks])
        run = functools.partial(solve_on_device, memory=memory, **how)
        solved = _refuse_gradient(run)(flat, start)
    if not isinstance(solved.error, Tracer):
        record(solved, m=m, n=n, solver=solver)
    return _split(solved, stacks)


def svd_report(
    x: Float[Array | np.ndarray, "*batch m n"],
    *,
    rank: Rank,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    key: Any = None,
    memory: int = MEMORY,
) -> SvdReport:
    """Solves as `cm.truncated_svd` does, and proves how good the result is.

    The distance from the optimum is bounded in float64 on the CPU, by a certificate
    that does not trust the solver (`linalg.report.certify`). It costs about as much as
    a full decomposition: made for looking at some matrices, not for every merge.

    Args:
      x: Matrices.
      rank: As for `cm.truncated_svd`, as are all others.
      solver: Its name.
      tolerance: Of the error.
      key: Of the start.
      memory: Bytes.

    Raises:
      ParameterError: As `cm.truncated_svd`; or `x` is traced.

    Example:
      >>> report = svd_report(jnp.diag(jnp.array([3.0, 2.0, 1.0])), rank=2)
      >>> round(float(report.energy), 3), bool(report.excess < 1e-6)
      (0.929, True)
    """
    (solved,) = solve(
        [x], rank=rank, solver=solver, tolerance=tolerance, key=key, memory=memory
    )
    if isinstance(solved.error, Tracer):
        raise ParameterError("svd_report looks at values: call it outside of jax.jit")
    factors = [np.asarray(y, np.float64) for y in (solved.u, solved.s, solved.vh)]
    measures = np.zeros((3, *x.shape[:-2]))
    for index in np.ndindex(x.shape[:-2]):
        u, s, vh = (y[index] for y in factors)
        matrix, ours = np.asarray(x[index], np.float64), (u * s) @ vh
        if matrix.shape[0] < matrix.shape[1]:
            measures[:, *index] = certify(matrix.T, ours.T, u.T)
        else:
            measures[:, *index] = certify(matrix, ours, vh)
    k, size = solved.s.shape[-1], min(x.shape[-2:])
    return SvdReport(
        *map(np.asarray, measures),
        solver=choose_solver(k, size) if solver == "auto" else solver,
        products=np.asarray(solved.products),
        fell_back=np.asarray(solved.fell_back),
    )


def _on_host(stacks: Sequence[Any], start: Any, **how: Any) -> Solved:
    """One stack of results for all matrices, in order."""
    matrices = [
        x[index] for x in map(np.asarray, stacks) for index in np.ndindex(x.shape[:-2])
    ]
    solved = solve_on_host(matrices, np.asarray(start), **how)
    fields = [np.stack(y) for y in zip(*solved, strict=True)]
    return Solved(*(as_jax(y, like=stacks[0]) for y in fields))


def check_solver(solver: Any, tolerance: Any = TOLERANCE, memory: Any = MEMORY) -> None:
    """Checks how matrices are to be solved.

    Raises:
      ParameterError: There is no such solver, the tolerance is not in (0, 1), or the
        memory is no positive number of bytes.
    """
    whole = isinstance(memory, int | np.integer) and not isinstance(memory, bool)
    if not whole or memory < 1:
        raise ParameterError(f"memory is a whole number of bytes, got {memory!r}")
    if solver not in SOLVERS:
        raise ParameterError(f"solver is one of {', '.join(SOLVERS)}; got {solver!r}")
    if isinstance(tolerance, Tracer):
        raise ParameterError("tolerance has to be static under jax.jit: close over it")
    if not (isinstance(tolerance, int | float | np.floating) and 0 < tolerance < 1):
        raise ParameterError(f"tolerance lies in (0, 1), got {tolerance!r}")


def _start(key: Any, n: int, b: int, dtype: Any) -> Float[Array, "n b"]:
    if key is None:
        key = jax.random.key(0)
    elif (
        not jnp.issubdtype(getattr(key, "dtype", np.int32), jax.dtypes.prng_key)
        or key.ndim
    ):
        raise ParameterError("key is one typed PRNG key: jax.random.key(seed)")
    return jax.random.normal(key, (n, b), dtype)


def check_matrices(x: Any) -> None:
    """Checks that `x` is floating matrices.

    Raises:
      ParameterError: It is not, or is float64 without `jax_enable_x64`.
    """
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ParameterError(f"expected matrices [*batch, m, n], got {list(x.shape)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ParameterError(f"expected floating numbers, got {x.dtype}")
    if x.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ParameterError(f"got float64: {X64}")


def _split(solved: Solved, stacks: Sequence[Any]) -> list[Solved]:
    """The results of each stack, in its batch shape."""
    split, begin = [], 0
    for x in stacks:
        batch = x.shape[:-2]
        end = begin + math.prod(batch)
        part = [y[begin:end].reshape(*batch, *y.shape[1:]) for y in solved]
        split.append(Solved(*part))
        begin = end
    return split


def _refuse_gradient(function: Any) -> Any:
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        del primals, tangents
        raise ParameterError(
            "a truncated SVD has no gradient where singular values coincide at the "
            "cut: differentiate with respect to scales and factors, or pass the "
            "matrices through jax.lax.stop_gradient"
        )

    return guarded
