"""Transforms: functions from `TaskVectors` to `TaskVectors`, one idea a module."""

from centermerge_jax.transforms.rescale import rescale as rescale
from centermerge_jax.transforms.truncate import truncate as truncate
