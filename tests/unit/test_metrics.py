"""Scores and calibration against plain statements in float64."""

import numpy as np
import pytest

from centermerge_jax import metrics
from centermerge_jax.errors import ParameterError
from centermerge_jax.metrics import Answers


def answers(classes, count=300, *, noise=0.4, seed=0, metric="accuracy"):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    other = rng.integers(0, classes, count).astype(np.int32)
    predictions = np.where(rng.uniform(size=count) < noise, other, labels)
    return Answers(labels, predictions, classes, metric)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_confusion_counts_one_by_one(classes):
    given = answers(classes)
    expected = np.zeros((classes, classes), int)
    for label, prediction in zip(given.labels, given.predictions, strict=True):
        expected[label, prediction] += 1
    np.testing.assert_array_equal(given.confusion, expected)
    assert (expected != expected.T).any()  # rows and columns are told apart
    assert given.score == pytest.approx(given.correct.mean())


def test_f1_is_of_the_second_class():
    given = answers(2, noise=0.7, metric="f1")
    found = (given.predictions == 1) & (given.labels == 1)
    precision = found.sum() / (given.predictions == 1).sum()
    recall = found.sum() / (given.labels == 1).sum()
    expected = 2 * precision * recall / (precision + recall)
    assert given.score == pytest.approx(expected)
    never = Answers(np.array([0, 0]), np.array([0, 0]), 2, "f1")
    assert never.score == 0
    with pytest.raises(ParameterError, match="two classes; got 3"):
        _ = answers(3, metric="f1").score


def test_matthews_of_two_classes_is_pearson_s_correlation():
    given = answers(2, metric="matthews")
    expected = np.corrcoef(given.labels, given.predictions)[0, 1]
    assert given.score == pytest.approx(expected)
    turned = Answers(given.labels, 1 - given.predictions, 2, "matthews")
    assert turned.score == pytest.approx(-expected)
    constant = Answers(given.labels, np.zeros_like(given.labels), 2, "matthews")
    assert constant.score == 0


def test_matthews_of_more_classes_is_a_ratio_of_covariances():
    given = answers(5, metric="matthews")
    x, y = (np.eye(5)[one] for one in (given.labels, given.predictions))

    def covariance(a, b):
        return ((a - a.mean(0)) * (b - b.mean(0))).sum()

    expected = covariance(x, y) / np.sqrt(covariance(x, x) * covariance(y, y))
    assert given.score == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_many_tables_at_once(name):
    tables = np.stack([answers(2, seed=seed).confusion for seed in range(6)])
    score = metrics.METRICS[name]
    found = score(tables.reshape(2, 3, 2, 2))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.ravel(), [score(table) for table in tables])


# --- calibration


def expected_error(confidence, correct, bins):
    """Guo et al. 2017, equation 3: bins ((m - 1) / M, m / M]."""
    error = 0.0
    for m in range(1, bins + 1):
        low, high = (m - 1) / bins, m / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high]
        if not inside:
            continue
        accuracy = sum(correct[i] for i in inside) / len(inside)
        sure = sum(confidence[i] for i in inside) / len(inside)
        error += len(inside) / len(confidence) * abs(accuracy - sure)
    return error


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_is_the_plain_statement(bins):
    rng = np.random.default_rng(bins)
    confidence = rng.uniform(0.3, 1, 500)
    correct = rng.uniform(size=500) < confidence**2
    found = metrics.calibration(confidence, correct, bins=bins)
    assert found.error == pytest.approx(expected_error(confidence, correct, bins))
    assert found.counts.sum() == 500
    assert found.counts @ found.accuracy == pytest.approx(correct.sum())
    assert found.counts @ found.confidence == pytest.approx(confidence.sum())


def test_ties_on_edges_go_down_and_empty_bins_count_nothing():
    confidence = np.array([0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 1.0, 0.0])
    correct = np.array([1, 0, 1, 1, 1, 1, 0, 0], bool)
    found = metrics.calibration(confidence, correct, bins=4)
    assert found.counts.tolist() == [3, 2, 0, 3]
    assert found.accuracy.tolist() == [1 / 3, 1, 0, 2 / 3]
    assert found.confidence.tolist() == pytest.approx([0.5 / 3, 0.5, 0, 1])
    per_item = 3 * abs(1 / 3 - 0.5 / 3) + 2 * 0.5 + 3 * (1 / 3)
    assert found.error == pytest.approx(per_item / 8)


def test_a_sure_and_right_model_has_no_error():
    found = metrics.calibration(np.ones(5), np.ones(5, bool))
    assert found.error == 0
    wrong = metrics.calibration(np.ones(5), np.zeros(5, bool))
    assert wrong.error == 1


@pytest.mark.parametrize("wrong", [[1.5], [-0.1], [np.nan], []])
def test_confidences_are_probabilities(wrong):
    with pytest.raises(ParameterError, match="between 0 and 1"):
        metrics.calibration(np.array(wrong, float), np.ones(len(wrong), bool))
