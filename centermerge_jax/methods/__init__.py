"""Merging methods: short compositions of task vectors and transforms."""

from centermerge_jax.methods.cart import cart as cart
from centermerge_jax.methods.registry import METHODS as METHODS
from centermerge_jax.methods.registry import Method as Method
from centermerge_jax.methods.registry import Scope as Scope
from centermerge_jax.methods.task_arithmetic import RESTS as RESTS
from centermerge_jax.methods.task_arithmetic import task_arithmetic as task_arithmetic
from centermerge_jax.methods.task_arithmetic import (
    truncated_task_arithmetic as truncated_task_arithmetic,
)
from centermerge_jax.methods.ties import ties as ties
from centermerge_jax.methods.weight_average import weight_average as weight_average
