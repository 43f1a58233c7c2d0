"""Retrieval metrics in both directions: recall at k, median rank, chance level.

Here: scores from one matrix of similarities, in numpy. Not here: embedding of images and captions, and whatever is
excluded from the gallery (the retrieval task decides and says so). Data flow: similarities come in, a report with
gallery size, recall and chance for each direction goes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from frozen_jax.errors import UserError


@dataclass(frozen=True)
class DirectionScores:
    """One direction of retrieval. Recall and chance are fractions by k; ranks count from 1."""

    queries: int
    gallery: int
    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float


@dataclass(frozen=True)
class RetrievalScores:
    """Both directions of retrieval over the same images and captions."""

    image_to_text: DirectionScores
    text_to_image: DirectionScores


def score_retrieval(
    similarity: Float[np.ndarray, "images captions"],
    relevant: Bool[np.ndarray, "rows columns"],
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> RetrievalScores:
    """Scores retrieval in both directions over a gallery of all images and all captions.

    Example: image 0 owns captions 0 and 1, image 1 owns caption 2.

        similarity   0    1    2      ranks by image: image 0 -> 1 (caption 1), image 1 -> 2
        image 0     .1   .9   .5      ranks by caption: 0 -> 2 (image 1 is nearer), 1 -> 1, 2 -> 2 (tie)
        image 1     .3   .6   .5

    Args:
        similarity: any score that is higher for a better match.
        relevant: which captions are right for which images; several images may share a caption.
        ks: the cut-offs, each at least 1.

    Returns:
        Scores of finding a caption for each image, and an image for each caption.

    Raises:
        UserError: as `score_direction`.
    """
    return RetrievalScores(
        image_to_text=score_direction(similarity, relevant, ks=ks),
        text_to_image=score_direction(similarity.T, relevant.T, ks=ks),
    )


def score_direction(
    similarity: Float[np.ndarray, "queries gallery"],
    relevant: Bool[np.ndarray, "rows columns"],
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> DirectionScores:
    """Scores one direction: each row is a query, each column an item of the gallery.

    A query may have several right items: it is a hit when any of them is among the first k, and its rank is that of
    the best one. Ties count against the query: of equal similarities the right item comes last, so that a model that
    gives the same value to everything scores 0 and not 1. Chance is the expected recall of a random order.

    Args:
        similarity: any score that is higher for a better match.
        relevant: the right items; every query has at least one.
        ks: the cut-offs, each at least 1.

    Raises:
        UserError: a similarity is not finite, a query has no right item, shapes differ or are empty, or a k is below 1.
    """
    relevant = np.asarray(relevant, bool)  # whole numbers would pick columns by number
    if similarity.shape != relevant.shape or not similarity.size:
        raise UserError(
            f"retrieval: similarities of shape {similarity.shape} and right items of shape {relevant.shape}; give both "
            "for the same queries and gallery, at least one of each"
        )
    if not ks or min(ks) < 1:
        raise UserError(f"ks={list(ks)}: recall at k needs cut-offs of at least 1; pass for example (1, 5, 10)")
    right = relevant.sum(axis=1)
    if lacking := np.flatnonzero(right == 0).tolist():
        raise UserError(
            f"retrieval: {len(lacking)} of {len(relevant)} queries have no right item in the gallery, first row "
            f"{lacking[0]}: such a query has no rank; leave it out"
        )
    ranks = np.empty(len(similarity), np.int64)
    # Row by row: full matrices of comparisons would double the memory of a large gallery.
    for query, row in enumerate(similarity):
        if not np.isfinite(row).all():
            raise UserError(
                f"retrieval: similarity of query row {query} is not finite: NaN compares false with everything and "
                "would count as a hit; look for the cause in the embeddings"
            )
        mine = relevant[query]
        ranks[query] = 1 + np.count_nonzero(row[~mine] >= row[mine].max())
    gallery = similarity.shape[1]
    sizes, counts = np.unique(right, return_counts=True)
    hits = {
        k: [
            hit_by_chance(gallery=gallery, right=size, k=k) * count
            for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)
        ]
        for k in ks
    }
    return DirectionScores(
        queries=len(ranks),
        gallery=gallery,
        recall={k: float(np.mean(ranks <= k)) for k in ks},
        chance={k: float(sum(hits[k]) / len(ranks)) for k in ks},
        median_rank=float(np.median(ranks)),
    )


def hit_by_chance(*, gallery: int, right: int, k: int) -> float:
    """Gives the probability that a random order has one of `right` items among the first k of the gallery."""
    return 1 - math.comb(gallery - right, min(k, gallery)) / math.comb(gallery, min(k, gallery))
