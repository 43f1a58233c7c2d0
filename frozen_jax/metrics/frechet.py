"""Fréchet distance between two sets of features: how far apart two normal distributions fitted to them are.

What the features are of decides what the distance means; a task that reports it names the network. Source: Heusel et
al., arXiv 1706.08500, equation 6.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def frechet_distance(one: Float[np.ndarray, "R E"], other: Float[np.ndarray, "R2 E"]) -> float:
    """Returns |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of the means m and covariances C of two sets of features.

    0 for equal sets. Sets of one distribution have a distance above 0, the more the smaller they are: compare with that
    of two real sets of the same sizes.

    Args:
        one: features, at least 2.
        other: likewise.
    """
    means, covariances = [], []
    for features in (one, other):
        features = np.asarray(features, np.float64)
        means.append(features.mean(axis=0))
        covariances.append(np.atleast_2d(np.cov(features, rowvar=False)))
    root = _square_root(covariances[0])
    # C1 C2 has the eigenvalues of the symmetric C1^½ C2 C1^½, whose roots are safe where C1 C2 is nearly singular.
    both = np.linalg.eigvalsh(root @ covariances[1] @ root)
    shared = np.sqrt(np.maximum(both, 0)).sum()
    distance = np.square(means[0] - means[1]).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared
    return max(float(distance), 0.0)


def _square_root(matrix: Float[np.ndarray, "E E"]) -> Float[np.ndarray, "E E"]:
    values, vectors = np.linalg.eigh(matrix)
    root: Float[np.ndarray, "E E"] = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
