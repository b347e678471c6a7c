"""Recipes that were written for mergekit, read as ours where they mean the same.

`recipes` reads what all methods share, `averages` and `task_vectors` what is told to a
method, through the questions of `told`; `parameters` are conditions on names and values
over the layers. What our fields cannot say exactly is an error with its line; where the
tools differ in what they do with the same recipe, a note says so. After the
documentation and behaviour of mergekit 0.1.5.
"""

from centermerge_jax.mergekit.recipes import from_mergekit as from_mergekit
from centermerge_jax.mergekit.recipes import is_mergekit as is_mergekit
