"""Merging methods: short compositions of task vectors and transforms."""

from centermerge_jax.methods.ace import ace_merging as ace_merging
from centermerge_jax.methods.averages import karcher_mean as karcher_mean
from centermerge_jax.methods.averages import lerp as lerp
from centermerge_jax.methods.averages import model_stock as model_stock
from centermerge_jax.methods.averages import norm_matching as norm_matching
from centermerge_jax.methods.averages import normalised_mean as normalised_mean
from centermerge_jax.methods.averages import scope_divergence as scope_divergence
from centermerge_jax.methods.averages import slerp as slerp
from centermerge_jax.methods.averages import (
    weight_scope_alignment as weight_scope_alignment,
)
from centermerge_jax.methods.averages import weight_scopes as weight_scopes
from centermerge_jax.methods.cart import cart as cart
from centermerge_jax.methods.cart_variants import cart_indexing as cart_indexing
from centermerge_jax.methods.cart_variants import low_rank as low_rank
from centermerge_jax.methods.cart_variants import two_pass_cart as two_pass_cart
from centermerge_jax.methods.cart_variants import wise_ft as wise_ft
from centermerge_jax.methods.compressed import one_bit as one_bit
from centermerge_jax.methods.compressed import quantised as quantised
from centermerge_jax.methods.data_free import cart_data_free as cart_data_free
from centermerge_jax.methods.data_free import (
    cart_data_free_whole as cart_data_free_whole,
)
from centermerge_jax.methods.dc_merge import dc_merge as dc_merge
from centermerge_jax.methods.della import della as della
from centermerge_jax.methods.energy import star as star
from centermerge_jax.methods.energy import subspace_boosting as subspace_boosting
from centermerge_jax.methods.esm import esm as esm
from centermerge_jax.methods.fisher import fisher as fisher
from centermerge_jax.methods.iso import iso_c as iso_c
from centermerge_jax.methods.iso import iso_cts as iso_cts
from centermerge_jax.methods.knots import knots as knots
from centermerge_jax.methods.layers import lata as lata
from centermerge_jax.methods.layers import lines as lines
from centermerge_jax.methods.magmax import magmax as magmax
from centermerge_jax.methods.norms import from_merging as from_merging
from centermerge_jax.methods.norms import nan_merging as nan_merging
from centermerge_jax.methods.pcb import pcb as pcb
from centermerge_jax.methods.registry import METHODS as METHODS
from centermerge_jax.methods.registry import Law as Law
from centermerge_jax.methods.registry import Method as Method
from centermerge_jax.methods.registry import Scope as Scope
from centermerge_jax.methods.regmean import regmean as regmean
from centermerge_jax.methods.regmean import regmean_plus_plus as regmean_plus_plus
from centermerge_jax.methods.selective import merge_some as merge_some
from centermerge_jax.methods.soups import greedy_soup as greedy_soup
from centermerge_jax.methods.sparse import breadcrumbs as breadcrumbs
from centermerge_jax.methods.sparse import dare as dare
from centermerge_jax.methods.sparse import dare_ties as dare_ties
from centermerge_jax.methods.sparse import magnitude_mask as magnitude_mask
from centermerge_jax.methods.sparse import random_mask as random_mask
from centermerge_jax.methods.sparse import sce as sce
from centermerge_jax.methods.svc import svc as svc
from centermerge_jax.methods.task_arithmetic import task_arithmetic as task_arithmetic
from centermerge_jax.methods.task_arithmetic import (
    truncated_task_arithmetic as truncated_task_arithmetic,
)
from centermerge_jax.methods.task_masks import consensus as consensus
from centermerge_jax.methods.task_masks import emr as emr
from centermerge_jax.methods.task_masks import tall_mask as tall_mask
from centermerge_jax.methods.ties import ties as ties
from centermerge_jax.methods.tsv import cart_tsv as cart_tsv
from centermerge_jax.methods.tsv import tsv_c as tsv_c
from centermerge_jax.methods.tsv import tsv_m as tsv_m
from centermerge_jax.methods.weight_average import weight_average as weight_average
from centermerge_jax.methods.wudi import wudi as wudi
from centermerge_jax.methods.wudi import wudi_closed as wudi_closed
