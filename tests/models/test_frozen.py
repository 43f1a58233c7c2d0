import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.batch import PAD, SLOT
from frozen_jax.models.frozen import input_mask, insert_slots


def test_insert_slots_as_drawn():
    tokens = jnp.array([[7, SLOT, SLOT, 9, SLOT, SLOT]])
    words = jnp.full((1, 6, 1), 100.0)
    prefixes = jnp.array([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    assert insert_slots(words, tokens, prefixes)[0, :, 0].tolist() == [100, 1, 2, 100, 3, 4]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_slots_take_the_images_in_order_wherever_they_stand(images, length, random):
    """Against a loop; words and padding keep their embeddings, and a second row does not disturb the first."""
    rows = []
    for _ in range(2):
        row = [SLOT] * (images * length) + [5] * 2 + [PAD]
        random.shuffle(row)
        rows.append(row)
    rng = np.random.default_rng(random.randrange(1000))
    words = rng.normal(size=(2, len(rows[0]), 4)).astype(np.float32)
    prefixes = rng.normal(size=(2, images, length, 4)).astype(np.float32)
    want = words.copy()
    for row in range(2):
        vectors = iter(prefixes[row].reshape(-1, 4))
        for place, token in enumerate(rows[row]):
            if token == SLOT:
                want[row, place] = next(vectors)
    got = insert_slots(jnp.asarray(words), jnp.asarray(rows), jnp.asarray(prefixes))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("token", "present"), [(0, True), (7, True), (SLOT, True), (PAD, False)])
def test_only_padding_is_masked(token, present):
    assert bool(input_mask(jnp.array([[token]]))[0, 0]) is present
