"""Retrieval metrics: the drawn example, ties, several captions per image, chance, and a naive re-count."""

import inspect
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.errors import UserError
from frozen_jax.metrics.retrieval import score_direction, score_retrieval

SIMILARITY = np.array([[0.1, 0.9, 0.5], [0.3, 0.6, 0.5]])
CAPTION_IMAGES = np.array([0, 0, 1])

SEEDS = st.integers(0, 2**32 - 1)


def owned(owners, images: int) -> np.ndarray:
    """Each caption belongs to one image."""
    return np.arange(images)[:, None] == np.asarray(owners)[None, :]


def test_the_drawn_example() -> None:
    scores = score_retrieval(SIMILARITY, owned(CAPTION_IMAGES, 2), ks=(1, 2))
    assert scores.image_to_text.recall == {1: 0.5, 2: 1.0}
    assert scores.image_to_text.median_rank == 1.5
    assert scores.text_to_image.recall == {1: pytest.approx(1 / 3), 2: 1.0}
    assert scores.text_to_image.median_rank == 2
    assert (scores.image_to_text.queries, scores.image_to_text.gallery) == (2, 3)
    assert (scores.text_to_image.queries, scores.text_to_image.gallery) == (3, 2)


def test_any_of_five_captions_is_a_hit() -> None:
    # Image 0's captions are the worst but for one, which is the best of all.
    similarity = np.zeros((2, 10))
    similarity[:, :5], similarity[:, 5:] = 0.1, 0.5
    similarity[0, 3] = 0.9
    scores = score_retrieval(similarity, owned(np.repeat([0, 1], 5), 2), ks=(1,))
    assert scores.image_to_text.recall[1] == 1.0


def test_equal_similarities_everywhere_score_nothing() -> None:
    scores = score_retrieval(np.zeros((4, 12)), owned(np.repeat(np.arange(4), 3), 4), ks=(1, 3, 4, 10))
    assert scores.image_to_text.recall == {1: 0, 3: 0, 4: 0, 10: 1}  # rank 1 + 9 wrong captions
    assert scores.text_to_image.recall == {1: 0, 3: 0, 4: 1, 10: 1}  # rank 1 + 3 wrong images
    assert (scores.image_to_text.median_rank, scores.text_to_image.median_rank) == (10, 4)


def test_chance_is_the_mean_over_all_orders() -> None:
    # Image 0 owns three of five captions, image 1 two: every order of the captions is equally likely.
    owners = [0, 0, 0, 1, 1]
    scores = score_retrieval(np.eye(2)[:, owners], owned(owners, 2), ks=(1, 2, 3, 9))
    for k in (1, 2, 3, 9):
        hits = [image in order[:k] for order in permutations(owners) for image in (0, 1)]
        assert scores.image_to_text.chance[k] == pytest.approx(np.mean(hits))
        assert scores.text_to_image.chance[k] == pytest.approx(min(k, 2) / 2)


def test_chance_of_the_usual_galleries() -> None:
    similarity = np.random.default_rng(0).random((1000, 5000), np.float32)
    scores = score_retrieval(similarity, owned(np.repeat(np.arange(1000), 5), 1000))
    assert scores.text_to_image.chance == {1: pytest.approx(0.001), 5: pytest.approx(0.005), 10: pytest.approx(0.01)}
    assert scores.image_to_text.chance[1] == pytest.approx(0.001)
    # A random model lands near chance: within four standard deviations of a binomial.
    assert scores.text_to_image.recall[10] == pytest.approx(0.01, abs=4 * (0.01 * 0.99 / 5000) ** 0.5)
    assert scores.image_to_text.recall[10] == pytest.approx(
        scores.image_to_text.chance[10], abs=4 * (0.01 / 1000) ** 0.5
    )


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 4), st.integers(0, 6))
def test_ranks_equal_a_naive_count(seed: int, images: int, more_captions: int) -> None:
    random = np.random.default_rng(seed)
    owners = random.permutation(np.concatenate([np.arange(images), random.integers(images, size=more_captions)]))
    similarity = random.integers(3, size=(images, len(owners))).astype(float)
    scores = score_retrieval(similarity, owned(owners, images), ks=tuple(range(1, 12)))

    def rank(values, right) -> int:
        # A stable sort from the best down in which wrong items come before right ones of equal value.
        order = sorted(range(len(values)), key=lambda item: (-values[item], right[item]))
        return 1 + next(place for place, item in enumerate(order) if right[item])

    by_image = [rank(similarity[image], owners == image) for image in range(images)]
    by_caption = [rank(similarity[:, c], np.arange(images) == owner) for c, owner in enumerate(owners)]
    for k in range(1, 12):
        assert scores.image_to_text.recall[k] == pytest.approx(np.mean(np.array(by_image) <= k))
        assert scores.text_to_image.recall[k] == pytest.approx(np.mean(np.array(by_caption) <= k))
    assert scores.image_to_text.median_rank == np.median(by_image)
    assert scores.text_to_image.median_rank == np.median(by_caption)


def test_pictures_that_share_a_caption_are_all_right() -> None:
    """Three pictures, two of the same scene: either is what its caption asked for, and each finds the other."""
    relevant = np.array([[True, False], [True, False], [False, True]])
    similarity = np.array([[0.1, 0.0], [0.9, 0.2], [0.5, 0.7]])
    scores = score_retrieval(similarity, relevant, ks=(1, 2))
    assert scores.text_to_image.recall == {1: 1.0, 2: 1.0}
    assert scores.text_to_image.chance == {1: 0.5, 2: pytest.approx((1 + 2 / 3) / 2)}
    among = score_direction(np.array([[0.4, 0.5], [0.4, 0.3]]), np.array([[True, False], [True, False]]), ks=(1,))
    assert among.recall == {1: 0.5} and among.chance == {1: 0.5}


@pytest.mark.parametrize(
    ("similarity", "relevant", "ks", "message"),
    [
        (SIMILARITY, owned([0, 1, 2], 2), (1,), "1 of 3 queries have no right item in the gallery, first row 2"),
        (SIMILARITY, owned([0, 0, 0], 2), (1,), "1 of 2 queries have no right item in the gallery, first row 1"),
        (np.zeros((2, 0)), np.zeros((2, 0), bool), (1,), "at least one of each"),
        (SIMILARITY, owned([0, 1], 2), (1,), "same queries and gallery"),
        (np.array([[0.1, np.nan]]), np.array([[True, True]]), (1,), "row 0 is not finite"),
        (SIMILARITY, owned(CAPTION_IMAGES, 2), (0, 1), "at least 1"),
        (SIMILARITY, owned(CAPTION_IMAGES, 2), (), "at least 1"),
    ],
)
def test_bad_input_is_refused_with_the_reason(similarity, relevant, ks, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_retrieval(similarity, relevant, ks=ks)


def test_right_items_may_be_marked_by_whole_numbers():
    """0 and 1 as indices would pick the first two columns."""
    rng = np.random.default_rng(0)
    similarity, marks = rng.normal(size=(8, 8)), np.eye(8, dtype=np.int64)
    given, expected = (inspect.unwrap(score_direction)(similarity, right) for right in (marks, marks.astype(bool)))
    assert given == expected
