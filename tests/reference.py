"""Independent statements of the formulas, in NumPy float64, one matrix at a time.

They share no code with the library: plain loops over flat dictionaries of arrays.
"""

import math

import numpy as np


def svd_k(matrix, k):
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:k]


def rank_of(share, shape):
    return max(1, math.floor(share * min(shape)))


def mean(leaves):
    return sum(np.asarray(x, np.float64) for x in leaves) / len(leaves)


def cart(leaves, share, scale, *, to_matrix=None):
    """One leaf of CART; `to_matrix` says how it is a matrix, None that it is none."""
    average = mean(leaves)
    if to_matrix is None:
        return average
    total = np.zeros_like(average)
    for x in leaves:
        delta = np.asarray(x, np.float64) - average
        matrix = to_matrix(delta)
        total += svd_k(matrix, rank_of(share, matrix.shape)).reshape(delta.shape)
    return average + scale * total


def truncated_task_arithmetic(leaves, base, share, scale, rest, *, to_matrix=None):
    base = np.asarray(base, np.float64)
    deltas = [np.asarray(x, np.float64) - base for x in leaves]
    if to_matrix is None:
        return base + {"sum": scale, "mean": 1 / len(deltas), "base": 0.0}[rest] * sum(
            deltas
        )
    total = np.zeros_like(base)
    for delta in deltas:
        matrix = to_matrix(delta)
        total += svd_k(matrix, rank_of(share, matrix.shape)).reshape(delta.shape)
    return base + scale * total


def task_arithmetic(leaves, base, scale):
    base = np.asarray(base, np.float64)
    return base + scale * sum(np.asarray(x, np.float64) - base for x in leaves)


def deviation_norm(leaves):
    """What errors are relative to: the root of the summed squares of the deviations."""
    average = mean(leaves)
    return math.sqrt(
        sum(((np.asarray(x, np.float64) - average) ** 2).sum() for x in leaves)
    )
