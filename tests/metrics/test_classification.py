"""Classification metrics: by hand, against scikit-learn 1.9's values, and against definitions written out naively.

SCORES and ACTUAL are random with many ties and a last class without positives. The F1 values are f1_score(ACTUAL,
SCORES >= 0.5, average=..., zero_division=0); the average precision is the mean of average_precision_score over the
first three classes.
"""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.errors import UserError
from frozen_jax.metrics.classification import (
    expected_calibration_error,
    f1_scores,
    mean_average_precision,
    top_k_accuracy,
)

SCORES = np.array(
    [
        [0.6, 0.9, 0.8, 0.2],
        [0.3, 0.9, 0.0, 0.8],
        [0.8, 0.5, 0.3, 0.3],
        [0.3, 0.4, 0.5, 0.6],
        [1.0, 0.8, 0.6, 1.0],
        [0.2, 0.2, 0.6, 0.0],
        [0.0, 0.5, 0.5, 0.9],
        [0.6, 0.5, 0.5, 0.2],
        [0.0, 0.2, 0.7, 0.2],
        [0.4, 0.0, 0.8, 0.2],
        [0.3, 0.9, 0.5, 0.8],
        [0.6, 0.7, 0.1, 0.5],
    ]
)
ACTUAL = np.zeros((12, 4), bool)
ACTUAL[[0, 1, 8], 0] = ACTUAL[[1, 2, 4, 5, 10], 1] = ACTUAL[[0, 1, 6, 10, 11], 2] = True

SEEDS = st.integers(0, 2**32 - 1)


def test_top_k_counts_the_label_among_the_k_best() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    labels = np.array([1, 1, 0])
    assert top_k_accuracy(scores, labels) == pytest.approx(1 / 3)
    assert top_k_accuracy(scores, labels, k=2) == pytest.approx(2 / 3)
    assert top_k_accuracy(scores, labels, k=3) == 1
    assert top_k_accuracy(scores, labels, k=9) == 1


def test_top_k_ties_count_against_the_example() -> None:
    assert top_k_accuracy(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 0
    assert top_k_accuracy(np.zeros((4, 3)), np.array([0, 1, 2, 0]), k=2) == 0
    assert top_k_accuracy(np.array([[-np.inf, 0.0], [-np.inf, -np.inf]]), np.array([1, 0])) == 0.5


def test_f1_equals_scikit_learn() -> None:
    scores = f1_scores(SCORES >= 0.5, ACTUAL)
    assert scores.macro == pytest.approx(0.323489010989011, rel=1e-12)
    assert scores.micro == pytest.approx(0.3902439024390244, rel=1e-12)


def test_f1_by_hand() -> None:
    # Class 0: one of two found, nothing wrong (2/3). Class 1: one right, one wrong (2/3). Class 2: nothing at all (0).
    predicted = np.array([[1, 1, 0], [0, 1, 0]], bool)
    actual = np.array([[1, 1, 0], [1, 0, 0]], bool)
    scores = f1_scores(predicted, actual)
    assert scores.macro == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores.micro == pytest.approx(4 / 6)
    empty = f1_scores(np.zeros((2, 3), bool), np.zeros((2, 3), bool))
    assert (empty.macro, empty.micro) == (0, 0)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 5), st.integers(1, 20))
def test_micro_f1_of_one_label_each_is_the_accuracy(seed: int, classes: int, examples: int) -> None:
    random = np.random.default_rng(seed)
    guesses, labels = random.integers(classes, size=(2, examples))
    scores = f1_scores(np.eye(classes, dtype=bool)[guesses], np.eye(classes, dtype=bool)[labels])
    assert scores.micro == pytest.approx(np.mean(guesses == labels))


def test_average_precision_equals_scikit_learn() -> None:
    assert mean_average_precision(SCORES, ACTUAL) == pytest.approx(0.40701459034792364, rel=1e-12)


def test_average_precision_by_hand() -> None:
    # Positives at ranks 1 and 3: (1/1 + 2/3) / 2. One group of ties: precision is the share of positives.
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.6, 0.5]])
    actual = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    assert mean_average_precision(scores, actual) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 4) / 2)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_average_precision_depends_on_the_order_of_scores_alone(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, actual = random.integers(5, size=(9, 2)).astype(float), random.random((9, 2)) < 0.5
    actual[0] = True
    shuffled = random.permutation(9)
    expected = mean_average_precision(scores, actual)
    assert 0 < expected <= 1
    assert mean_average_precision(np.exp(scores[shuffled]) - 7, actual[shuffled]) == pytest.approx(expected)
    assert mean_average_precision(actual.astype(float), actual) == 1


def test_calibration_error_by_hand() -> None:
    # Bins (0, .5] and (.5, 1]: |.4 - 1/2| with two examples, |.9 - 1| with one.
    confidence, correct = np.array([0.3, 0.5, 0.9]), np.array([True, False, True])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((2 * 0.1 + 1 * 0.1) / 3)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 20))
def test_calibration_error_equals_its_definition(seed: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    confidence, correct = random.random(50), random.random(50) < 0.5
    expected = 0.0
    for index in range(bins):
        members = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if members.any():
            expected += members.mean() * abs(confidence[members].mean() - correct[members].mean())
    assert expected_calibration_error(confidence, correct, bins=bins) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k_accuracy(np.zeros((0, 3)), np.zeros(0, int)), "empty"),
        (lambda: top_k_accuracy(np.array([[0.0, np.nan]]), np.array([0])), "NaN"),
        (lambda: top_k_accuracy(np.zeros((1, 3)), np.array([3])), "labels from 3 to 3"),
        (lambda: top_k_accuracy(np.zeros((1, 3)), np.array([-1])), "labels from -1"),
        (lambda: top_k_accuracy(np.zeros((1, 3)), np.array([0]), k=0), "k=0"),
        (lambda: f1_scores(np.zeros((0, 3), bool), np.zeros((0, 3), bool)), "undefined"),
        (lambda: mean_average_precision(np.zeros((2, 3)), np.zeros((2, 3), bool)), "none of 3 classes"),
        (lambda: mean_average_precision(np.full((1, 1), np.nan), np.ones((1, 1), bool)), "NaN"),
        (lambda: expected_calibration_error(np.array([1.5]), np.array([True])), "probability"),
        (lambda: expected_calibration_error(np.array([np.nan]), np.array([True])), "probability"),
        (lambda: expected_calibration_error(np.zeros(0), np.zeros(0, bool)), "probability"),
        (lambda: expected_calibration_error(np.array([0.5]), np.array([True]), bins=0), "bins=0"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_scores_of_any_kind_of_number_are_ranked_alike():
    """Unsigned numbers have no negative: zero would come first."""
    rng = np.random.default_rng(0)
    scores, actual = rng.integers(0, 9, (40, 3), np.uint8), rng.random((40, 3)) < 0.4
    given = inspect.unwrap(mean_average_precision)(scores, actual)
    assert given == mean_average_precision(scores.astype(np.float32), actual)
