"""Texts that teach a language model to bind new names to what it is shown, without a picture: the few-shot episodes of
`tasks/fewshot.py` with words where the pictures will stand.

    episode       Answer with zorp or mib. red circle This is a zorp. teal square This is a mib. red circle
                  Q: What is this? A: This is a|zorp
    descriptions  red circle This is a zorp|red circle|. teal square This is a mib|teal square
    caption       red circle|there is a red circle in the image                     between | and | carries loss

Each text draws its names anew, so that only the text tells what they mean. In an episode a name carries loss wherever
its class has been shown before. Descriptions teach a name to look back at what it was given to, which binding needs.
Captions teach what the vision stage relies on, to read what stands where a picture will stand. What stands there has
two words, as a prefix has two vectors. Next in the data flow: `wording.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from frozen_jax.data.records import Record
from frozen_jax.data.scenes import COLOURS, SHAPES, list_captions
from frozen_jax.errors import UserError

ADJECTIVES = (*COLOURS, "white", "pink", "orange", "purple", "striped", "tiny", "shiny", "wooden")
NOUNS = (*SHAPES, "square", "star", "ring", "cup", "dog", "tree", "boat", "fish", "bell")
"""Colours and shapes of easy-VQA, and more, 192 things in all."""

PAPER_NAMES = ("dax", "blicket", "slation", "perpo", "shously")
"""Names of the paper's episodes, in its order: m-way episodes use the first m."""


def _list_names(count: int) -> tuple[str, ...]:
    letters = itertools.product("bdfghklmnprstvwz", "aeiou", "bdgkmpx")
    made = sorted({"".join(letter) for letter in letters} - set(PAPER_NAMES))
    return (*PAPER_NAMES, *np.random.default_rng(0).choice(made, size=count, replace=False).tolist())


NAMES = _list_names(19)
"""Few enough that a small tokenizer has a token for each: a name in several tokens takes far longer to learn."""

CAPTION_SHARE, DESCRIPTION_SHARE = 0.1, 0.2
"""Shares of texts; the rest are episodes."""

DESCRIBED = 8
"""Things in a text of descriptions."""

QUERY = "Q: What is this? A: This is a"

Thing = tuple[str, str]
Turn = tuple[str, str]


class BindingTexts:
    """Such texts: record i is a pure function of seed and i. Its `turns` are (given, predicted) stretches."""

    def __init__(self, size: int, *, seed: int, presentations: int = 10, other_things: float = 0.0):
        """Makes the source; each text is made when it is asked for.

        Args:
            size: number of records.
            seed: another seed gives other texts.
            presentations: at most so many in an episode, repeats included, a question counted as two; 4 or more.
            other_things: share of texts about all 192 things; the others are about easy-VQA's 24 alone.

        Raises:
            UserError: fewer presentations than an episode takes, or what is no share.
        """
        if presentations < 4 or not 0 <= other_things <= 1:
            raise UserError(
                f"data: binding_text options presentations={presentations}, other_things={other_things}: an episode "
                "takes 4 presentations or more, and the other is a share in 0..1"
            )
        self._size, self._seed, self._other_things = size, seed, other_things
        self._plans = [
            (ways, shots, repeats)
            for ways in range(2, 6)
            for shots in range(1, 6)
            for repeats in range(4)
            if ways * shots * (1 + repeats) + 2 <= presentations
        ]
        # Many presentations, so that a text teaches much; few repeats, whose names also follow from their order.
        wanted = np.array([ways * shots / (1 + repeats) for ways, shots, repeats in self._plans])
        self._shares = wanted / wanted.sum()

    def __len__(self) -> int:
        return self._size

    def ids(self) -> list[str]:
        """Returns "binding/0" and so on."""
        return [f"binding/{index}" for index in range(self._size)]

    def record(self, index: int) -> Record:
        """Returns a text without a picture."""
        rng = np.random.default_rng((self._seed, index))
        kind = rng.random()
        if kind < CAPTION_SHARE:
            turns = self._write_caption(rng)
        elif kind < CAPTION_SHARE + DESCRIPTION_SHARE:
            turns = self._write_descriptions(rng)
        else:
            turns = self._write_episode(rng)
        return Record(f"binding/{index}", None, turns=turns)

    def _draw_things(self, count: int, rng: np.random.Generator) -> list[Thing]:
        """Draws different things."""
        adjectives, nouns = (ADJECTIVES, NOUNS) if rng.random() < self._other_things else (COLOURS, SHAPES)
        places = rng.choice(len(adjectives) * len(nouns), size=count, replace=False)
        return [(adjectives[place % len(adjectives)], nouns[place // len(adjectives)]) for place in places]

    def _write_caption(self, rng: np.random.Generator) -> tuple[Turn, ...]:
        (thing,) = self._draw_things(1, rng)
        captions = list_captions(*thing)
        return ((describe(thing), f" {captions[rng.integers(len(captions))]}"),)

    def _write_descriptions(self, rng: np.random.Generator) -> tuple[Turn, ...]:
        given = ""
        turns: list[Turn] = []
        for _ in range(DESCRIBED):
            (thing,) = self._draw_things(1, rng)
            turns.append((f"{given}{describe(thing)} This is a {rng.choice(NAMES)}", describe(thing)))
            given = "."
        return tuple(turns)

    def _write_episode(self, rng: np.random.Generator) -> tuple[Turn, ...]:
        ways, shots, repeats = self._plans[rng.choice(len(self._plans), p=self._shares)]
        questions = 1 + int(rng.random() < 0.5)
        induced = bool(rng.random() < 0.5)
        things = self._draw_things(ways, rng)
        return write_episode(things, rng, shots=shots, repeats=repeats, questions=questions, induced=induced)


def describe(thing: Thing) -> str:
    """Says in two words what stands where a picture will stand."""
    return f" {thing[0]} {thing[1]}"


def write_episode(
    things: Sequence[Thing], rng: np.random.Generator, *, shots: int, repeats: int, questions: int, induced: bool
) -> tuple[Turn, ...]:
    """Writes the support set 1 + `repeats` times, then questions.

    Args:
        things: the classes.
        rng: draws names, order and what is asked about.
        shots: inner-shots: presentations of each class in the support set.
        repeats: extra presentations of the support set, in the same order.
        questions: at least 1; the few-shot prompts have one, and the others use the same support set again.
        induced: begin with the text that says what the task is.
    """
    names = rng.choice(NAMES, size=len(things), replace=False).tolist()
    order = rng.permutation(np.repeat(np.arange(len(things)), shots)).tolist()
    given = ""
    if induced:
        ordered = [names[place] for place in dict.fromkeys(order)]
        given = f"Answer with {', '.join(ordered[:-1])} or {ordered[-1]}."
    turns: list[Turn] = []
    for number, place in enumerate(order * (1 + repeats)):
        given += f"{describe(things[place])} This is a"
        if place in order[:number] or number >= len(order):
            turns.append((given, f" {names[place]}"))
            given = "."
        else:
            given += f" {names[place]}."
    for place in rng.integers(len(things), size=questions).tolist():
        turns.append((f"{given}{describe(things[place])} {QUERY}", f" {names[place]}"))
        given = "."
    return tuple(turns)
