import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.models.masks import (
    cache_mask,
    causal_mask,
    positions_from_mask,
    positions_from_segments,
    segment_mask,
)


def drawn(mask: object) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in np.asarray(mask)]


def test_causal_mask_as_drawn() -> None:
    mask = jnp.asarray([[0, 0, 1, 1, 1]], bool)
    assert drawn(causal_mask(mask)[0]) == [".....", ".....", "..x..", "..xx.", "..xxx"]
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1, 2]]


def test_causal_mask_of_right_padding() -> None:
    mask = jnp.asarray([[1, 1, 1, 0, 0]], bool)
    assert drawn(causal_mask(mask)[0]) == ["x....", "xx...", "xxx..", ".....", "....."]
    assert positions_from_mask(mask).tolist() == [[0, 1, 2, 2, 2]]


def test_segment_mask_as_drawn() -> None:
    segments = jnp.asarray([[1, 1, 2, 2, 0]])
    assert drawn(segment_mask(segments)[0]) == ["x....", "xx...", "..x..", "..xx.", "....."]


def test_positions_from_segments_as_drawn() -> None:
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 4, 4, 4]])
    assert positions_from_segments(segments).tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1, 2]]


def test_one_segment_is_the_causal_mask() -> None:
    mask = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert (segment_mask(mask.astype(jnp.int32)) == causal_mask(mask)).all()


def test_cache_mask_as_drawn() -> None:
    filled = jnp.asarray([[0, 1, 1, 1, 1]], bool)
    assert drawn(cache_mask(filled, cache_index=3, queries=2)[0]) == [".xxx.", ".xxxx"]


@pytest.mark.parametrize("index", range(5))
def test_cache_mask_of_one_query_is_a_row_of_the_causal_mask(index: int) -> None:
    filled = jnp.asarray([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    # A padding query sees nothing in the causal mask; with a cache it is never asked.
    rows = np.asarray(filled[:, index])
    ours = np.asarray(cache_mask(filled, cache_index=jnp.int32(index), queries=1)[:, 0])
    np.testing.assert_array_equal(ours[rows], np.asarray(causal_mask(filled)[:, index])[rows])
