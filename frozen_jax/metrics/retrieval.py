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
from jaxtyping import Float, Int

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
    caption_images: Int[np.ndarray, " captions"],
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> RetrievalScores:
    """Scores retrieval in both directions over a gallery of all images and all captions.

    An image may own several captions: it is found when any of them is among the first k, and its rank is that of its
    best one. Ties count against the query: of equal similarities the right item comes last, so that a model that gives
    the same value to everything scores 0 and not 1. Chance is the expected recall of a random order.

    Example: image 0 owns captions 0 and 1, image 1 owns caption 2.

        similarity   0    1    2      ranks by image: image 0 -> 1 (caption 1), image 1 -> 2
        image 0     .1   .9   .5      ranks by caption: 0 -> 2 (image 1 is nearer), 1 -> 1, 2 -> 2 (tie)
        image 1     .3   .6   .5

    Args:
        similarity: any score that is higher for a better match.
        caption_images: row of the image that each caption belongs to; every image has at least one caption.
        ks: the cut-offs, each at least 1.

    Returns:
        Scores of finding a caption for each image, and an image for each caption.

    Raises:
        UserError: a similarity is not finite, an index is out of range, an image has no caption, or a k is below 1.
    """
    by_image, by_caption = _rank_pessimistically(similarity, caption_images)
    if not ks or min(ks) < 1:
        raise UserError(f"ks={list(ks)}: recall at k needs cut-offs of at least 1; pass for example (1, 5, 10)")
    images, captions = similarity.shape
    owned = np.bincount(caption_images, minlength=images)
    sizes, images_of_size = np.unique(owned, return_counts=True)
    chance_of_caption = {
        k: sum(
            count * _hit_by_chance(gallery=captions, right=size, k=k)
            for size, count in zip(sizes.tolist(), images_of_size.tolist(), strict=True)
        )
        / images
        for k in ks
    }
    chance_of_image = {k: _hit_by_chance(gallery=images, right=1, k=k) for k in ks}
    return RetrievalScores(
        image_to_text=_summarise(by_image, gallery=captions, chance=chance_of_caption),
        text_to_image=_summarise(by_caption, gallery=images, chance=chance_of_image),
    )


def _rank_pessimistically(
    similarity: Float[np.ndarray, "images captions"], caption_images: Int[np.ndarray, " captions"]
) -> tuple[Int[np.ndarray, " images"], Int[np.ndarray, " captions"]]:
    """Ranks each image's best caption, and each caption's image: 1 + the number of wrong items not strictly worse."""
    images, captions = similarity.shape
    if not captions or caption_images.min() < 0 or caption_images.max() >= images:
        raise UserError(
            f"caption_images of {captions} captions do not all lie in 0..{images - 1}: each caption belongs to one row"
            " of the similarities; pass the row of its image"
        )
    if missing := np.flatnonzero(np.bincount(caption_images, minlength=images) == 0).tolist():
        raise UserError(
            f"{len(missing)} of {images} images have no caption, first row {missing[0]}: an image without one has no"
            " rank; leave it out of the similarities"
        )
    own = similarity[caption_images, np.arange(captions)]
    by_image = np.empty(images, np.int64)
    by_caption = np.zeros(captions, np.int64)
    # Row by row: full matrices of comparisons would double the memory of a large gallery.
    for image, row in enumerate(similarity):
        if not np.isfinite(row).all():
            raise UserError(
                f"similarity of image row {image} is not finite: NaN compares false with everything and would count as"
                " a hit; look for the cause in the embeddings"
            )
        mine = caption_images == image
        by_image[image] = 1 + np.count_nonzero(row[~mine] >= row[mine].max())
        # The right image counts itself, which is the 1 that ranks begin with.
        by_caption += row >= own
    return by_image, by_caption


def _hit_by_chance(*, gallery: int, right: int, k: int) -> float:
    """Gives the probability that a random order has one of `right` items among the first k of the gallery."""
    return 1 - math.comb(gallery - right, min(k, gallery)) / math.comb(gallery, min(k, gallery))


def _summarise(ranks: Int[np.ndarray, " queries"], *, gallery: int, chance: dict[int, float]) -> DirectionScores:
    return DirectionScores(
        queries=len(ranks),
        gallery=gallery,
        recall={k: float(np.mean(ranks <= k)) for k in chance},
        chance=chance,
        median_rank=float(np.median(ranks)),
    )
