"""What an encoder would say of a picture of each class that it was trained to tell apart, from its classifier alone.

A pre-trained encoder's file has, beside the encoder, the linear classifier that it was trained with: for thousands of
things it knows the direction in which a picture's feature must lie. With their names these directions are captioned
examples, though of no picture, that teach a prefix words which no caption of a small data set has.

For a linear discriminant of classes with means m_c and one common covariance S the classifier's weights are
w_c = S^-1 (m_c - m), up to a part that all classes share; so m_c = m + S w_c. Mean and covariance are those of real
pictures' features. The file is written by `tools/class_features.py` and read by `data/class_features.py`.

Source: Fisher's linear discriminant (Hastie et al., The Elements of Statistical Learning, 4.3), solved for the means.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

from frozen_jax.errors import UserError

SHRINKAGE = 0.1
"""Share of the covariance that is made the same in all directions: pictures are few, directions many."""

SURE = 0.5
"""Probability that the classifier has to give to its class; the feature goes as far from the mean as that takes."""

RESIDUAL = 0.5
"""Share of a real picture's deviation from the mean that is added to all but the first feature of a class."""

_STEPS = (4, 6, 8, 10, 12, 14, 16, 20, 24)


def estimate_class_features(
    features: Float[np.ndarray, "N E"],
    weights: Float[np.ndarray, "C E"],
    biases: Float[np.ndarray, " C"],
    *,
    per_class: int = 2,
    seed: int = 0,
) -> Float32[np.ndarray, "F E"]:
    """Returns `per_class` features of each class: all classes, then all again; F = C x per_class.

    Args:
        features: of real pictures; the encoder ends in a rectifier, so that none is negative.
        weights: of the classifier.
        biases: of the classifier.
        per_class: the first is the estimated mean, the others stand beside it, each with a part of what a real picture,
            drawn by the seed, has of its own.
        seed: of that drawing.

    Raises:
        UserError: fewer than two features, which have no covariance.
    """
    if len(features) < 2:
        raise UserError(
            f"class_features: {len(features)} pictures can be used, and how features spread shows in two at least; "
            "give more pictures, some hundreds for a good estimate"
        )
    mean = features.mean(axis=0)
    covariance = np.cov(features, rowvar=False)
    same = np.eye(features.shape[1]) * np.trace(covariance) / features.shape[1]
    directions = (weights - weights.mean(axis=0)) @ ((1 - SHRINKAGE) * covariance + SHRINKAGE * same)
    rng = np.random.default_rng(seed)
    made = []
    for turn in range(per_class):
        drawn = features[rng.integers(len(features), size=len(weights))]
        starts = mean + (RESIDUAL * (drawn - mean) if turn else 0.0 * drawn)
        made += [
            _go(start, way, number, weights, biases)
            for number, (start, way) in enumerate(zip(starts, directions, strict=True))
        ]
    return np.array(made, np.float32)


def _go(start: np.ndarray, way: np.ndarray, number: int, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Goes so far that the classifier is sure of the class, or to the last step."""
    for step in _STEPS:
        feature: np.ndarray = np.maximum(start + step * way, 0.0)
        logits = weights @ feature + biases
        shifted = np.exp(logits - logits.max())
        if shifted[number] / shifted.sum() > SURE:
            break
    return feature
