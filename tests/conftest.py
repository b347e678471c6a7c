"""Strict JAX for every test: what is implicit elsewhere is an error here."""

import os
from pathlib import Path

# Before the first use of JAX: tests of sharding need several devices on any machine.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
import threadpoolctl

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Test processes side by side: threads of one's BLAS would wait for the other's.
threadpoolctl.threadpool_limits(1, user_api="blas")

jax.config.update("jax_numpy_rank_promotion", "raise")


def _modules_with_shapes():
    """Those that annotate arrays: in others a check of each call costs, and finds, no
    more than pyright."""
    root = Path(__file__).parents[1]
    for path in (root / "centermerge_jax").rglob("*.py"):
        if "jaxtyping" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            yield name.removesuffix(".__init__")


jaxtyping.install_import_hook(list(_modules_with_shapes()), "beartype.beartype")


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["jnp"] = jnp
