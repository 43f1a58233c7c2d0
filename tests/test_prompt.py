import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozen_jax.batch import PAD, SLOT, open_row
from frozen_jax.errors import UserError
from frozen_jax.models.masks import positions_from_mask
from frozen_jax.prompt import Image, check_room, count_fitting_shots, encode_prompt, fill, lay_out, round_up, show

WORDS = {" what?": [5, 6], " red.": [8]}


def encode(prompt, bos_id=None):
    return encode_prompt(prompt, encode=WORDS.__getitem__, prefix_length=2, opening=open_row(bos_id, prompt_length=0))


def test_an_image_takes_its_slots_where_it_stands():
    assert encode((Image(4), " what?")) == [SLOT, SLOT, 5, 6]
    assert encode((Image(4), " red.", Image(1), " what?"), bos_id=0) == [0, SLOT, SLOT, 8, SLOT, SLOT, 5, 6]


def test_prompts_of_different_shape_share_a_batch():
    prompts = [(Image(4), " red.", Image(1), " what?"), (" red.",), (Image(3), " what?")]
    rows = lay_out([encode(prompt) for prompt in prompts], prompts, length=8)
    assert rows.tokens.tolist() == [
        [PAD, SLOT, SLOT, 8, SLOT, SLOT, 5, 6],
        [PAD] * 7 + [8],
        [PAD] * 4 + [SLOT, SLOT, 5, 6],
    ]
    assert rows.images.tolist() == [[4, 1], [0, 0], [3, 0]]
    assert rows.mask.sum(axis=1).tolist() == [7, 1, 4]
    assert rows.slots.sum(axis=1).tolist() == [4, 0, 2]
    assert rows.positions.tolist() == [[0, 0, 1, 2, 3, 4, 5, 6], [0] * 8, [0, 0, 0, 0, 0, 1, 2, 3]]
    np.testing.assert_array_equal(rows.positions, positions_from_mask(jnp.asarray(rows.mask)))


@pytest.mark.parametrize("prompt", [(), (Image(0), " what?", " what?")])
def test_empty_and_long_prompts_are_refused(prompt):
    with pytest.raises(UserError, match=r"prompt 0 has \d positions; it must have 1 to 5"):
        lay_out([encode(prompt)], [prompt], length=5)


def test_a_template_is_filled_once_and_never_read_again():
    """A question that spells a mark or braces is text."""
    prompt = fill("Look: [img] Q: {question}\n", Image(3), question="what is [img] {question}?")
    assert prompt == ("Look: ", Image(3), " Q: what is [img] {question}?\n")
    assert show(prompt) == "Look: [img] Q: what is [img] {question}?\n"
    assert fill("[img]", Image(0)) == (Image(0),)
    assert fill("[img] Q:", " a red circle") == (" a red circle", " Q:")


SHOT, QUERY = (Image(0), " red."), (Image(1), " what?")  # 3 and 4 positions


@pytest.mark.parametrize(("room", "fitting"), [(13, 3), (12, 2), (10, 2), (9, 1), (7, 1), (6, 0), (4, 0), (3, -1)])
def test_shots_that_fit_by_hand(room, fitting):
    measure = lambda parts: len(encode(parts))  # noqa: E731
    assert count_fitting_shots(SHOT * 3 + QUERY, room=room, measure=measure) == fitting


@pytest.mark.parametrize(
    ("prompt", "limit", "message"),
    [
        (
            SHOT * 3 + QUERY,
            12,
            r"prompt 1 has 14 positions, 8 of them image slots \(4 images\).* 2 new .* 12 .*: 2 of ",
        ),
        (QUERY, 5, r"prompt 1 has 5 positions.*shorten it, or lower the new tokens to 1$"),
        (QUERY, 4, r"has 4 positions: shorten it$"),
        (SHOT + QUERY, 4, r"none of its shots would fit, nor would the query alone"),
    ],
)
def test_long_prompts_are_refused_with_the_counts(prompt, limit, message):
    """With bos, and two tokens to come, of which the last is never fed."""
    prompts = [(" red.",), prompt]
    rows = [encode(p, bos_id=0) for p in prompts]
    check_room(prompts, rows, new_tokens=2, limit=len(rows[1]) + 1, measure=lambda parts: len(encode(parts)))
    with pytest.raises(UserError, match=message):
        check_room(prompts, rows, new_tokens=2, limit=limit, measure=lambda parts: len(encode(parts)))


@given(st.integers(1, 5000))
def test_few_lengths_with_little_waste(length):
    rounded = round_up(length)
    assert length <= rounded < max(length + 8, 1.25 * length + 1)
    assert round_up(rounded) == rounded
    assert len({round_up(n) for n in range(1, 1025)}) == 24
