"""Merging methods against what other tools make of the same models.

`tests/golden/merging_PEER.json` says what each peer was asked and what we are asked.
Where results are not the same it says why, and `EXPLAINED` states the peer's formula.
"""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import numpy_peers
import pytest
from golden import merging

from centermerge_jax.methods import METHODS

FOLDER = Path(__file__).parents[1] / "golden"
PEERS = ("mergekit", "fusionbench")
# Of the largest number of all task vectors. Measured 8e-6; polar factors of bases that
# are nearly dependent are known to 2e-5 only, and are compared in float64 as well.
TOLERANCE, TOLERANCE_OF_FRAMES = 1e-5, 5e-5
# What is left by float32 in the file.
EXACT = 2e-7
# What is told to be another formula has to look like one.
ANOTHER = 1e-3


@functools.cache
def golden(peer):
    """Cases of a peer, and its results."""
    facts = json.loads((FOLDER / f"merging_{peer}.json").read_text())
    with np.load(FOLDER / f"merging_{peer}.npz") as file:
        return facts["cases"], dict(file)


ALL = [(peer, name) for peer in PEERS for name in golden(peer)[0]]
EXPLAINED = [(peer, name) for peer, name in ALL if "differs" in golden(peer)[0][name]]
OF_FRAMES = [
    ("fusionbench", name) for name in ("iso_cts", "iso_cts_half", "svc_tsv_m", "tsv_m")
]


def load(peer, name):
    """A case, its experts and base, and what the peer made of them."""
    cases, arrays = golden(peer)
    case = cases[name]
    experts, base = merging.models(**case.get("models", {}))
    return case, experts, base, arrays[name]


def told(case, experts, base):
    """Our hyperparameters and statistics of the data."""
    hyperparameters, tasks = dict(case.get("hyperparameters", {})), "".join(experts)
    data = case.get("data", {})
    if "fishers" in data:
        hyperparameters["fishers"] = merging.fishers(
            base, tasks=tasks, size=data["fishers"]
        )
    if "grams" in data:
        hyperparameters["grams"] = merging.grams(base, tasks=tasks)
    return hyperparameters


def merge(case, experts, base):
    method = METHODS[case["method"]]
    hyperparameters = told(case, experts, base)
    if not case.get("leafwise"):
        bases = [base] if method.needs_base else []
        return method.function(experts, *bases, **hyperparameters)
    merged = {}
    for name, leaf in base.items():
        bases = [{name: leaf}] if method.needs_base else []
        alone = {task: {name: tree[name]} for task, tree in experts.items()}
        merged |= method.function(alone, *bases, **hyperparameters)
    return merged


def distance(ours, theirs, experts, base):
    """As a share of the largest number of all task vectors."""
    largest = max(abs(merging.moved(tree, base)).max() for tree in experts.values())
    assert ours.shape == theirs.shape
    return abs(ours - theirs).max() / largest


@pytest.fixture
def known_masks(monkeypatch):
    """Random numbers are those that the peers were given."""

    def drawn(seed, method, tasks, leaf, like):
        xp = like.__array_namespace__()
        known = [merging.uniforms(task, leaf, like.shape[1:]) for task in tasks]
        return xp.asarray(np.stack(known))

    for module in ("sparse", "della"):
        module = importlib.import_module(f"centermerge_jax.methods.{module}")
        monkeypatch.setattr(module, "task_uniforms", drawn)


@pytest.mark.parametrize("peer", PEERS)
def test_same_models(peer):
    experts, base = merging.models()
    _, arrays = golden(peer)
    np.testing.assert_array_equal(arrays["input/base"], merging.vector(base))
    for task, tree in experts.items():
        np.testing.assert_array_equal(arrays[f"input/{task}"], merging.vector(tree))


@pytest.mark.usefixtures("known_masks")
@pytest.mark.parametrize(("peer", "name"), ALL)
def test_same_result(peer, name):
    case, experts, base, theirs = load(peer, name)
    ours = merging.moved(merge(case, experts, base), base)
    far = distance(ours, theirs, experts, base)
    if "differs" in case:
        assert far > ANOTHER
    else:
        assert far <= (TOLERANCE_OF_FRAMES if (peer, name) in OF_FRAMES else TOLERANCE)
        # It is not the base that both return.
        assert distance(0 * theirs, theirs, experts, base) > ANOTHER


@pytest.mark.parametrize(("peer", "name"), OF_FRAMES)
def test_same_in_float64(peer, name):
    case, experts, base, theirs = load(peer, name)
    with jax.enable_x64(True):
        merged = merge(case, merging.wide(experts), merging.wide(base))
        ours = merging.moved(merged, base)
    assert distance(ours, theirs, experts, base) <= EXACT


@pytest.mark.parametrize(("peer", "name"), EXPLAINED)
def test_what_differs_is_known(peer, name):
    case, experts, base, theirs = load(peer, name)
    formula = getattr(numpy_peers, f"{peer}_{name}")
    ours = merging.moved(formula(experts, base, told(case, experts, base)), base)
    assert distance(ours, theirs, experts, base) <= EXACT
