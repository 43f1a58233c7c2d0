"""Prompts: any interleaving of images and text → left-padded token rows with slots. Next in the data flow: `decode.py`.

A prompt is a list of parts; a part is text or the number of an image in a table of prefixes:

    [Image(7), " Question: what shape is present? Answer:"]       P = 2, with bos
    PAD PAD bos SLOT SLOT Question : what shape is present ? Answer :
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from frozen_jax.batch import PAD, SLOT
from frozen_jax.errors import UserError


class Image(NamedTuple):
    """An image in a prompt: its row in the table of prefixes."""

    row: int


Prompt = tuple[str | Image, ...]


class PromptRows(NamedTuple):
    """Prompts laid out for one batch.

    Attributes:
        tokens: left-padded word ids, SLOT and PAD.
        images: rows of the prefix table, in each prompt's order; prompts with fewer images repeat row 0 at the end,
            which no slot uses.
    """

    tokens: Int32[np.ndarray, "B S"]
    images: Int32[np.ndarray, "B I"]


def encode_prompt(
    prompt: Prompt, *, encode: Callable[[str], Sequence[int]], prefix_length: int, bos_id: int | None
) -> list[int]:
    """Returns the ids of a prompt, with P slots in place of each image; text parts are taken as they stand."""
    ids = [] if bos_id is None else [bos_id]
    for part in prompt:
        ids += [SLOT] * prefix_length if isinstance(part, Image) else list(encode(part))
    return ids


def lay_out(rows: Sequence[Sequence[int]], prompts: Sequence[Prompt], *, length: int) -> PromptRows:
    """Pads encoded prompts on the left to `length` positions.

    Raises:
        UserError: a prompt is empty or longer than `length`.
    """
    tokens = np.full((len(rows), length), PAD, np.int32)
    images = [[part.row for part in prompt if isinstance(part, Image)] for prompt in prompts]
    most = max(map(len, images), default=0)
    for index, ids in enumerate(rows):
        if not 0 < len(ids) <= length:
            raise UserError(
                f"prompt {index} has {len(ids)} positions; it must have 1 to {length}: shorten it or give fewer shots"
            )
        tokens[index, length - len(ids) :] = ids
    table = [numbers + [0] * (most - len(numbers)) for numbers in images]
    return PromptRows(tokens, np.array(table, np.int32).reshape(len(rows), most))
