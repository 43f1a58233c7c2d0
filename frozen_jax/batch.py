"""The batch: the one table of keys, dtypes, shapes and dimension letters. Next in the data flow: `steps.py`.

Dimension letters, used in every annotation and einsum of the project:

    B examples            I images per example     P prefix slots per image   S sequence (query) positions
    K key positions       D LM width               E vision width             F MLP width
    N heads               H head width             M vision tokens            V vocabulary
    L layers, T generated tokens, C classes or candidates; image height and width are written out.

A row of tokens with P = 2, right-padded as in training (prompts are left-padded):

    tokens     bos  SLOT SLOT  a   red  dot  eos  PAD
    loss_mask   0    0    0    1    1    1    1    0      1 where this token is to be predicted from those before it

SLOT, PAD and learned vectors are negative, so that no word of any vocabulary can be mistaken for them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32, UInt8

from frozen_jax.errors import UserError

SLOT = -1
"""Token id of a position that an image's prefix vector fills."""

PAD = -2
"""Token id of a position that holds nothing: masked out of attention and loss."""


PROMPT = -3
"""Token id of the first learned vector in front of a text (`adapters.py`); the others have the ids below it."""


def open_row(bos_id: int | None, *, prompt_length: int) -> tuple[int, ...]:
    """Returns the ids that a text begins with: bos, where there is one, and `prompt_length` learned vectors.

    bos  PROMPT  PROMPT-1  …  SLOT SLOT  a   red  dot
    """
    return (*(() if bos_id is None else (bos_id,)), *range(PROMPT, PROMPT - prompt_length, -1))


class Batch(NamedTuple):
    """One global batch of training or scoring examples: numpy on the host, then jax on the devices.

    Attributes:
        images: pixels 0..255, RGB; or the features that a frozen encoder has made of them before training
            (`features.py`). I = 0 for text-only training.
        tokens: word ids, SLOT, PAD or, from PROMPT down, learned vectors.
        loss_mask: 1 where the token is to be predicted, else 0.
        sample_ids: numbers of the examples in their source, row by row, for error messages and replay; several per row
            where a row holds several pairs, so that their number is a multiple of B.
        segments: for rows that hold several independent pairs the number of the pair that each position belongs to,
            from 1, and 0 on padding: attention and positions stay within one. None: a row is one text.
        labels: number of each row's class, -1 for one that is none of them; None where words are predicted.
    """

    images: UInt8[Array | np.ndarray, "B I height width 3"] | Float32[Array | np.ndarray, "B I E"]
    tokens: Int32[Array | np.ndarray, "B S"]
    loss_mask: Float32[Array | np.ndarray, "B S"]
    sample_ids: Int32[Array | np.ndarray, " examples"]
    segments: Int32[Array | np.ndarray, "B S"] | None = None
    labels: Int32[Array | np.ndarray, " B"] | None = None


def validate(batch: Batch, *, prefix_length: int, vocab_size: int, prompt_length: int = 0) -> None:
    """Checks a host batch before it goes to the devices.

    Args:
        prefix_length: P, slots per image.
        vocab_size: V; word ids must lie in [0, V).
        prompt_length: learned vectors in front of a text.

    Raises:
        UserError: a shape, dtype, id range or slot count does not fit; the message names the example.
    """
    rows, images = batch.images.shape[:2]
    if batch.tokens.shape != batch.loss_mask.shape or len(batch.tokens) != rows or len(batch.sample_ids) % rows:
        raise UserError(
            f"batch: images {batch.images.shape}, tokens {batch.tokens.shape}, loss_mask {batch.loss_mask.shape} and "
            f"sample_ids {batch.sample_ids.shape} must agree in examples and positions"
        )
    seen = np.uint8 if batch.images.ndim == 5 else np.float32
    for name, array, dtype in (("images", batch.images, seen), ("tokens", batch.tokens, np.int32)):
        if array.dtype != dtype:
            raise UserError(
                f"batch: {name} is {array.dtype}, must be {np.dtype(dtype)}; convert it in the data pipeline"
            )
    names = np.asarray(batch.sample_ids).reshape(rows, -1)[:, 0]
    slots = (batch.tokens == SLOT).sum(axis=1)
    if (slots != images * prefix_length).any():
        row = int(np.argmax(slots != images * prefix_length))
        raise UserError(
            f"batch: example {names[row]} has {slots[row]} image slots, needs {images} images x "
            f"{prefix_length} slots = {images * prefix_length}; was the text cut? raise data.max_tokens"
        )
    wrong = (batch.tokens <= PROMPT - prompt_length) | (batch.tokens >= vocab_size)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"batch: example {names[row]} has token id {batch.tokens[row, column]} outside the language "
            f"model's vocabulary of {vocab_size}; the tokenizer belongs to another model"
        )
    if batch.segments is not None and ((batch.segments > 0) != (batch.tokens != PAD)).any():
        raise UserError("batch: segments must number every word and slot from 1 and be 0 on padding alone")
    if (batch.loss_mask * (batch.tokens < 0)).any():
        raise UserError("batch: loss_mask is set on an image slot or on padding; only words are predicted")
