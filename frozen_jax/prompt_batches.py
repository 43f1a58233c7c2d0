"""Encoded prompts → batches of like length, with what prompts begin with in common laid out once. Used by `api.py`.

A prompt's query is its last image with all that follows, or, without images, its last part; its beginning is what
stands before: the task induction and the shots. Where the prompts of a call have few different beginnings, those are
batched apart and run once:

    [shots a][img] Question: … Answer:          beginnings    rows                         owners
    [shots a][img] Question: … Answer:     →    [shots a]     [img] Question: … Answer:    0
    [shots b][img] Question: … Answer:          [shots b]     [img] Question: … Answer:    0
                                                              [img] Question: … Answer:    1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from frozen_jax.prompt import Image, Prompt, PromptRows, lay_out, round_up

WORTHWHILE = 0.75
"""Beginnings are run apart where that leaves at most this share of the positions to be computed."""


class Encoded(NamedTuple):
    """A prompt, its ids, and where its query begins among its parts and its ids; 0 and 0: nothing stands before it."""

    parts: Prompt
    ids: list[int]
    query_part: int = 0
    query_id: int = 0

    @property
    def beginning(self) -> Prompt:
        """What stands before the query."""
        return self.parts[: self.query_part]


class PromptBatch(NamedTuple):
    """Prompts that are computed together.

    Attributes:
        numbers: which prompts the first rows are; those behind repeat the first and fill the batch up.
        rows: the prompts, or what follows their beginnings.
        beginnings: the different beginnings, where they are laid out apart.
        owners: row of `beginnings` that each row continues.
    """

    numbers: list[int]
    rows: PromptRows
    beginnings: PromptRows | None
    owners: Int32[np.ndarray, " B"] | None


def find_query(parts: Prompt) -> int:
    """Returns the place among its parts where a prompt's query begins."""
    images = [place for place, part in enumerate(parts) if isinstance(part, Image)]
    return images[-1] if images else max(0, len(parts) - 1)


def make_batches(prompts: Sequence[Encoded], *, batch_size: int, devices: int) -> Iterator[PromptBatch]:
    """Yields prompts in batches, the short ones first, so that little is padding.

    Args:
        prompts: of one call.
        batch_size: most prompts in a batch.
        devices: a batch is filled up until it can be cut into so many equal parts.
    """
    groups: dict[Prompt, int] = {}
    for prompt in prompts:
        groups.setdefault(prompt.beginning, len(groups))
    begun = {prompt.beginning: prompt.query_id for prompt in prompts}
    alone = sum(len(prompt.ids) for prompt in prompts)
    shared = alone - sum(prompt.query_id for prompt in prompts) + sum(begun.values())
    apart = shared <= WORTHWHILE * alone
    if not apart:
        prompts = [prompt._replace(query_part=0, query_id=0) for prompt in prompts]

    def rank(number: int) -> tuple[int, int, int]:
        prompt = prompts[number]
        return prompt.query_id, groups[prompt.beginning] if apart else 0, len(prompt.ids)

    order = sorted(range(len(prompts)), key=rank)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        chosen = [prompts[number] for number in fill_up(numbers, of=len(order), most=batch_size, devices=devices)]
        rows = _lay_out([(prompt.ids[prompt.query_id :], prompt.parts[prompt.query_part :]) for prompt in chosen])
        if not apart:
            yield PromptBatch(numbers, rows, None, None)
            continue
        heads = {prompt.beginning: prompt.ids[: prompt.query_id] for prompt in chosen}
        places = {head: place for place, head in enumerate(heads)}
        owners = np.array([places[prompt.beginning] for prompt in chosen], np.int32)
        filled = list(heads) + [next(iter(heads))] * (_round_to_power(len(heads)) - len(heads))
        beginnings = _lay_out([(heads[head], head) for head in filled], may_be_empty=True)
        yield PromptBatch(numbers, rows, beginnings, owners)


def fill_up(chunk: Sequence[int], *, of: int, most: int, devices: int) -> list[int]:
    """Repeats the first of a chunk up to the size of a batch: `most`, or a power of two where all fit into less, and
    then a multiple of `devices`."""
    size = min(most, _round_to_power(of))
    size = -(-size // devices) * devices
    return [*chunk, *[chunk[0]] * (size - len(chunk))]


def _lay_out(prompts: Sequence[tuple[list[int], Prompt]], *, may_be_empty: bool = False) -> PromptRows:
    """Pads to one of few lengths and numbers of images, so that few shapes are compiled."""
    ids, parts = zip(*prompts, strict=True)
    length = round_up(max(1, *map(len, ids)))
    rows = lay_out(ids, parts, length=length, may_be_empty=may_be_empty)
    count = rows.images.shape[1]
    return rows._replace(images=np.pad(rows.images, ((0, 0), (0, _round_to_power(count) - count))))


def _round_to_power(count: int) -> int:
    """The next power of two; 0 stays."""
    return 1 << (count - 1).bit_length() if count else 0
