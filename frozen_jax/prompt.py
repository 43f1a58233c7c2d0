"""Prompts: any interleaving of images and text → left-padded token rows with slots. Next in the data flow: `decode.py`.

A prompt is a list of parts; a part is text or the number of an image in a table of prefixes:

    [Image(7), " Question: what shape is present? Answer:"]       P = 2, with bos
    tokens     PAD PAD bos SLOT SLOT Question : what shape is present ? Answer :
    positions   0   0   0   1    2      3     4  5     6    7    8    9   10   11

Templates are text with a mark where the image stands, "[img] Question: {question} Answer:"; `fill` makes parts of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
from jaxtyping import Array, Bool, Int32

from frozen_jax.batch import PAD, SLOT
from frozen_jax.data.folders import PICTURES
from frozen_jax.data.records import FileSlice
from frozen_jax.errors import UserError

IMAGE_MARK = "[img]"
"""Where a template, and the prompts shown in reports, have an image."""

EOS = "[eos]"
"""Among stop strings: the language model's own end-of-text token."""


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

    @property
    def mask(self) -> Bool[np.ndarray, "B S"]:
        """True where a position holds a word or an image."""
        return np.asarray(self.tokens != PAD)

    @property
    def slots(self) -> Bool[np.ndarray, "B S"]:
        """True where a position holds an image."""
        return np.asarray(self.tokens == SLOT)

    @property
    def positions(self) -> Int32[np.ndarray, "B S"]:
        """Each position's number within its own prompt; padding has 0."""
        return np.maximum(np.cumsum(self.mask, axis=1, dtype=np.int32) - 1, 0)


def fill(template: str, image: Image | str, **fields: str) -> Prompt:
    """Makes the parts of a prompt from a template.

    Marks and braces are read in the template alone: what is filled in stays as it is, whatever it contains.

    Args:
        template: text with `[img]` where the image stands and `{name}` where a field does.
        image: the image, or words that describe it in its place.
        **fields: by name.
    """
    parts: list[str | Image] = []
    for number, text in enumerate(template.split(IMAGE_MARK)):
        parts += [image] if number else []
        parts += [text.format(**fields)] if text else []
    return tuple(parts)


def show(prompt: Prompt) -> str:
    """Returns a prompt as a report prints it, verbatim, with a mark for each image."""
    return "".join(IMAGE_MARK if isinstance(part, Image) else part for part in prompt)


def encode_prompt(
    prompt: Prompt, *, encode: Callable[[str], Sequence[int]], prefix_length: int, opening: Sequence[int]
) -> list[int]:
    """Returns the ids of a prompt, with P slots in place of each image; text parts are taken as they stand.

    Args:
        prompt: its parts.
        encode: from text to ids.
        prefix_length: P.
        opening: what it begins with (`batch.open_row`).
    """
    ids = list(opening)
    for part in prompt:
        ids += [SLOT] * prefix_length if isinstance(part, Image) else list(encode(part))
    return ids


def check_room(
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    limit: int | None,
    measure: Callable[[Prompt], int],
) -> None:
    """Refuses prompts that, with what is to follow, have more positions than the language model.

    Args:
        prompts: what `rows` encode, for the message.
        rows: ids.
        new_tokens: tokens that follow a prompt; the last of them is never fed, so it needs no position.
        limit: positions of the language model; None or 0: as many as one likes.
        measure: number of positions of some parts of a prompt, without what prompts begin with.

    Raises:
        UserError: with the counts, and how many of the prompt's shots would fit.
    """
    if not limit:
        return
    room = limit - new_tokens + 1
    for index, (prompt, ids) in enumerate(zip(prompts, rows, strict=True)):
        if len(ids) <= room:
            continue
        shots = sum(isinstance(part, Image) for part in prompt) - 1
        fitting = count_fitting_shots(prompt, room=room - (len(ids) - measure(prompt)), measure=measure)
        if fitting >= 0 and shots > 0:
            advice = f"{fitting} of its {shots} shots would fit"
        elif room - len(ids) + new_tokens > 0:
            advice = f"shorten it, or lower the new tokens to {room - len(ids) + new_tokens}"
        else:
            advice = "shorten it" if shots < 1 else "none of its shots would fit, nor would the query alone"
        slots = sum(token == SLOT for token in ids)
        raise UserError(
            f"prompt {index} has {len(ids)} positions, {slots} of them image slots ({shots + 1} images), and "
            f"{new_tokens} new tokens are to follow; the language model has {limit} positions: {advice}"
        )


def count_fitting_shots(prompt: Prompt, *, room: int, measure: Callable[[Prompt], int]) -> int:
    """Returns how many shots fit before the query, the last ones first; -1: not even the query.

    The query is the last image with all that follows, a shot any other image with the text after it; what stands before
    the first image stays.
    """
    starts = [place for place, part in enumerate(prompt) if isinstance(part, Image)] or [0]
    pieces = [prompt[start:end] for start, end in zip(starts, [*starts[1:], len(prompt)], strict=True)]
    room -= measure(prompt[: starts[0]])
    for count, piece in enumerate(reversed(pieces)):
        room -= measure(piece)
        if room < 0:
            return count - 1
    return len(pieces) - 1


def round_up(length: int) -> int:
    """Returns a length of at least `length` to pad to: multiples of 8, and from 64 on at most a quarter more.

    Few different lengths come out, so few shapes are compiled.
    """
    step = max(8, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def lay_out(
    rows: Sequence[Sequence[int]], prompts: Sequence[Prompt], *, length: int, may_be_empty: bool = False
) -> PromptRows:
    """Pads encoded prompts on the left to `length` positions.

    Raises:
        UserError: a prompt is empty (and may not be) or longer than `length`.
    """
    tokens = np.full((len(rows), length), PAD, np.int32)
    images = [[part.row for part in prompt if isinstance(part, Image)] for prompt in prompts]
    most = max(map(len, images), default=0)
    for index, ids in enumerate(rows):
        if not (0 if may_be_empty else 1) <= len(ids) <= length:
            raise UserError(
                f"prompt {index} has {len(ids)} positions; it must have 1 to {length}: shorten it or give fewer shots"
            )
        tokens[index, length - len(ids) :] = ids
    table = [numbers + [0] * (most - len(numbers)) for numbers in images]
    return PromptRows(tokens, np.array(table, np.int32).reshape(len(rows), most))


_PICTURE = (os.PathLike, PIL.Image.Image, np.ndarray, bytes, FileSlice)
"""Types of what `images.load_image` opens."""


def name_picture(part: object, index: int) -> str | int:
    """Returns what two equal pictures have in common: the path of a file, the identity of an object.

    Raises:
        UserError: the part is no picture.
    """
    if isinstance(part, os.PathLike):
        return str(Path(part))
    if not isinstance(part, _PICTURE):
        raise UserError(
            f"prompt {index} has a part of type {type(part).__name__}; a part is text (str) or a picture "
            "(pathlib.Path, PIL.Image or uint8 array)"
        )
    return id(part)


def check_pictures(pictures: object) -> None:
    """Checks what has to be a list of pictures, or an array of several.

    Raises:
        UserError: it is one picture by itself, or something in it is none.
    """
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        return
    if isinstance(pictures, str | bytes | np.ndarray | FileSlice) or not isinstance(pictures, Sequence):
        raise UserError(f"pictures is one {type(pictures).__name__}; give a list of pictures: [picture]")
    for index, picture in enumerate(pictures):
        if not isinstance(picture, _PICTURE):
            raise UserError(
                f"picture {index} is of type {type(picture).__name__}; give a pathlib.Path, a PIL.Image, a uint8 array "
                "or the bytes of a file"
            )


def count_prefixes(prefixes: object, shape: tuple[int, int]) -> int:
    """Returns R, how many pictures a table of prefixes has; 0 without a table.

    Args:
        prefixes: a table, or None.
        shape: (P, D) of the model: another model's vectors would be read as words of this one's.

    Raises:
        UserError: it is no array of such vectors.
    """
    if prefixes is None:
        return 0
    found: tuple[int, ...] = getattr(prefixes, "shape", ())
    if len(found) != 3 or found[1:] != shape:
        raise UserError(
            f"prefixes has the shape {found}, and this model's pictures are tables of [R, {shape[0]}, {shape[1]}]; "
            "make it by this model's embed_image"
        )
    return int(found[0])


def check_list(texts: object, name: str) -> None:
    """Refuses a text where a list is wanted: its letters would be taken one by one.

    Raises:
        UserError: it is a text.
    """
    if isinstance(texts, str):
        raise UserError(f"{name} is the text {texts[:40]!r}; give a list: [{texts[:40]!r}]")


def check_text(text: str, index: int) -> str:
    """Returns a text part.

    Raises:
        UserError: it names a picture file, which is then meant to be shown.
    """
    if text.lower().endswith(PICTURES) and "\n" not in text and os.path.isfile(text):
        raise UserError(
            f"prompt {index} has the text {text!r}, which names a picture file; a str is always text: give "
            f"pathlib.Path({text!r}) to show the picture"
        )
    return text


def make_key(seed: int) -> Array:
    """Returns the random key of a seed that a caller gives.

    Raises:
        UserError: it has more than the 32 bits that a key is made of: others would be the key of another seed.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed} must be one of 32 bits, 0 <= seed < 2**32; give another one")
    return jax.random.key(seed)
