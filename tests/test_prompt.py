import pytest

from frozen_jax.batch import PAD, SLOT
from frozen_jax.errors import UserError
from frozen_jax.prompt import Image, encode_prompt, lay_out

WORDS = {" what?": [5, 6], " red.": [8]}


def encode(prompt, bos_id=None):
    return encode_prompt(prompt, encode=WORDS.__getitem__, prefix_length=2, bos_id=bos_id)


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


@pytest.mark.parametrize("prompt", [(), (Image(0), " what?", " what?")])
def test_empty_and_long_prompts_are_refused(prompt):
    with pytest.raises(UserError, match=r"prompt 0 has \d positions; it must have 1 to 5"):
        lay_out([encode(prompt)], [prompt], length=5)
