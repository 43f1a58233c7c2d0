"""Batches of prompts: each prompt once, like lengths together, common beginnings apart where that pays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozen_jax.batch import PAD, SLOT
from frozen_jax.prompt import Image
from frozen_jax.prompt_batches import Encoded, fill_up, find_query, make_batches


def encode(parts):
    """Text is its letters, an image two slots."""

    def ids_of(parts):
        return [token for part in parts for token in ([SLOT] * 2 if isinstance(part, Image) else map(ord, part))]

    start = find_query(parts)
    return Encoded(parts, ids_of(parts), start, len(ids_of(parts[:start])))


SHOTS = [(Image(row), "a long shot", Image(row + 1), "another shot") for row in range(3)]
prompts_of_any_shape = st.lists(
    st.tuples(
        st.sampled_from([(), *SHOTS, ("induction",)]),
        st.sampled_from([(Image(7), "what?"), (Image(8),), ("text",), (Image(9), "what is it?", " end")]),
    ).map(lambda pair: encode(pair[0] + pair[1])),
    min_size=1,
    max_size=20,
)


@given(prompts_of_any_shape, st.integers(1, 8), st.sampled_from([1, 2, 3]))
def test_every_prompt_is_there_once_and_whole(prompts, batch_size, devices):
    found = {}
    for numbers, rows, beginnings, owners in make_batches(prompts, batch_size=batch_size, devices=devices):
        assert len(numbers) <= batch_size and len(rows.tokens) % devices == 0
        for place, number in enumerate([*numbers, *[numbers[0]] * (len(rows.tokens) - len(numbers))]):
            ids, images = [], []
            for part, row in ((beginnings, owners[place] if owners is not None else 0), (rows, place)):
                if part is not None:
                    ids += [token for token in part.tokens[row].tolist() if token != PAD]
                    images += part.images[row].tolist()[: (part.tokens[row] == SLOT).sum() // 2]
            assert ids == prompts[number].ids
            assert images == [part.row for part in prompts[number].parts if isinstance(part, Image)]
        assert not set(numbers) & set(found)
        found |= dict.fromkeys(numbers)
    assert sorted(found) == list(range(len(prompts)))


def test_the_query_is_the_last_image_with_what_follows():
    assert find_query((Image(0), "a", Image(1), "b", "c")) == 2
    assert (
        find_query(("induction", "text")) == 1
        and find_query(("text",)) == find_query(()) == find_query((Image(0),)) == 0
    )


def test_few_beginnings_are_laid_out_apart_and_many_are_not():
    shared = [encode(SHOTS[row % 2] + (Image(7 + row), "what?")) for row in range(8)]
    (batch,) = make_batches(shared, batch_size=8, devices=1)
    assert batch.rows.tokens.shape == (8, 8) and batch.beginnings.tokens.shape == (2, 32)
    assert batch.numbers == [0, 2, 4, 6, 1, 3, 5, 7] and batch.owners.tolist() == [0] * 4 + [1] * 4
    own = [encode((Image(row), "a long shot", Image(7), "what?")) for row in range(8)]
    (batch,) = make_batches(own, batch_size=8, devices=1)
    assert batch.beginnings is None and batch.rows.tokens.shape == (8, 24)


def test_like_lengths_stand_together():
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    prompts = [encode(("x" * length,)) for length in lengths]
    batches = list(make_batches(prompts, batch_size=32, devices=1))
    computed = sum(batch.rows.tokens.size for batch in batches)
    assert computed < 1.3 * lengths.sum()  # unsorted: 500 rows of about 200, twice the sum
    widths = [batch.rows.tokens.shape[1] for batch in batches]
    assert widths == sorted(widths) and len(set(widths)) <= 13


@pytest.mark.parametrize(("of", "devices", "size"), [(3, 1, 4), (3, 8, 8), (90, 1, 64), (90, 6, 66), (1, 1, 1)])
def test_batches_have_few_sizes(of, devices, size):
    filled = fill_up([5, 6, 7][:of], of=of, most=64, devices=devices)
    assert len(filled) == size and filled[:1] == [5] and set(filled[3:]) <= {5}
