"""Linear algebra of batches of matrices: it knows arrays, not trees.

Everything is computed in float32 (float64 for float64 input) with full-precision
products, whatever the storage type.
"""

from centermerge_jax.linalg.frames import Frame, orthonormalize, polar, project
from centermerge_jax.linalg.low_rank import LowRank
from centermerge_jax.linalg.noise import noise_edge
from centermerge_jax.linalg.report import (
    SolveRecord,
    SvdReport,
    record_frames,
    recorded_solves,
)
from centermerge_jax.linalg.solved import Solved, workspace
from centermerge_jax.linalg.svd import (
    BYTES_PER_NUMBER,
    MEMORY,
    SOLVERS,
    TOLERANCE,
    Solver,
    check_solver,
    choose_solver,
    solve,
    svd_report,
    truncated_svd,
)

__all__ = [
    "BYTES_PER_NUMBER",
    "MEMORY",
    "SOLVERS",
    "TOLERANCE",
    "Frame",
    "LowRank",
    "SolveRecord",
    "Solved",
    "Solver",
    "SvdReport",
    "check_solver",
    "choose_solver",
    "noise_edge",
    "orthonormalize",
    "polar",
    "project",
    "record_frames",
    "recorded_solves",
    "solve",
    "svd_report",
    "truncated_svd",
    "workspace",
]
