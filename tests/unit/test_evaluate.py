"""Accuracy and its intervals against independent statements."""

import numpy as np
import pytest

import centermerge_jax as cm
from centermerge_jax import evaluate
from centermerge_jax.metrics import Answers


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


def test_a_share_of_nothing_is_an_error():
    some, none = {"a": np.array([True, False])}, {"a": np.array([False, False])}
    with pytest.raises(cm.ParameterError, match="a: the expert"):
        evaluate.normalised(some, none)


# --- the bootstrap


def answered(seed, *, shares, count=150, metric="accuracy"):
    """Answers that are right with the given probabilities, two classes."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, share in shares.items():
        # The same labels for every model and seed, the same luck for every model.
        labels = (np.arange(count) % 3 == 0).astype(np.int32)
        right = rng.uniform(size=count) < share
        found[name] = Answers(labels, np.where(right, labels, 1 - labels), 2, metric)
    return found


def drawn_one_by_one(a, b, statistic, *, replicates, seed):
    """The same intervals by drawing items, for one table of the definition."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(replicates):
        scores = []
        for name, one in a.items():
            items = rng.integers(0, len(one.labels), len(one.labels))
            first, second = (
                Answers(x.labels[items], x.predictions[items], 2, x.metric).score
                for x in (one, b[name])
            )
            ratio = first / second if statistic == "normalised" else None
            scores.append(
                {"mean": first, "difference": first - second}.get(statistic, ratio)
            )
        values.append(np.mean(scores))
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
@pytest.mark.parametrize("statistic", ["mean", "difference", "normalised"])
def test_bootstrap_is_the_drawing_of_items(metric, statistic):
    a = answered(0, shares={"x": 0.7, "y": 0.85}, metric=metric)
    b = answered(0, shares={"x": 0.8, "y": 0.9}, metric=metric)
    found = evaluate.bootstrap(a, b, statistic=statistic)
    expected = drawn_one_by_one(a, b, statistic, replicates=1500, seed=1)
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found, expected, atol=0.12 * width)


def test_bootstrap_repeats_with_its_seed():
    a = answered(0, shares={"x": 0.7, "y": 0.85}, metric="f1")
    first, again, other = (evaluate.bootstrap(a, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_bootstrap_intervals_cover_what_they_promise():
    """Of 400 experiments with a known truth, about 95 % of the intervals hold it."""
    held = 0
    for seed in range(400):
        a = answered(seed, shares={"x": 0.7, "y": 0.85})
        low, high = evaluate.bootstrap(a, replicates=400, seed=seed)
        held += low <= 0.775 <= high
    assert 364 <= held <= 394


def test_bootstrap_agrees_with_the_normal_approximation():
    a = answered(3, shares={"x": 0.7, "y": 0.85}, count=2000)
    mean, half = evaluate.mean_accuracy({n: one.correct for n, one in a.items()})
    found = evaluate.bootstrap(a)
    np.testing.assert_allclose(found, (mean - half, mean + half), atol=0.05 * half)


def test_paired_items_narrow_the_bootstrap_too():
    a = answered(0, shares={"x": 0.7, "y": 0.85})
    b = answered(0, shares={"x": 0.75, "y": 0.9})
    other = answered(1, shares={"x": 0.75, "y": 0.9})

    def width(others):
        low, high = evaluate.bootstrap(a, others, statistic="difference")
        return high - low

    assert width(b) < 0.6 * width(other)


def test_bootstrap_wants_the_same_items():
    a = answered(0, shares={"x": 0.7})
    with pytest.raises(cm.ParameterError, match="only one was given"):
        evaluate.bootstrap(a, statistic="difference")
    with pytest.raises(cm.ParameterError, match="x: only one of the two"):
        evaluate.bootstrap(a, {}, statistic="difference")
    fewer = {"x": Answers(a["x"].labels[:-1], a["x"].predictions[:-1], 2)}
    with pytest.raises(cm.ParameterError, match=r"x: .*not given the same items"):
        evaluate.bootstrap(a, fewer, statistic="difference")
    wrong = {"x": Answers(a["x"].labels, 1 - a["x"].labels, 2)}
    with pytest.raises(cm.ParameterError, match="x: shares of a score of 0"):
        evaluate.bootstrap(a, wrong, statistic="normalised")


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
