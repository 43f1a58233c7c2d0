"""Two pairs in a row, packed rows, buckets: as drawn, nothing lost, and how much of the padding goes."""

from dataclasses import replace

import numpy as np
import pytest

from frozen_jax.batch import PAD, SLOT, validate
from frozen_jax.data.fake import FakeSource
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.sequences import packed_row, piece_length, plan_packing, trim_to_bucket
from frozen_jax.data.text import Piece, RowLayout, text_row
from frozen_jax.errors import UserError

LAYOUT = RowLayout(max_tokens=11, prefix_length=2, bos_id=90, eos_id=91)


def test_the_drawn_packed_row():
    row = packed_row([Piece([5, 6]), Piece([7])], layout=LAYOUT)
    assert row.tokens.tolist() == [90, SLOT, SLOT, 5, 6, 91, 90, SLOT, SLOT, 7, 91]
    assert row.segments.tolist() == [1] * 6 + [2] * 5
    assert row.loss_mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    single = packed_row([Piece([5])], layout=LAYOUT)
    assert single.segments.tolist() == [1] * 5 + [0] * 6 and single.tokens[5:].tolist() == [PAD] * 6


def test_a_full_packed_row_cuts_its_longest_texts():
    row = packed_row([Piece([5, 6, 7, 8]), Piece([7])], layout=LAYOUT)
    assert row.tokens.tolist() == [90, SLOT, SLOT, 5, 6, 7, 90, SLOT, SLOT, 7, 91], "cut, and without eos"
    assert row.loss_mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="of the 4 pairs of a row .* take 12 of its 11 positions.* to 20 or more"):
        packed_row([Piece([5]), Piece([7]), Piece([8]), Piece([9])], layout=LAYOUT)


def test_a_full_packed_row_cuts_no_prompt():
    """A question's prompt takes most of its length: cut to the length of its neighbour it would have no answer left."""
    pieces = [Piece([5, 6], prompt=[4] * 5), Piece([7, 8, 9])]
    row = packed_row(pieces, layout=replace(LAYOUT, max_tokens=15))
    assert row.tokens.tolist() == [90, SLOT, SLOT, 4, 4, 4, 4, 4, 5, 6, 90, SLOT, SLOT, 7, 8]
    assert row.loss_mask.tolist() == [0] * 8 + [1, 1] + [0] * 3 + [1, 1]


def test_each_segment_is_the_row_that_it_would_be_alone():
    pieces = [Piece([3] * n, prompt=[4] * (n % 2)) for n in (1, 4, 2)]
    layout = RowLayout(max_tokens=40, prefix_length=2, bos_id=90, eos_id=91)
    row = packed_row(pieces, layout=layout)
    for number, piece in enumerate(pieces, 1):
        inside = row.segments == number
        tokens, mask = text_row([piece], layout=layout)
        length = piece_length(piece, layout=layout)
        assert row.tokens[inside].tolist() == tokens[:length].tolist() and (tokens[length:] == PAD).all()
        assert row.loss_mask[inside].tolist() == mask[:length].tolist()


def test_a_first_word_is_never_predicted_from_the_text_before_it():
    """Without bos, slots and prompt a text begins with a word that carries loss."""
    layout = RowLayout(max_tokens=9, prefix_length=2, bos_id=None, eos_id=91)
    row = packed_row([Piece([5, 6], images=0), Piece([7], images=0)], layout=layout)
    assert row.tokens.tolist() == [5, 6, 91, 7, 91, PAD, PAD, PAD, PAD]
    assert row.loss_mask.tolist() == [0, 1, 1, 0, 1, 0, 0, 0, 0]


def test_no_text_of_a_packed_row_goes_beyond_the_positions_of_the_language_model():
    layout = replace(LAYOUT, max_tokens=30, positions=7)  # bos and 2 slots, so 4 of words and eos
    row = packed_row([Piece([7, 8]), Piece([3] * 20)], layout=layout)
    assert row.tokens.tolist() == [90, SLOT, SLOT, 7, 8, 91, 90, SLOT, SLOT, 3, 3, 3, 3, *[PAD] * 17]
    with pytest.raises(UserError, match="take 7 positions, and the language model has 7"):
        packed_row([Piece([7], prompt=[4] * 4), Piece([3])], layout=layout)


def test_plans_use_every_text_once_and_are_even():
    lengths = np.random.default_rng(0).geometric(0.1, 64).clip(1, 40).tolist()
    rows = plan_packing(lengths, pairs=4)
    assert sorted(n for row in rows for n in row) == list(range(64)) and {len(row) for row in rows} == {4}
    sums = [sum(lengths[n] for n in row) for row in rows]
    assert max(sums) < 1.25 * np.mean(sums) and max(sums) < 4 * max(lengths) / 2
    with pytest.raises(UserError, match="multiple"):
        plan_packing([1, 2, 3], pairs=2)


SINGLE = RowLayout(max_tokens=16, prefix_length=2, bos_id=1, eos_id=2)


def make(*, layout=SINGLE, **options):
    return Pipeline(
        FakeSource(32),
        text=lambda record, rng: "word" * int(rng.integers(1, 5)),
        encode=lambda text: [7] * (len(text) // 4),
        layout=layout,
        options=PipelineOptions(**{"batch_size": 8, "images": ImageOptions(8), **options}),
    )


def test_buckets_cut_only_shared_padding():
    whole, cut = make().batch(Position(0, 0)), make(buckets=(6, 8, 10, 16)).batch(Position(0, 0))
    length = cut.tokens.shape[1]
    assert length == 8 and (whole.tokens[:, length:] == PAD).all() and not (cut.tokens[:, 6:] == PAD).all()
    np.testing.assert_array_equal(whole.tokens[:, :length], cut.tokens)
    np.testing.assert_array_equal(whole.loss_mask[:, :length], cut.loss_mask)
    with pytest.raises(UserError, match="fits no bucket"):
        trim_to_bucket(whole, buckets=(4,))
    for bad in ({"buckets": (8, 6)}, {"buckets": (8,), "process_count": 2}):
        with pytest.raises(UserError, match="must rise"):
            make(**bad)


def test_two_pairs_per_row():
    whole, paired = make().batch(Position(0, 8)), make(pair_probability=1.0).batch(Position(0, 8))
    validate(paired, prefix_length=2, vocab_size=10)
    assert paired.images.shape == (4, 2, 8, 8, 3) and paired.tokens.shape == (4, 32)
    np.testing.assert_array_equal(paired.images.reshape(whole.images.shape), whole.images)
    assert paired.sample_ids.tolist() == whole.sample_ids.tolist()
    for row in range(4):
        words = [whole.tokens[2 * row + i] for i in (0, 1)]
        expected = [*words[0][words[0] != PAD], *words[1][words[1] != PAD][1:]]
        assert paired.tokens[row][paired.tokens[row] != PAD].tolist() == expected, "one bos, then both pairs"
    assert paired.loss_mask.sum() == whole.loss_mask.sum()


def test_packed_batches_hold_the_same_pairs():
    options = {"batch_size": 8, "pack": 4}
    single = make().batch(Position(0, 8))
    batch = make(layout=RowLayout(max_tokens=28, prefix_length=2, bos_id=1, eos_id=2), **options).batch(Position(0, 8))
    validate(batch, prefix_length=2, vocab_size=10)
    assert batch.images.shape == (2, 4, 8, 8, 3) and batch.tokens.shape == batch.segments.shape == (2, 28)
    assert sorted(batch.sample_ids.tolist()) == sorted(single.sample_ids.tolist())
    for place, sample in enumerate(batch.sample_ids.tolist()):
        row, alone = divmod(place, 4)[0], single.sample_ids.tolist().index(sample)
        inside = batch.segments[row] == place % 4 + 1
        there = single.tokens[alone] != PAD
        assert batch.tokens[row][inside].tolist() == single.tokens[alone][there].tolist()
        assert batch.loss_mask[row][inside].tolist() == single.loss_mask[alone][there].tolist()
        np.testing.assert_array_equal(batch.images[row, place % 4], single.images[alone, 0])
    cut = make(layout=RowLayout(40, 2, 1, 2), buckets=(28, 40), **options).batch(Position(0, 8))
    assert cut.tokens.shape == cut.segments.shape == (2, 28)
    for bad in ({"pack": 3}, {"pack": 0}, {"pack": 2, "pair_probability": 0.5}):
        with pytest.raises(UserError, match="pack"):
            make(**{**options, **bad})


def test_a_packed_evaluation_counts_every_example_once():
    packed = list(make(batch_size=12, pack=4, layout=RowLayout(32, 2, 1, 2)).evaluation_batches())
    ids = np.concatenate([batch.sample_ids for batch in packed])
    assert sorted(ids[ids >= 0].tolist()) == list(range(32)) and (ids == -1).sum() == 4
    assert sum(batch.loss_mask.sum() for batch in packed) == sum(b.loss_mask.sum() for b in make().evaluation_batches())


def test_the_share_of_paired_batches_is_the_same_on_all_hosts():
    seen = []
    for step in range(40):
        position = Position(step, 8)
        shapes = {
            make(pair_probability=0.5, process_index=i, process_count=2, images=None).batch(position).tokens.shape
            for i in (0, 1)
        }
        assert len(shapes) == 1
        seen.append(shapes.pop()[1])
    assert 10 < seen.count(32) < 30 and set(seen) == {16, 32}
    with pytest.raises(UserError, match="even"):
        make(pair_probability=0.5, batch_size=6, process_count=2)
