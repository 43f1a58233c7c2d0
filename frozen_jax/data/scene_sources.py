"""Sources made of easy-VQA's scenes: captioned pictures for the vision stage, scenes in words for the text stage.

Words come from `scenes.py`, pictures and what they disclose from `easy_vqa.py`. Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frozen_jax.data.easy_vqa import EasyVQA
from frozen_jax.data.records import Question, Record, Source, Subset, select, split_holdout
from frozen_jax.data.scenes import CAPTIONS, COLOURS, NOUN_PHRASES, SENTENCES, SHAPES, ask_about, list_captions
from frozen_jax.errors import UserError

HELD_OUT = 300
"""Captioned training pictures that `easy_vqa:validation` takes away from `easy_vqa:train`."""

WORDINGS = {"all": CAPTIONS, "noun_phrases": NOUN_PHRASES, "sentences": SENTENCES}
"""Of captions, by option."""


class CaptionedScenes:
    """Pictures of easy-VQA, those whose own questions disclose colour and shape captioned in every wording."""

    def __init__(self, easy_vqa: EasyVQA, *, disclosed_only: bool = True, wordings: Sequence[str] = CAPTIONS):
        self._wordings = wordings
        self._pictures = select(easy_vqa, lambda index: not disclosed_only or easy_vqa.scene(index) is not None)

    def __len__(self) -> int:
        return len(self._pictures)

    def ids(self) -> list[str]:
        """Returns easy-VQA's ids, "train/0" and so on."""
        return self._pictures.ids()

    def record(self, index: int) -> Record:
        """Returns a picture with all captions; its tags are (colour, shape), or () where they are not disclosed."""
        record = self._pictures.record(index)
        if not record.tags:
            return record
        colour, shape = record.tags
        return record._replace(captions=list_captions(colour, shape, self._wordings))


class DescribedScenes:
    """Scenes in words alone: record i, a scene with its captions and one question, is a pure function of seed and i.

    Neither pictures nor questions of easy-VQA are read.
    """

    def __init__(self, size: int, *, seed: int):
        self._size, self._seed = size, seed

    def __len__(self) -> int:
        return self._size

    def ids(self) -> list[str]:
        """Returns "scene/0" and so on."""
        return [f"scene/{index}" for index in range(self._size)]

    def record(self, index: int) -> Record:
        """Returns a scene without a picture."""
        rng = np.random.default_rng((self._seed, index))
        colour, shape = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
        question, answer = ask_about(colour, shape, rng)
        return Record(f"scene/{index}", None, list_captions(colour, shape), (Question(question, (answer,)),))


def open_easy_vqa(split: str, *, pictures: str = "captioned", captions: str = "all", count: str = "") -> Source:
    """Opens `train` (without the held-out pictures), `validation` (the held-out ones) or `test`, captioned.

    Args:
        split: one of the three.
        pictures: "captioned" (those whose questions disclose colour and shape) or "all", which `validation` has not.
        captions: "all" wordings of `scenes.CAPTIONS`; "noun_phrases", what follows "This is a"; or "sentences", as
            `tools.fetch_data` words other sets.
        count: of pictures, the first; "" is all.

    Raises:
        UserError: another split or choice, or more pictures than there are.
    """
    source = _open_split(split, pictures=pictures, captions=captions)
    if not count:
        return source
    if not count.isdecimal() or not 0 < int(count) <= len(source):
        raise UserError(f"data: easy_vqa option count={count!r} must be a number of 1 to {len(source)} pictures")
    return Subset(source, range(int(count)))


def _open_split(split: str, *, pictures: str, captions: str) -> Source:
    if captions not in WORDINGS:
        raise UserError(f"data: easy_vqa option captions={captions!r} is not known; use {', '.join(WORDINGS)}")
    if pictures not in ("captioned", "all") or (pictures == "all" and split == "validation"):
        raise UserError(
            f"data: easy_vqa option pictures={pictures!r} is not known; use 'captioned', or 'all' of train or test"
        )
    if split not in ("train", "validation", "test"):
        raise UserError(
            f"data: easy_vqa has no split {split!r}; use easy_vqa:train, easy_vqa:validation or easy_vqa:test"
        )
    if split == "test" or pictures == "all":
        return CaptionedScenes(EasyVQA(split), disclosed_only=pictures == "captioned", wordings=WORDINGS[captions])
    train, validation = split_holdout(CaptionedScenes(EasyVQA("train"), wordings=WORDINGS[captions]), count=HELD_OUT)
    return {"train": train, "validation": validation}[split]
