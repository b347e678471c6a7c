"""Which leaves are matrices: the views through which spectral methods see a tree.

A Flax attention kernel is `(in, heads, head_dim)`, a scanned block carries a layer
axis, queries, keys and values may be three leaves or one. "The SVD of the weight" is
undefined until someone says which axes are rows, which are columns, and which merely
count matrices. That is a `MatrixView`; a `Rule` gives it to all leaves whose name
matches.

There is no default for a leaf that no rule covers: it is an error, since the common
alternative, to average such a leaf silently, is how merges go quietly wrong.
"""

from centermerge_jax.views.files import load as load
from centermerge_jax.views.groups import Bundle as Bundle
from centermerge_jax.views.groups import groups as groups
from centermerge_jax.views.matrix_view import Join as Join
from centermerge_jax.views.matrix_view import MatrixView as MatrixView
from centermerge_jax.views.presets import PRESETS as PRESETS
from centermerge_jax.views.presets import auto as auto
from centermerge_jax.views.presets import fused as fused
from centermerge_jax.views.presets import split as split
from centermerge_jax.views.resolve import Row as Row
from centermerge_jax.views.resolve import Table as Table
from centermerge_jax.views.resolve import Views as Views
from centermerge_jax.views.resolve import digest as digest
from centermerge_jax.views.resolve import format_rows as format_rows
from centermerge_jax.views.resolve import resolve as resolve
from centermerge_jax.views.resolve import rows as rows
from centermerge_jax.views.rules import Rule as Rule
