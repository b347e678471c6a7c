"""TIES and the thresholds it needs, against sorting in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import centermerge_jax as cm
from centermerge_jax import needs
from centermerge_jax.checkpoints import open_checkpoint
from centermerge_jax.magnitudes import kept, magnitude_thresholds
from centermerge_jax.methods import METHODS, ties


def reference(experts, base, density, scale):
    """Algorithm 1 of the paper on flattened float64 vectors."""
    flat = [np.concatenate([e[n].ravel() for n in sorted(base)]) for e in experts]
    origin = np.concatenate([base[n].ravel() for n in sorted(base)]).astype(np.float64)
    vectors = [x.astype(np.float64) - origin for x in flat]
    trimmed = []
    for x in vectors:
        k = max(1, int(np.floor(density * x.size + 1e-9)))
        smallest = np.sort(np.abs(x))[-k]
        trimmed.append(np.where(np.abs(x) >= smallest, x, 0))
    total = np.sum(trimmed, axis=0)
    signs = np.sign(total)
    signs[signs == 0] = np.sign(np.sum(signs))
    agree = [np.where(x * signs > 0, x, 0) for x in trimmed]
    count = np.sum([x != 0 for x in agree], axis=0)
    merged = origin + scale * np.sum(agree, axis=0) / np.maximum(count, 1)
    found, start = {}, 0
    for name in sorted(base):
        found[name] = merged[start : start + base[name].size].reshape(base[name].shape)
        start += base[name].size
    return found


def models(seed=0, count=3):
    rng = np.random.default_rng(seed)
    shapes = {"a/kernel": (12, 9), "b/bias": (7,), "c/kernel": (3, 4, 5)}
    base = {n: np.float32(rng.normal(size=s)) for n, s in shapes.items()}

    def tuned():
        # Leaves change unlike much, so that thresholds by leaf would differ.
        return {
            n: x + np.float32((i + 1) * rng.normal(size=x.shape))
            for i, (n, x) in enumerate(base.items())
        }

    return [tuned() for _ in range(count)], base


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("jitted", [False, True])
def test_the_formula(density, jitted):
    experts, base = models()

    def run(experts, base):
        return ties(experts, base, density=density, scale=0.7)

    merged = (jax.jit(run) if jitted else run)(experts, base)
    for name, wanted in reference(experts, base, density, 0.7).items():
        np.testing.assert_allclose(merged[name], wanted, atol=1e-5, err_msg=name)


def test_a_sum_of_zero_has_the_sign_of_the_majority():
    base = {"w": np.zeros(5, np.float32)}
    experts = [
        {"w": np.float32([2, 1, 1, 1, -1])},
        {"w": np.float32([-2, 1, 1, 1, -1])},
    ]
    assert ties(experts, base, density=1.0)["w"].tolist() == [2, 1, 1, 1, -1]
    negative = [{"w": -e["w"]} for e in experts]
    assert ties(negative, base, density=1.0)["w"].tolist() == [-2, -1, -1, -1, 1]


def test_one_expert_and_everything_kept_is_that_expert():
    (expert,), base = models(count=1)
    merged = ties([expert], base, density=1.0)
    for name, leaf in expert.items():
        np.testing.assert_allclose(merged[name], leaf, atol=1e-6)


def test_equal_experts_and_no_change():
    (expert,), base = models(count=1)
    merged = ties([expert] * 3, base, density=1.0)
    still = ties([base, base], base, density=0.2)
    for name, leaf in base.items():
        np.testing.assert_allclose(merged[name], expert[name], atol=1e-6)
        np.testing.assert_array_equal(still[name], leaf)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    st.integers(1, 100),
    st.integers(1, 7),
)
def test_thresholds_are_those_of_sorting(numbers, percent, length):
    x = np.float32(numbers)
    blocks = [[x[i : i + length]] for i in range(0, len(x), length)]
    (found,) = magnitude_thresholds(lambda: blocks, share=percent / 100)
    k = max(1, percent * len(x) // 100)
    assert found == np.sort(np.abs(x))[-k]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_no_share(density):
    experts, base = models()
    with pytest.raises(cm.ParameterError, match="density is in"):
        ties(experts, base, density=density)


def test_a_scale_for_each_task_is_refused():
    experts, base = models()
    with pytest.raises(cm.ParameterError, match="one number for all tasks"):
        ties(experts, base, scale=jnp.ones(3))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_streamed_in_small_parts_it_is_the_same(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(needs, "LEAST", 16)
    monkeypatch.setattr(needs, "AT_ONCE", 16 * 4 * 4)
    experts, base = models()
    named = {f"task{i}": x for i, x in enumerate(experts)} | {"base": base}
    named = {
        name: {n: np.asarray(jnp.asarray(x, dtype)) for n, x in tree.items()}
        for name, tree in named.items()
    }
    paths = {name: tmp_path / f"{name}.safetensors" for name in named}
    for name, tree in named.items():
        save_file(tree, paths[name])
    base_path = paths.pop("base")
    output = tmp_path / "merged.safetensors"
    said = []
    manifest = cm.stream.merge(
        paths,
        output,
        "ties",
        base=str(base_path),
        density=0.3,
        scale=0.9,
        progress=lambda text, share: said.append((text, share)),
    )
    pretrained = named.pop("base")
    wanted = ties(named, pretrained, density=0.3, scale=0.9)
    found = open_checkpoint(output).read_all()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], np.asarray(leaf), err_msg=name)
    assert manifest["hyperparameters"]["density"] == 0.3
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert sum("pass 3 of 3" in text for text, _ in said) > 3
    assert METHODS["ties"].passes == 3


def test_kept_is_exact():
    assert [kept(0.07, 100), kept(0.57, 100), kept(1.0, 3)] == [7, 57, 3]
