"""Classification and tagging metrics: top-k accuracy, F1, mean average precision, calibration error.

Here: numbers from arrays of scores and labels, in numpy. Not here: how class scores come about (the classification
task), and VQA's own accuracy (vqa.py). Data flow: scores and labels come in, numbers go out to the report.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from frozen_jax.errors import UserError


@dataclass(frozen=True)
class F1Scores:
    """F1 in [0, 1]: `macro` is the mean over classes, `micro` counts all decisions of all classes together."""

    macro: float
    micro: float


def top_k_accuracy(
    scores: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], *, k: int = 1
) -> float:
    """Gives the fraction of examples whose label is among the k classes of highest score.

    Ties count against the example: a model that scores all classes alike gets 0. Chance is k / classes.

    Args:
        scores: higher is more probable; minus infinity is allowed.
        labels: the right class of each example.
        k: how many guesses each example has.

    Returns:
        The accuracy in [0, 1].

    Raises:
        UserError: no examples, a score is NaN, a label is out of range, or k is below 1.
    """
    _check_scores(scores)
    classes = scores.shape[1]
    if labels.min() < 0 or labels.max() >= classes or k < 1:
        raise UserError(
            f"labels from {labels.min()} to {labels.max()} and k={k} with {classes} classes: a label is the column of"
            " the right class and k at least 1; check the order of the class names"
        )
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    # The right class counts itself, which is the 1 that ranks begin with.
    return float(np.mean(np.count_nonzero(scores >= own, axis=1) <= k))


def f1_scores(
    predicted: Bool[np.ndarray, "examples classes"], actual: Bool[np.ndarray, "examples classes"]
) -> F1Scores:
    """Gives macro and micro F1 of yes-or-no decisions, one for each example and class.

    For tags, `predicted` is `scores >= threshold`; for one label per example, one-hot rows on both sides, where micro
    F1 is the accuracy. A class that is neither predicted nor present counts as 0 in the macro mean (scikit-learn's
    `zero_division=0`), so drop columns that cannot occur.

    Args:
        predicted: which classes each example was given.
        actual: which classes each example has.

    Returns:
        Both means.

    Raises:
        UserError: no examples or no classes.
    """
    if not predicted.size:
        raise UserError(f"decisions of shape {predicted.shape}: F1 of nothing is undefined; pass at least one example")
    right = np.count_nonzero(predicted & actual, axis=0)
    decided = np.count_nonzero(predicted, axis=0) + np.count_nonzero(actual, axis=0)
    return F1Scores(
        macro=float(np.mean(2 * right / np.maximum(decided, 1))),
        micro=float(2 * right.sum() / max(int(decided.sum()), 1)),
    )


def mean_average_precision(
    scores: Float[np.ndarray, "examples classes"], actual: Bool[np.ndarray, "examples classes"]
) -> float:
    """Gives the mean over classes of average precision: examples ranked by score, precision averaged over positives.

    Examples of equal score enter together, so their order does not matter. Classes without a positive example have no
    average precision and are left out of the mean. Chance is each class's share of positives.

    Args:
        scores: higher is more probable; only the order within a class matters.
        actual: which classes each example has.

    Returns:
        The mean in [0, 1].

    Raises:
        UserError: no examples, a score is NaN, or no class has a positive example.
    """
    scores = np.asarray(scores, np.float64)  # unsigned numbers have no negative
    _check_scores(scores)
    columns = np.flatnonzero(actual.any(axis=0))
    if not len(columns):
        raise UserError(
            f"none of {actual.shape[1]} classes has a positive example: average precision averages over those;"
            " check that the tags of the annotations are those of the classes"
        )
    return float(np.mean([_average_precision(scores[:, column], actual[:, column]) for column in columns]))


def expected_calibration_error(
    confidence: Float[np.ndarray, " examples"], correct: Bool[np.ndarray, " examples"], *, bins: int = 15
) -> float:
    """Gives the mean distance between confidence and accuracy over bins of equal width, weighted by their examples.

    Bins are open below and closed above; the first also holds confidence 0.

    Args:
        confidence: probability that the model gives to its answer, in [0, 1].
        correct: whether the answer was right.
        bins: number of bins over [0, 1]; 15 is what most papers print.

    Returns:
        The error in [0, 1]; 0 is perfectly calibrated.

    Raises:
        UserError: no examples, a confidence outside [0, 1], or no bins.

    Source: Guo et al., "On calibration of modern neural networks", section 2.
    """
    if not confidence.size or not ((confidence >= 0) & (confidence <= 1)).all() or bins < 1:
        raise UserError(
            f"{confidence.size} confidences and bins={bins}: calibration compares at least one probability in [0, 1]"
            " with the accuracy of its bin; pass probabilities, not logits or log-probabilities"
        )
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    members = np.searchsorted(edges, confidence, side="left")
    gaps = np.bincount(members, weights=confidence, minlength=bins) - np.bincount(
        members, weights=correct, minlength=bins
    )
    return float(np.abs(gaps).sum() / confidence.size)


def _check_scores(scores: Float[np.ndarray, "examples classes"]) -> None:
    if not scores.size or np.isnan(scores).any():
        raise UserError(
            f"scores of shape {scores.shape} are empty or hold NaN: NaN compares false with everything and would count"
            " as a hit; look for the cause in the model"
        )


def _average_precision(scores: Float[np.ndarray, " examples"], actual: Bool[np.ndarray, " examples"]) -> float:
    """Sums precision times the step of recall at each distinct score, from the highest down."""
    thresholds, group = np.unique(-scores, return_inverse=True)
    positives = np.bincount(group, weights=actual, minlength=len(thresholds))
    retrieved = np.cumsum(np.bincount(group, minlength=len(thresholds)))
    precision = np.cumsum(positives) / retrieved
    return float(np.sum(precision * positives) / positives.sum())
