"""centermerge_jax: merging fine-tuned models around their mean, in JAX.

    import centermerge_jax as cm

    tv = cm.center(experts)                       # origin = mean of the experts
    tv = cm.truncate(tv, rank=0.08)               # top singular directions per matrix
    params = cm.combine(tv, scale=1.5)            # origin + scale * sum over tasks

    params = cm.cart(experts, rank=0.08, scale=1.5)    # exactly those three lines

Names are resolved when they are first used (PEP 562), so that importing the package
costs nothing and `centermerge --help` answers without JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from centermerge_jax import analysis as analysis
    from centermerge_jax import methods as methods
    from centermerge_jax import plots as plots
    from centermerge_jax import stream as stream
    from centermerge_jax import transforms as transforms
    from centermerge_jax import views as views
    from centermerge_jax.errors import CheckpointError as CheckpointError
    from centermerge_jax.errors import DataError as DataError
    from centermerge_jax.errors import MergeError as MergeError
    from centermerge_jax.errors import ParameterError as ParameterError
    from centermerge_jax.errors import StructureError as StructureError
    from centermerge_jax.errors import ViewError as ViewError
    from centermerge_jax.leafwise import merge_leaves as merge_leaves
    from centermerge_jax.linalg import Frame as Frame
    from centermerge_jax.linalg import LowRank as LowRank
    from centermerge_jax.linalg import SvdReport as SvdReport
    from centermerge_jax.linalg import orthonormalize as orthonormalize
    from centermerge_jax.linalg import polar as polar
    from centermerge_jax.linalg import project as project
    from centermerge_jax.linalg import recorded_solves as recorded_solves
    from centermerge_jax.linalg import svd_report as svd_report
    from centermerge_jax.linalg import truncated_svd as truncated_svd
    from centermerge_jax.low_rank_experts import center_factors as center_factors
    from centermerge_jax.low_rank_experts import subtract_factors as subtract_factors
    from centermerge_jax.matrixwise import merge_matrices as merge_matrices
    from centermerge_jax.methods import METHODS as METHODS
    from centermerge_jax.methods import cart as cart
    from centermerge_jax.methods import task_arithmetic as task_arithmetic
    from centermerge_jax.methods import ties as ties
    from centermerge_jax.methods import (
        truncated_task_arithmetic as truncated_task_arithmetic,
    )
    from centermerge_jax.methods import weight_average as weight_average
    from centermerge_jax.statistics import fisher_statistics as fisher_statistics
    from centermerge_jax.statistics import gram_statistics as gram_statistics
    from centermerge_jax.statistics import merged_prefix_grams as merged_prefix_grams
    from centermerge_jax.statistics import read_statistics as read_statistics
    from centermerge_jax.statistics import write_statistics as write_statistics
    from centermerge_jax.sweeping import sweep as sweep
    from centermerge_jax.task_vectors import TaskVectors as TaskVectors
    from centermerge_jax.task_vectors import center as center
    from centermerge_jax.task_vectors import combine as combine
    from centermerge_jax.task_vectors import select as select
    from centermerge_jax.task_vectors import subtract as subtract
    from centermerge_jax.transforms import rescale as rescale
    from centermerge_jax.transforms import truncate as truncate
    from centermerge_jax.views import MatrixView as MatrixView

__version__ = "0.1.0"

# Kept in step with the block above by a test.
_HOMES = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "Frame": "linalg",
    "LowRank": "linalg",
    "METHODS": "methods",
    "MatrixView": "views",
    "MergeError": "errors",
    "ParameterError": "errors",
    "StructureError": "errors",
    "SvdReport": "linalg",
    "TaskVectors": "task_vectors",
    "ViewError": "errors",
    "cart": "methods",
    "center": "task_vectors",
    "center_factors": "low_rank_experts",
    "combine": "task_vectors",
    "fisher_statistics": "statistics",
    "gram_statistics": "statistics",
    "merged_prefix_grams": "statistics",
    "merge_leaves": "leafwise",
    "merge_matrices": "matrixwise",
    "orthonormalize": "linalg",
    "polar": "linalg",
    "project": "linalg",
    "read_statistics": "statistics",
    "recorded_solves": "linalg",
    "rescale": "transforms",
    "select": "task_vectors",
    "subtract": "task_vectors",
    "subtract_factors": "low_rank_experts",
    "svd_report": "linalg",
    "sweep": "sweeping",
    "task_arithmetic": "methods",
    "ties": "methods",
    "truncate": "transforms",
    "truncated_svd": "linalg",
    "truncated_task_arithmetic": "methods",
    "weight_average": "methods",
    "write_statistics": "statistics",
}
_MODULES = ("analysis", "methods", "plots", "stream", "transforms", "views")

__all__ = [
    "METHODS",
    "CheckpointError",
    "DataError",
    "Frame",
    "LowRank",
    "MatrixView",
    "MergeError",
    "ParameterError",
    "StructureError",
    "SvdReport",
    "TaskVectors",
    "ViewError",
    "analysis",
    "cart",
    "center",
    "center_factors",
    "combine",
    "fisher_statistics",
    "gram_statistics",
    "merge_leaves",
    "merge_matrices",
    "merged_prefix_grams",
    "methods",
    "orthonormalize",
    "plots",
    "polar",
    "project",
    "read_statistics",
    "recorded_solves",
    "rescale",
    "select",
    "stream",
    "subtract",
    "subtract_factors",
    "svd_report",
    "sweep",
    "task_arithmetic",
    "ties",
    "transforms",
    "truncate",
    "truncated_svd",
    "truncated_task_arithmetic",
    "views",
    "weight_average",
    "write_statistics",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for."""
    if name in _HOMES:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        return getattr(module, name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
