"""What can be said of task vectors before any model is evaluated.

Every measure of matrices is a pure function of their singular triplets, so that a model
is factorised once, by `factorise`, and measured as often as wanted. `analyse` measures
everything, a group of leaves at a time.
"""

from centermerge_jax.analysis.factors import factorise as factorise
from centermerge_jax.analysis.leaves import norm_ratios as norm_ratios
from centermerge_jax.analysis.leaves import weight_scopes as weight_scopes
from centermerge_jax.analysis.overlaps import NORMALISATIONS as NORMALISATIONS
from centermerge_jax.analysis.overlaps import cosines as cosines
from centermerge_jax.analysis.overlaps import interference as interference
from centermerge_jax.analysis.overlaps import (
    singular_task_interference as singular_task_interference,
)
from centermerge_jax.analysis.overlaps import subspace_alignment as subspace_alignment
from centermerge_jax.analysis.spectra import effective_rank as effective_rank
from centermerge_jax.analysis.spectra import kept_energy as kept_energy
from centermerge_jax.analysis.spectra import (
    reconstruction_error as reconstruction_error,
)
from centermerge_jax.analysis.spectra import stable_rank as stable_rank
from centermerge_jax.analysis.summary import SHARES as SHARES
from centermerge_jax.analysis.summary import analyse as analyse
