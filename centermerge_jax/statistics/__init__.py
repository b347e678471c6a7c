"""What some methods know of the data: Gram matrices of layers' inputs, Fisher numbers.

* `gram_statistics` and `fisher_statistics` compute them, of any model that is a
  function of its parameters.
* `merged_prefix_grams` computes Gram matrices behind layers that are already merged.
* `write_statistics` and `read_statistics` keep them in a file for each expert.
"""

from centermerge_jax.statistics.files import (
    KINDS,
    Kind,
    Origin,
    Statistics,
    expert_digest,
    leaf_digests,
    read_statistics,
    write_statistics,
)
from centermerge_jax.statistics.fisher import Labels, fisher_statistics
from centermerge_jax.statistics.gram import gram_statistics
from centermerge_jax.statistics.merged_prefix import merged_prefix_grams

__all__ = [
    "KINDS",
    "Kind",
    "Labels",
    "Origin",
    "Statistics",
    "expert_digest",
    "fisher_statistics",
    "gram_statistics",
    "leaf_digests",
    "merged_prefix_grams",
    "read_statistics",
    "write_statistics",
]
