"""Rows of tokens: the drawn layouts, what is cut and what never is."""

import numpy as np
import pytest

from frozen_jax.batch import PAD, SLOT
from frozen_jax.data.text import CachedEncoder, Piece, RowLayout, caption_row, text_row
from frozen_jax.errors import UserError

LAYOUT = RowLayout(max_tokens=8, prefix_length=2, bos_id=90, eos_id=91)


def test_the_drawn_row():
    tokens, mask = caption_row([5, 6], bos_id=90, eos_id=91, images=1, prefix_length=2, max_tokens=8)
    assert tokens.tolist() == [90, SLOT, SLOT, 5, 6, 91, PAD, PAD]
    assert mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert tokens.dtype == np.int32 and mask.dtype == np.float32


def test_without_bos_eos_and_image():
    tokens, mask = caption_row([5, 6], bos_id=None, eos_id=None, images=0, prefix_length=2, max_tokens=4)
    assert tokens.tolist() == [5, 6, PAD, PAD] and mask.tolist() == [1, 1, 0, 0]


def test_token_zero_is_a_word():
    tokens, mask = caption_row([0, 0], bos_id=None, eos_id=0, images=1, prefix_length=1, max_tokens=5)
    assert tokens.tolist() == [SLOT, 0, 0, 0, PAD] and mask.tolist() == [0, 1, 1, 1, 0]


def test_a_cut_text_has_no_eos():
    tokens, mask = caption_row(range(20), bos_id=90, eos_id=91, images=1, prefix_length=2, max_tokens=8)
    assert tokens.tolist() == [90, SLOT, SLOT, 0, 1, 2, 3, 4] and mask.sum() == 5


def test_a_prompt_carries_no_loss():
    tokens, mask = text_row([Piece([7], prompt=[1, 2])], layout=LAYOUT)
    assert tokens.tolist() == [90, SLOT, SLOT, 1, 2, 7, 91, PAD]
    assert mask.tolist() == [0, 0, 0, 0, 0, 1, 1, 0]


def test_two_pictures_in_one_row():
    layout = RowLayout(max_tokens=11, prefix_length=2, bos_id=90, eos_id=91)
    tokens, mask = text_row([Piece([5, 6]), Piece([7])], layout=layout)
    assert tokens.tolist() == [90, SLOT, SLOT, 5, 6, 91, SLOT, SLOT, 7, 91, PAD]
    assert mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0]
    # the first is cut so that the second fits
    tokens, _ = text_row([Piece(range(20)), Piece([7])], layout=layout)
    assert tokens.tolist() == [90, SLOT, SLOT, 0, 1, 2, 3, SLOT, SLOT, 7, 91], (
        "the first is cut so that the second fits"
    )


def test_no_room():
    with pytest.raises(UserError, match="max_tokens to 10"):
        text_row([Piece([7], prompt=[1, 2, 3, 4, 5])], layout=LAYOUT)


def test_the_encoder_remembers_and_forgets():
    calls = []
    encode = CachedEncoder(lambda text: calls.append(text) or [len(text)], capacity=2)
    assert [encode(text) for text in ("a", "a", "bb", "ccc", "a")] == [(1,), (1,), (2,), (3,), (1,)]
    assert calls == ["a", "bb", "ccc", "a"]
