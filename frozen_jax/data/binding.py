"""Texts that teach a language model to bind new names to what it is shown, without a picture: the few-shot episodes of
`tasks/fewshot.py` with words where the pictures will stand.

    Answer with zorp or mib. red circle This is a zorp. tree tiny This is a mib. circle red This is a zorp. red circle
    Q: What is this? A: This is a zorp

Each text draws its names anew, so that only the text tells what they mean. A name carries loss wherever its class has
been shown before; nothing else does. A share of the texts is captions instead, each behind a short description: they
teach what the vision stage relies on, to read what stands where a picture will stand. Descriptions have two words, as a
prefix has two vectors. Next in the data flow: `wording.py`.
"""

from __future__ import annotations

import itertools

import numpy as np

from frozen_jax.data.records import Record
from frozen_jax.data.scenes import COLOURS, SHAPES, list_captions
from frozen_jax.errors import UserError

ADJECTIVES = (*COLOURS, "white", "pink", "orange", "purple", "striped", "tiny", "shiny", "wooden")
NOUNS = (*SHAPES, "square", "star", "ring", "cup", "dog", "tree", "boat", "fish", "bell")
"""Colours and shapes of easy-VQA, and more, so that classes are many: 192."""

PAPER_NAMES = ("dax", "blicket", "slation", "perpo", "shously")
"""Names of the paper's episodes, in its order: m-way episodes use the first m."""


def _list_names(count: int) -> tuple[str, ...]:
    letters = itertools.product("bdfghklmnprstvwz", "aeiou", "bdgkmpx")
    made = sorted({"".join(letter) for letter in letters} - set(PAPER_NAMES))
    return (*PAPER_NAMES, *np.random.default_rng(0).choice(made, size=count, replace=False).tolist())


NAMES = _list_names(91)
"""Few enough that a small tokenizer has a token for each: a name in several tokens takes far longer to learn."""

CAPTION_SHARE = 0.2
"""Share of texts that are captions."""

QUERY = "Q: What is this? A: This is a"

Turn = tuple[str, str]


class BindingTexts:
    """Episodes in words: record i is a pure function of seed and i. Its `turns` are (given, predicted) stretches."""

    def __init__(self, size: int, *, seed: int, presentations: int = 12):
        """Makes the source; each text is made when it is asked for.

        Args:
            size: number of records.
            seed: another seed gives other texts.
            presentations: at most so many in an episode, repeats included, a question counted as two; 4 or more.

        Raises:
            UserError: fewer presentations than an episode takes.
        """
        if presentations < 4:
            raise UserError(f"data: binding_text option presentations={presentations} is too small; give 4 or more")
        self._size, self._seed = size, seed
        self._plans = [
            (ways, shots, repeats)
            for ways in range(2, 6)
            for shots in range(1, 6)
            for repeats in range(4)
            if ways * shots * (1 + repeats) + 2 <= presentations
        ]

    def __len__(self) -> int:
        return self._size

    def ids(self) -> list[str]:
        """Returns "binding/0" and so on."""
        return [f"binding/{index}" for index in range(self._size)]

    def record(self, index: int) -> Record:
        """Returns a text without a picture."""
        rng = np.random.default_rng((self._seed, index))
        turns = write_caption(rng) if rng.random() < CAPTION_SHARE else self._write_episode(rng)
        return Record(f"binding/{index}", None, turns=turns)

    def _write_episode(self, rng: np.random.Generator) -> tuple[Turn, ...]:
        ways, shots, repeats = self._plans[rng.integers(len(self._plans))]
        questions = 1 + int(rng.random() < 0.5)
        return write_episode(
            rng, ways=ways, shots=shots, repeats=repeats, questions=questions, induced=bool(rng.random() < 0.5)
        )


def draw_classes(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draws different (adjective, noun); half of the time all are easy-VQA's own, which are alike in many ways."""
    adjectives, nouns = (COLOURS, SHAPES) if rng.random() < 0.5 else (ADJECTIVES, NOUNS)
    places = rng.choice(len(adjectives) * len(nouns), size=count, replace=False)
    return [(adjectives[place % len(adjectives)], nouns[place // len(adjectives)]) for place in places]


def show(thing: tuple[str, str], rng: np.random.Generator) -> str:
    """Describes a thing where its picture will stand: two words in either order."""
    adjective, noun = thing
    return f" {adjective} {noun}" if rng.random() < 0.7 else f" {noun} {adjective}"


def write_caption(rng: np.random.Generator) -> tuple[Turn, ...]:
    """Writes a short description, then a caption of the same thing."""
    (thing,) = draw_classes(1, rng)
    captions = list_captions(*thing)
    return ((show(thing, rng), f" {captions[rng.integers(len(captions))]}"),)


def write_episode(
    rng: np.random.Generator, *, ways: int, shots: int, repeats: int, questions: int, induced: bool
) -> tuple[Turn, ...]:
    """Writes the support set 1 + `repeats` times, then questions.

    Args:
        rng: draws classes, names, order and wording.
        ways: classes.
        shots: inner-shots: descriptions per class.
        repeats: extra presentations of the support set, in the same order and words.
        questions: at least 1; the few-shot prompts have one, and the others use the same support set again.
        induced: begin with the text that says what the task is.
    """
    things = draw_classes(ways, rng)
    names = rng.choice(NAMES, size=ways, replace=False).tolist()
    order = rng.permutation(np.repeat(np.arange(ways), shots)).tolist()
    support = [(place, show(things[place], rng)) for place in order]
    given = ""
    if induced:
        ordered = [names[place] for place in dict.fromkeys(order)]
        given = f"Answer with {', '.join(ordered[:-1])} or {ordered[-1]}."
    turns: list[Turn] = []
    met: set[int] = set()
    for place, shown in support * (1 + repeats):
        given += f"{shown} This is a"
        if place in met:
            turns.append((given, f" {names[place]}"))
            given = "."
        else:
            given += f" {names[place]}."
        met.add(place)
    for _ in range(questions):
        place = int(rng.integers(ways))
        turns.append((f"{given}{show(things[place], rng)} {QUERY}", f" {names[place]}"))
        given = "."
    return tuple(turns)
