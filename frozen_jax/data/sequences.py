"""More text per row: two pairs in one row, several in one row with walls between them, and rows cut to a few lengths.

    two pairs   bos SLOT SLOT a … eos SLOT SLOT b … eos PAD      b may look at a and its picture (interleaved prompts)
    packed      bos SLOT SLOT a … eos bos SLOT b … eos PAD       segments 1 1 1 1 1 2 2 2 2 0, own positions, walls
    bucketed    a batch whose texts are all short loses its common padding, in steps

Rows of one pair are in `text.py`; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from frozen_jax.batch import PAD, Batch
from frozen_jax.data.text import Piece, RowLayout, text_row
from frozen_jax.errors import UserError


def trim_to_bucket(batch: Batch, *, buckets: Sequence[int]) -> Batch:
    """Cuts padding on the right that all rows share, down to the shortest bucket that holds every text.

    A few fixed lengths, so that the step is compiled only that many times. On several hosts all must cut alike: pass
    each host the longest length of the global batch, or leave bucketing off there.

    Args:
        batch: rows padded on the right.
        buckets: allowed lengths, rising; the last must hold the longest row.

    Raises:
        UserError: no bucket is long enough.
    """
    used = int((batch.tokens != PAD).sum(axis=1).max())
    length = next((bucket for bucket in buckets if bucket >= used), None)
    if length is None:
        raise UserError(f"data: a row of {used} tokens fits no bucket of {list(buckets)}; add data.max_tokens to them")
    return batch._replace(tokens=batch.tokens[:, :length], loss_mask=batch.loss_mask[:, :length])


def plan_packing(lengths: Sequence[int], *, pairs: int) -> list[list[int]]:
    """Puts texts into rows of exactly `pairs`, so that the longest row is short: long ones meet short ones.

    Exactly, not at most: every row then has the same number of pictures, and a batch keeps one shape.

    Args:
        lengths: of each text with its slots, bos and eos.
        pairs: texts per row; must divide their number.

    Returns:
        for each row the numbers of its texts.

    Raises:
        UserError: the number of texts is no multiple of `pairs`.
    """
    if len(lengths) % pairs:
        raise UserError(f"data: {len(lengths)} texts cannot be packed {pairs} to a row; make batch_size a multiple")
    rows: list[list[int]] = [[] for _ in range(len(lengths) // pairs)]
    used = [0] * len(rows)
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = min((i for i in range(len(rows)) if len(rows[i]) < pairs), key=lambda i: (used[i], i))
        rows[row].append(number)
        used[row] += lengths[number]
    return rows


class PackedRow(NamedTuple):
    """Several pairs in one row.

    Attributes:
        tokens: words, SLOT or PAD.
        loss_mask: 1 where a token is to be predicted; never on a segment's first token.
        positions: counted from 0 within each segment; 0 on padding.
        segments: 1, 2, … by pair, 0 on padding: attention is allowed only within one segment.
    """

    tokens: Int32[np.ndarray, " S"]
    loss_mask: Float32[np.ndarray, " S"]
    positions: Int32[np.ndarray, " S"]
    segments: Int32[np.ndarray, " S"]


def packed_row(pieces: Sequence[Piece], *, layout: RowLayout) -> PackedRow:
    """Lays out several pairs behind one another, each exactly as it would stand alone.

    Raises:
        UserError: they do not fit; plan rows with `plan_packing`.
    """
    rows = [text_row([piece], layout=layout) for piece in pieces]
    lengths = [int((tokens != PAD).sum()) for tokens, _ in rows]
    if sum(lengths) > layout.max_tokens:
        raise UserError(
            f"data: {len(pieces)} texts of {sum(lengths)} tokens do not fit in a row of {layout.max_tokens}; "
            "plan rows with plan_packing or raise data.max_tokens"
        )
    packed = PackedRow(
        np.full(layout.max_tokens, PAD, np.int32),
        np.zeros(layout.max_tokens, np.float32),
        np.zeros(layout.max_tokens, np.int32),
        np.zeros(layout.max_tokens, np.int32),
    )
    begin = 0
    for number, ((tokens, loss_mask), length) in enumerate(zip(rows, lengths, strict=True), 1):
        place = slice(begin, begin + length)
        packed.tokens[place], packed.loss_mask[place] = tokens[:length], loss_mask[:length]
        packed.positions[place], packed.segments[place] = np.arange(length), number
        begin += length
    return packed


def piece_length(piece: Piece, *, layout: RowLayout) -> int:
    """Returns the positions that one pair takes in a row of its own: bos, slots, prompt, target and eos."""
    ends = (layout.bos_id is not None) + (layout.eos_id is not None)
    return ends + piece.images * layout.prefix_length + len(piece.prompt) + len(piece.target)
