"""Which captioned pictures are held out for good, by a digest of the caption, and the tables that say so.

The rule is part of the code and older than any training on these pictures: nobody chose what is hard or easy.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from frozen_jax.workdir import write_text_atomic

PARTS = 8
"""One caption in so many is held out."""


class Entry(NamedTuple):
    """One picture of a set.

    Attributes:
        image: path below the set's folder.
        caption: its text.
        tags: the category first, which answers the set's question.
    """

    image: str
    caption: str
    tags: tuple[str, ...]


def normalise_caption(caption: str) -> str:
    """Returns what counts as the same caption: NFC, lower case, single spaces, no period at the end."""
    return " ".join(unicodedata.normalize("NFC", caption).lower().split()).rstrip(".").rstrip()


def is_held_out(caption: str) -> bool:
    """Whether pictures with this caption are never trained on, in whatever set they are.

    Example:
        >>> is_held_out("A penguin."), is_held_out("a  penguin")
        (False, False)
    """
    digest = hashlib.sha256(normalise_caption(caption).encode()).digest()
    return int.from_bytes(digest, "big") % PARTS == 0


def write_splits(folder: Path, entries: Sequence[Entry], *, question: str) -> dict[str, int]:
    """Writes `train.jsonl` and `heldout.jsonl` for the source kind `jsonl`, and returns how many lines each has.

    Args:
        folder: of the set.
        entries: its pictures.
        question: asked of every picture; the category in lower case is its answer.
    """
    counts = {}
    for name, held_out in (("train", False), ("heldout", True)):
        lines = [
            json.dumps({**entry._asdict(), "question": question, "answer": entry.tags[0].lower()}, ensure_ascii=False)
            for entry in entries
            if is_held_out(entry.caption) == held_out
        ]
        write_text_atomic(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        counts[name] = len(lines)
    return counts
