"""More text per row: two pairs in one row, several in one row with walls between them, and rows cut to a few lengths.

    two pairs   bos SLOT SLOT a … eos SLOT SLOT b … eos PAD      b may look at a and its picture (interleaved prompts)
    packed      bos SLOT SLOT a … eos bos SLOT b … eos PAD       segments 1 1 1 1 1 2 2 2 2 0, own positions, walls
    bucketed    a batch whose texts are all short loses its common padding, in steps

Rows of one pair are in `text.py`; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

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
    segments = None if batch.segments is None else batch.segments[:, :length]
    return batch._replace(tokens=batch.tokens[:, :length], loss_mask=batch.loss_mask[:, :length], segments=segments)


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
        segments: 1, 2, … by pair, 0 on padding: attention is allowed only within one segment.
    """

    tokens: Int32[np.ndarray, " S"]
    loss_mask: Float32[np.ndarray, " S"]
    segments: Int32[np.ndarray, " S"]


def packed_row(pieces: Sequence[Piece], *, layout: RowLayout) -> PackedRow:
    """Lays out several pairs behind one another, each as it would stand alone.

    Where they do not fit, the longest targets are cut, all to the same length, and one that the language model has no
    positions for to what it has; what is cut has no eos, as in `text_row`. Prompts are never cut.

    Raises:
        UserError: bos, slots and prompts leave less than one position for each target.
    """
    targets = [len(piece.target) + (layout.eos_id is not None) for piece in pieces]
    begins = [piece_length(piece, layout=layout) - target for piece, target in zip(pieces, targets, strict=True)]
    if layout.positions is not None:
        if layout.positions <= max(begins):
            raise UserError(
                f"data: bos, slots and prompt of a text take {max(begins)} positions, and the language model has "
                f"{layout.positions}; shorten the prompt"
            )
        targets = [min(target, layout.positions - begin) for begin, target in zip(begins, targets, strict=True)]
    room, longest = layout.max_tokens - sum(begins), max(targets)
    if room < len(pieces):
        raise UserError(
            f"data: bos, slots and prompts of the {len(pieces)} pairs of a row (data.pack) take {sum(begins)} of its "
            f"{layout.max_tokens} positions, and each text needs at least one more; raise data.max_tokens to "
            f"{sum(begins) + sum(targets)} or more, or lower data.pack"
        )
    while sum(min(target, longest) for target in targets) > room:
        longest -= 1
    lengths = [begin + min(target, longest) for begin, target in zip(begins, targets, strict=True)]
    rows = [
        text_row([piece], layout=replace(layout, max_tokens=length))
        for piece, length in zip(pieces, lengths, strict=True)
    ]
    packed = PackedRow(
        np.full(layout.max_tokens, PAD, np.int32),
        np.zeros(layout.max_tokens, np.float32),
        np.zeros(layout.max_tokens, np.int32),
    )
    begin = 0
    for number, ((tokens, loss_mask), length) in enumerate(zip(rows, lengths, strict=True), 1):
        place = slice(begin, begin + length)
        packed.tokens[place], packed.loss_mask[place] = tokens, loss_mask
        packed.segments[place] = number
        packed.loss_mask[begin] = 0.0  # what stands before it belongs to another text
        begin += length
    return packed


def lay_out_batch(
    images: UInt8[np.ndarray, "examples I height width 3"] | Float32[np.ndarray, "examples I E"],
    pieces: Sequence[Piece],
    sample_ids: Int64[np.ndarray, " examples"],
    *,
    layout: RowLayout,
    pack: int,
    paired: bool,
) -> Batch:
    """Puts examples into the rows of a batch: one in each, or `pack` with walls between them, or two in one text.

    Args:
        images: of each example, I = 1, or 0 for text alone; or their features.
        pieces: its text.
        sample_ids: its number.
        layout: of a row; a paired row has twice its positions.
        pack: examples per row.
        paired: two per row, not packed.
    """
    plan = [[number] for number in range(len(pieces))]
    if paired:
        plan = [[first, first + 1] for first in range(0, len(pieces), 2)]
        layout = replace(layout, max_tokens=2 * layout.max_tokens)
    elif pack > 1:
        plan = plan_packing([piece_length(piece, layout=layout) for piece in pieces], pairs=pack)
    order = np.array(plan).reshape(-1)
    rows = [[pieces[number] for number in row] for row in plan]
    segments = None
    if pack > 1:
        packed = [packed_row(row, layout=layout) for row in rows]
        tokens, loss_mask = np.stack([row.tokens for row in packed]), np.stack([row.loss_mask for row in packed])
        segments = np.stack([row.segments for row in packed])
    else:
        tokens, loss_mask = map(np.stack, zip(*(text_row(row, layout=layout) for row in rows), strict=True))
    shape = (len(plan), len(plan[0]) * images.shape[1], *images.shape[2:])
    return Batch(images[order].reshape(shape), tokens, loss_mask, sample_ids[order].astype(np.int32), segments)


def piece_length(piece: Piece, *, layout: RowLayout) -> int:
    """Returns the positions that one pair takes in a row of its own: bos, slots, prompt, target and eos."""
    ends = len(layout.opening) + (layout.eos_id is not None)
    return ends + piece.images * layout.prefix_length + len(piece.prompt) + len(piece.target)
