"""Strict JAX for every test: what is implicit elsewhere is an error here."""

import os

# Before the first use of JAX: tests of sharding need several devices on any machine.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import pytest
import threadpoolctl

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Test processes side by side: threads of one's BLAS would wait for the other's.
threadpoolctl.threadpool_limits(1, user_api="blas")

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["jnp"] = jnp
