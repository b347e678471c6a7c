"""Strict JAX for every test: what is implicit elsewhere is an error here."""

import os
import shutil
import tempfile
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


def pytest_configure(config):
    """What one process compiles, no other has to: those side by side and programs that
    tests start share a folder. An entry that is half written is compiled again."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="centermerge-compiled-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["jnp"] = jnp
