"""What importing and using the core pulls in, proved in a fresh interpreter."""

import subprocess
import sys

import pytest

import centermerge_jax as cm

HEAVY = ("flax", "orbax", "tensorflow", "tyro", "rich", "matplotlib", "optax", "onnx")

CORE = """
import numpy as np
import centermerge_jax as cm
experts = [{"dense": {"kernel": np.eye(4, dtype=np.float32) * i}} for i in range(3)]
cm.cart(experts, rank=0.5, scale=1.5)
tv = cm.truncate(cm.subtract(experts, experts[0]), rank=1)
cm.select(tv, 0, scale=1.0), cm.task_arithmetic(experts, experts[0], scale=0.3)
cm.weight_average(experts), cm.truncated_task_arithmetic(
    experts, experts[0], rank=1, scale=1.0)
"""

HELP = """
import sys
from centermerge_jax.cli import main
try:
    main(["--help"])
except SystemExit as exit:
    assert not exit.code, exit.code
"""


def loaded(program, modules):
    """Which of the modules are loaded after a program ran."""
    check = f"\nimport sys; print([m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program + check],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_the_core_needs_jax_and_numpy_only():
    assert loaded(CORE, HEAVY) == "[]"


def test_help_answers_without_jax():
    assert loaded(HELP, ("jax", "orbax", "flax", "safetensors", "matplotlib")) == "[]"


def test_importing_costs_nothing():
    assert loaded("import centermerge_jax", ("jax", "numpy")) == "[]"


@pytest.mark.parametrize("module", ["jax", "flax", "rich"])
def test_the_proof_can_fail(module):
    assert loaded(f"import {module}", (module,)) == f"[{module!r}]"


def test_every_public_name_resolves():
    for name in cm.__all__:
        assert getattr(cm, name) is not None
    assert set(cm.__all__) <= set(dir(cm))
    with pytest.raises(AttributeError, match="no attribute 'carts'"):
        _ = cm.carts


def test_the_static_and_the_lazy_names_are_the_same():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(cm.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    static = {alias.asname for node in block.body for alias in node.names}
    assert static == set(cm.__all__) == {*cm._HOMES, *cm._MODULES}
