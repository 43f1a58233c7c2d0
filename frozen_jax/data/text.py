"""Token rows: captions and questions in the layout that a model trains on. Cleaning of raw text is in `cleaning.py`.

    [bos]  SLOT SLOT  caption …  eos  PAD PAD          one picture, P = 2
    [bos]  SLOT SLOT  first … eos  SLOT SLOT  second … eos  PAD

Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from frozen_jax.batch import PAD, SLOT, open_row
from frozen_jax.errors import UserError


class Text(NamedTuple):
    """The text of one training example.

    Attributes:
        target: is to be predicted (a caption, an answer).
        prompt: stands before it and carries no loss ("Question: what shape is in the image? Answer:"); may be empty.
        turns: (prompt, target) stretches that stand before both, without marks between them.
        label: what the example is, where a class is to be named and no word predicted (`fusion`); the target is empty.
    """

    target: str
    prompt: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    label: str = ""

    def words(self) -> tuple[str, ...]:
        """Returns all that is said of the picture."""
        return (*(part for turn in self.turns for part in turn), self.prompt, self.target, self.label)


class Piece(NamedTuple):
    """Part of a row: the slots of one picture, then text.

    Attributes:
        target: token ids that carry loss; eos is added behind them.
        prompt: token ids before the target, without loss but where `prompt_loss` has 1.
        images: pictures whose slots come first (0 for text only).
        loss: False for what only fills up a batch: it carries none.
        prompt_loss: 0 or 1 for each token of the prompt, or () for none with loss.
    """

    target: Sequence[int]
    prompt: Sequence[int] = ()
    images: int = 1
    loss: bool = True
    prompt_loss: Sequence[int] = ()


@dataclass(frozen=True)
class RowLayout:
    """The fixed facts of every row.

    Attributes:
        max_tokens: S, positions in a row, with bos, slots and eos.
        prefix_length: P, slots per picture.
        bos_id: first token of every row, or None for a language model without one.
        eos_id: last token of every text, or None to end without.
        prompt_length: learned vectors behind bos.
        positions: of the language model; no text of a packed row is longer. None is any number.
    """

    max_tokens: int
    prefix_length: int
    bos_id: int | None
    eos_id: int | None
    prompt_length: int = 0
    positions: int | None = None

    @property
    def opening(self) -> tuple[int, ...]:
        """What a row begins with."""
        return open_row(self.bos_id, prompt_length=self.prompt_length)


def caption_row(
    tokens: Sequence[int],
    *,
    bos_id: int | None,
    eos_id: int | None,
    images: int,
    prefix_length: int,
    max_tokens: int,
) -> tuple[Int32[np.ndarray, " S"], Float32[np.ndarray, " S"]]:
    """Lays out one caption after its picture's slots: see `text_row`, of which this is the case of one piece."""
    layout = RowLayout(max_tokens=max_tokens, prefix_length=prefix_length, bos_id=bos_id, eos_id=eos_id)
    return text_row([Piece(tokens, images=images)], layout=layout)


def text_row(
    pieces: Sequence[Piece], *, layout: RowLayout
) -> tuple[Int32[np.ndarray, " S"], Float32[np.ndarray, " S"]]:
    """Lays out pictures' slots and texts in one row, padded on the right (training layout).

    A target that does not fit is cut, and then has no eos: the model must not learn that texts end where the row does.
    Slots and prompts are never cut, nor is a first piece's target cut to nothing.

    Returns:
        (tokens, loss_mask): loss_mask is 1 on targets and their eos, and where a prompt says so.

    Raises:
        UserError: bos, slots and prompts alone fill the row.
    """
    tokens = np.full(layout.max_tokens, PAD, np.int32)
    loss_mask = np.zeros(layout.max_tokens, np.float32)
    place = len(layout.opening)
    if place >= layout.max_tokens:
        raise UserError(f"text: {layout.max_tokens} positions cannot hold {place} of bos and prompt; raise max_tokens")
    tokens[:place] = layout.opening
    for number, piece in enumerate(pieces):
        slots = piece.images * layout.prefix_length
        begin = place + slots + len(piece.prompt)
        ending = [] if layout.eos_id is None else [layout.eos_id]
        target = [*piece.target, *ending][: max(0, layout.max_tokens - begin)]
        rest = sum(p.images * layout.prefix_length + len(p.prompt) + 1 + len(ending) for p in pieces[number + 1 :])
        target = target[: max(1, layout.max_tokens - begin - rest)] if rest else target
        if begin + max(1, len(target)) + rest > layout.max_tokens:
            needed = begin + rest + len(piece.target) + len(ending)
            raise UserError(
                f"text: {layout.max_tokens} positions cannot hold {begin} of bos, slots and prompt, and at least one "
                f"token of each text after them; raise data.max_tokens to {needed} or more"
            )
        tokens[place : place + slots] = SLOT
        tokens[place + slots : begin] = piece.prompt
        place = begin + len(target)
        tokens[begin:place] = target
        loss_mask[begin:place] = float(piece.loss)
        if piece.prompt_loss and piece.loss:
            loss_mask[begin - len(piece.prompt) : begin] = piece.prompt_loss
    return tokens, loss_mask


class CachedEncoder:
    """Remembers the token ids of texts already seen: many sets repeat few texts, and tokenizing costs tens of us."""

    def __init__(self, encode: Callable[[str], Sequence[int]], *, capacity: int = 65536):
        self._encode, self._capacity = encode, capacity
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text, without special tokens."""
        ids = self._known.get(text)
        if ids is None:
            ids = tuple(self._encode(text))
            if len(self._known) >= self._capacity:
                self._known.clear()
            self._known[text] = ids
        return ids
