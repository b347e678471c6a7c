"""Accuracy and its intervals against independent statements."""

import numpy as np
import pytest

import centermerge_jax as cm
from centermerge_jax import evaluate
from centermerge_jax.plots import rank_curve


def outcomes(seed, shares, count=400):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(size=count) < share for name, share in shares.items()}


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (7, 10), (10, 10), (450, 500)])
def test_wilson_solves_its_equation(correct, count):
    """The ends are where |p - share| is 1.96 standard errors *of p*."""
    share = correct / count
    for end in evaluate.wilson(correct, count):
        error = np.sqrt(end * (1 - end) / count)
        np.testing.assert_allclose(abs(share - end), evaluate.Z95 * error, atol=1e-7)
    low, high = evaluate.wilson(correct, count)
    assert 0 <= low <= share <= high <= 1
    with pytest.raises(cm.ParameterError, match="11 of 10"):
        evaluate.wilson(11, 10)


def test_intervals_cover_what_they_promise():
    """Of 1,000 experiments with a known truth, about 95 % of the intervals hold it."""
    shares = {"a": 0.6, "b": 0.9}
    held = held_difference = 0
    for seed in range(1000):
        a, b = outcomes(seed, shares), outcomes(seed + 5000, {"a": 0.5, "b": 0.85})
        mean, half = evaluate.mean_accuracy(a)
        held += abs(mean - 0.75) <= half
        gain, half = evaluate.mean_difference(a, b)
        held_difference += abs(gain - 0.075) <= half
    assert 930 <= held <= 970
    assert 930 <= held_difference <= 970


def test_paired_items_tell_more_than_two_intervals():
    a = outcomes(0, {"a": 0.8})
    b = {"a": a["a"].copy()}
    b["a"][np.flatnonzero(a["a"])[:8]] = False  # the same but for eight items
    gain, half = evaluate.mean_difference(a, b)
    assert gain == pytest.approx(8 / 400)
    assert half < gain < evaluate.mean_accuracy(a)[1]


def test_normalised_is_the_mean_of_ratios():
    merged, experts = (
        outcomes(0, {"a": 0.4, "b": 0.9}),
        outcomes(1, {"a": 0.5, "b": 1.0}),
    )
    ratios = [merged[n].sum() / experts[n].sum() for n in ("a", "b")]
    assert evaluate.normalised(merged, experts) == pytest.approx(sum(ratios) / 2)


def test_one_batch_size_and_every_item_once():
    seen = []

    def predict(x):
        seen.append(x.shape)
        return x

    x = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    labels = x.argmax(axis=1)
    labels[[3, 22]] = (labels[[3, 22]] + 1) % 4
    right = evaluate.classified_rightly(predict, x, labels, batch=10)
    assert seen == [(10, 4)] * 3
    assert np.flatnonzero(~right).tolist() == [3, 22]


def test_rank_curve_is_a_picture(tmp_path):
    from PIL import Image

    path = tmp_path / "curve.png"
    curves = {"centred": [0.5, 0.9, 0.5], "not centred": [0.3, 0.4, 0.5]}
    lines = {"average": 0.5}
    rank_curve([0.0, 0.08, 1.0], curves, lines=lines, path=path, title="t")
    with Image.open(path) as picture:
        assert picture.size == (1120, 672)
        colours = {c for _, c in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0x1F, 0x5F, 0xA8), (0xC8, 0x50, 0x1E)} <= colours
