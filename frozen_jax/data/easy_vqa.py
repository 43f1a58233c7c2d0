"""easy-VQA: 5,000 pictures of one coloured shape with 48,248 questions, read from the installed `easy_vqa` package.

The set has no captions. What a picture shows is inferred only from what its own questions and answers disclose, never
from the pixels. Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from frozen_jax.data.records import Question, Record
from frozen_jax.errors import UserError

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = (*SHAPES, *COLOURS, "yes", "no")

_THINGS = frozenset(COLOURS + SHAPES)
# "is there not a", "does … not contain", "is no … present": the answer "no" then means that the picture has the thing.
_NEGATIONS = frozenset(("not", "no"))
_WORDS = re.compile("[a-z]+")


class EasyQuestion(NamedTuple):
    """One question of the set.

    Attributes:
        question: in lower case, with its question mark.
        answer: one of ANSWERS.
        image_index: number of the picture in the split.
    """

    question: str
    answer: str
    image_index: int


class EasyVQA:
    """One split of easy-VQA as a data source; record i is picture i, with its questions.

    Attributes:
        split: "train" (4,000 pictures, 38,575 questions) or "test" (1,000 and 9,673).
        questions: all questions of the split in the set's own order.
    """

    def __init__(self, split: str):
        """Reads the questions; pictures are opened later.

        Raises:
            UserError: unknown split, or the package is not installed.
        """
        if split not in ("train", "test"):
            raise UserError(f"data: easy-VQA has no split {split!r}; use 'train' or 'test'")
        found = importlib.util.find_spec("easy_vqa")
        if found is None or found.origin is None:
            raise UserError("data: the package easy-vqa is not installed; it holds the pictures: pip install easy-vqa")
        self.split = split
        self._folder = Path(found.origin).parent / "data" / split
        rows = json.loads((self._folder / "questions.json").read_text())
        self.questions = [EasyQuestion(question, answer, image) for question, answer, image in rows]
        self._by_image: list[list[EasyQuestion]] = [[] for _ in range(1 + max(q.image_index for q in self.questions))]
        for question in self.questions:
            self._by_image[question.image_index].append(question)
        self._scenes = [infer_scene(questions) for questions in self._by_image]
        self._records: list[Record | None] = [None] * len(self._by_image)

    def __len__(self) -> int:
        return len(self._by_image)

    def ids(self) -> list[str]:
        """Returns "train/0", "train/1", …"""
        return [f"{self.split}/{i}" for i in range(len(self))]

    def record(self, index: int) -> Record:
        """Returns the picture with its questions, and the caption "a red circle" if colour and shape are disclosed."""
        record = self._records[index]
        if record is None:
            scene = self.scene(index)
            record = self._records[index] = Record(
                id=f"{self.split}/{index}",
                image=self._folder / "images" / f"{index}.png",
                captions=(f"a {scene[0]} {scene[1]}",) if scene else (),
                questions=tuple(Question(q.question, (q.answer,)) for q in self._by_image[index]),
                tags=scene or (),
            )
        return record

    def scene(self, index: int) -> tuple[str, str] | None:
        """Returns (colour, shape) of a picture if its questions disclose both, else None."""
        colour, shape = self._scenes[index]
        return (colour, shape) if colour and shape else None


def disclose(question: str, answer: str) -> tuple[set[str], set[str]]:
    """Returns the colours and shapes that a question and its answer say a picture has, and those that it has not."""
    words = _WORDS.findall(question)
    named = set(_THINGS.intersection(words))
    if answer in _THINGS:
        return {answer} | named, set()
    affirmed = (answer == "yes") != (not _NEGATIONS.isdisjoint(words))
    return (named, set()) if affirmed else (set(), named)


def infer_scene(questions: Sequence[EasyQuestion]) -> tuple[str | None, str | None]:
    """Returns the (colour, shape) that a picture's questions and answers disclose; None for what they leave open.

    Three things disclose: an answer that is a colour or a shape; a question that presupposes one ("what is the blue
    shape?"); a question that affirms its presence, negations considered ("is there not a circle?", "no").

    Raises:
        UserError: two questions contradict each other (a damaged copy of the set).
    """
    stated: set[str] = set()
    denied: set[str] = set()
    for question, answer, _ in questions:
        shown, lacking = disclose(question, answer)
        stated |= shown
        denied |= lacking
    colours, shapes = stated.intersection(COLOURS), stated.intersection(SHAPES)
    if len(colours) > 1 or len(shapes) > 1 or stated & denied:
        raise UserError(
            f"data: the answers about easy-VQA picture {questions[0].image_index} contradict each other; the set is "
            "damaged: reinstall the package easy-vqa"
        )
    return next(iter(colours), None), next(iter(shapes), None)
