"""All measures of one matrix, in one program, and as values for JSON."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from centermerge_jax.analysis.overlaps import (
    NORMALISATIONS,
    cosines,
    shared_energies,
    singular_task_interference,
    subspace_alignment,
    summed,
)
from centermerge_jax.analysis.spectra import (
    effective_rank,
    kept_energy,
    reconstruction_error,
    stable_rank,
)
from centermerge_jax.linalg import LowRank

_SINGULAR_VALUES = 256
_DIGITS = 7

AVERAGED = (
    "kept_energy",
    *(f"interference_{normalise}" for normalise in NORMALISATIONS),
    "reconstruction_relative",
    "effective_rank",
    "stable_rank",
    "cosine",
    "alignment",
    "sti",
)
"""Measures of which means over all matrices say something."""


@functools.partial(jax.jit, static_argnames=("at", "aligned", "few"))
def measures(
    factors: LowRank, *, at: tuple[int, ...], aligned: int, few: int
) -> dict[str, Array]:
    """All measures of a matrix: at some ranks, of which the first few get their STI."""
    s, chosen = factors.s, np.array(at) - 1
    shared = shared_energies(factors)
    norm = s[:, 0] * jnp.sqrt(stable_rank(s))
    largest = jnp.max(s)
    # Squares of very large or small numbers would leave the range of the type.
    unit = s / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(jnp.square(unit))
    sti = [singular_task_interference(factors, rank=k) for k in at[:few]]
    return {
        "singular_values": s,
        "norm": norm,
        "kept_energy": kept_energy(s)[:, chosen],
        **{
            f"interference_{normalise}": summed(shared, s, normalise)[chosen]
            for normalise in NORMALISATIONS
        },
        "reconstruction": reconstruction_error(s)[chosen],
        "reconstruction_relative": reconstruction_error(unit)[chosen]
        / jnp.where(total > 0, total, 1),
        "effective_rank": effective_rank(s),
        "stable_rank": stable_rank(s),
        "cosine": cosines(factors),
        "alignment": subspace_alignment(factors, rank=aligned),
        "sti": jnp.stack(sti) if sti else jnp.zeros(0, s.dtype),
    }


def listed(found: Mapping[str, Array], shares: int) -> dict[str, Any]:
    """Measures of a matrix as values for JSON, with so many singular values at most."""
    lists = {name: np.asarray(x) for name, x in found.items()}
    spectrum = lists["singular_values"]
    count = min(_SINGULAR_VALUES, spectrum.shape[1])
    chosen = np.linspace(0, spectrum.shape[1] - 1, count).round().astype(int)
    lists["singular_values"] = spectrum[:, chosen]
    listed = {name: plain(x) for name, x in lists.items()}
    listed["indices"] = chosen.tolist()
    listed["sti"] += [None] * (shares - len(listed["sti"]))
    return listed


def mean_of(values: Sequence[np.ndarray]) -> Any:
    """The mean without what is missing; nothing where all is."""
    stack = np.stack(values)
    there = ~np.isnan(stack)
    count = there.sum(0)
    total = np.where(there, stack, 0).sum(0)
    return plain(np.where(count, total / np.maximum(count, 1), np.nan))


def plain(x: Any) -> Any:
    """Arrays as lists of numbers of so many digits, and None for what is no number."""
    if isinstance(x, Mapping):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    if isinstance(x, Sequence):
        return [plain(value) for value in x]
    if isinstance(x, int):
        return x
    return float(f"{x:.{_DIGITS}g}") if np.isfinite(x) else None
