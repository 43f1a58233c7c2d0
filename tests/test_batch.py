import numpy as np
import pytest

from frozen_jax.batch import PAD, SLOT, Batch, validate
from frozen_jax.errors import UserError


def make(**changes):
    batch = Batch(
        images=np.zeros((2, 1, 4, 4, 3), np.uint8),
        tokens=np.array([[0, SLOT, SLOT, 5, 7, PAD], [0, SLOT, SLOT, 9, PAD, PAD]], np.int32),
        loss_mask=np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]], np.float32),
        sample_ids=np.array([11, 12], np.int32),
    )
    return batch._replace(**changes)


def test_a_good_batch_passes():
    validate(make(), prefix_length=2, vocab_size=10)


@pytest.mark.parametrize(
    ("changes", "vocab_size", "message"),
    [
        ({}, 8, "example 12 has token id 9 outside the language model's vocabulary of 8"),
        (
            {"images": np.zeros((2, 2, 4, 4, 3), np.uint8)},
            10,
            "example 11 has 2 image slots, needs 2 images x 2 slots = 4",
        ),
        ({"loss_mask": np.ones((2, 6), np.float32)}, 10, "loss_mask is set on an image slot or on padding"),
        ({"loss_mask": np.ones((2, 5), np.float32)}, 10, "must agree in examples and positions"),
        ({"images": np.zeros((2, 1, 4, 4, 3), np.float32)}, 10, "images is float32, must be uint8"),
        ({"tokens": np.full((2, 6), -3, np.int32)}, 10, "slots"),
    ],
)
def test_each_fault_is_named(changes, vocab_size, message):
    with pytest.raises(UserError, match=message):
        validate(make(**changes), prefix_length=2, vocab_size=vocab_size)
