"""Words about easy-VQA's scenes: captions, questions and answers. No pictures here.

A scene is one coloured shape. The captions of the vision stage and the texts that teach the small language model
(`configs/text_pretrain.py`) have the same wordings. The text stage describes a scene in one or two different wordings,
in the place where a picture will stand later, and asks about it:

    " red circle. the shape is a circle and its color is red Question: is there a red shape? Answer: yes"

Several wordings in a row matter: a language model whose texts each hold one description never learns to use what
stands before it, and later ignores an image prefix. Next in the data flow: `scene_sources.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COLOURS = ("black", "gray", "red", "blue", "teal", "brown", "green", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

CAPTIONS = (
    "{colour} {shape}",
    "a {colour} {shape}",
    "the {shape} is {colour}",
    "there is a {colour} {shape} in the image",
    "the image contains a {colour} {shape}",
    "a {shape} that is {colour}",
    "the shape is a {shape} and its color is {colour}",
    "one {shape}, colored {colour}",
)
"""Wordings of a caption. Each names both the colour and the shape."""

NOUN_PHRASES = ("{colour} {shape}", "{shape} {colour}")
"""Captions that go on from "This is a", in either order, so that both words are read at once."""

SENTENCES = ("A {colour} {shape}.",)
"""Captions in the style of the other sets that `tools.fetch_data` makes."""

OPEN_QUESTIONS = (
    ("what color is the shape?", "{colour}"),
    ("what is the color of the shape?", "{colour}"),
    ("what color is the {shape}?", "{colour}"),
    ("what is the color of the {shape}?", "{colour}"),
    ("which color do you see?", "{colour}"),
    ("what shape is present?", "{shape}"),
    ("what shape is in the image?", "{shape}"),
    ("what shape does the image contain?", "{shape}"),
    ("what is the {colour} shape?", "{shape}"),
    ("which shape do you see?", "{shape}"),
)
"""(question, answer) about a scene; easy-VQA's wordings and a few more."""

PRESENCE_QUESTIONS = (
    "is there a {thing}?",
    "is there a {thing} in the image?",
    "does the image contain a {thing}?",
    "is a {thing} present?",
    "do you see a {thing}?",
)
"""Questions about a thing, a shape or "<colour> shape"; "yes" means that it is there."""

ABSENCE_QUESTIONS = (
    "is there not a {thing}?",
    "is there not a {thing} in the image?",
    "does the image not contain a {thing}?",
    "is no {thing} present?",
    "do you not see a {thing}?",
)
"""The same with a negation; "yes" means that it is not there."""

ABSENCE_SHARE = 0.3
"""Share of absence questions among those with yes and no.

At a half, "yes" would say nothing about whether the thing is there until negation is understood, and negation nothing
until presence is: neither would give a gradient to begin with.
"""


def list_captions(colour: str, shape: str, wordings: Sequence[str] = CAPTIONS) -> tuple[str, ...]:
    """All single-sentence captions of a scene: the references of the exact match."""
    return tuple(wording.format(colour=colour, shape=shape) for wording in wordings)


def ask_about(colour: str, shape: str, rng: np.random.Generator) -> tuple[str, str]:
    """Draws a question about a scene and its true answer; yes and no are equally likely."""
    if rng.random() < 0.3:
        question, answer = OPEN_QUESTIONS[rng.integers(len(OPEN_QUESTIONS))]
        return question.format(colour=colour, shape=shape), answer.format(colour=colour, shape=shape)
    absence = bool(rng.random() < ABSENCE_SHARE)
    wordings = ABSENCE_QUESTIONS if absence else PRESENCE_QUESTIONS
    question = wordings[rng.integers(len(wordings))]
    there = bool(rng.random() < 0.5)
    if rng.random() < 0.5:
        thing = shape if there else str(rng.choice([other for other in SHAPES if other != shape]))
    else:
        thing = (colour if there else str(rng.choice([other for other in COLOURS if other != colour]))) + " shape"
    return question.format(thing=thing), "no" if there == absence else "yes"
