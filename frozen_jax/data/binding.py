"""Texts that teach a language model to bind new names to what it is shown, without a picture: the few-shot episodes of
`tasks/fewshot.py` with words where the pictures will stand, and what makes a small model learn them soon.

    episode       Answer with zorp or mib. red circle This is a zorp. teal square This is a mib. red circle
                  Q: What is this? A: This is a|zorp.|
    short         red circle a zorp. teal square a mib. red circle a|zorp.|          the link is a part of "This is a"
    repeats       zorp red mib circle|zorp red mib circle zorp|                      or with a link behind each word
    description   red circle This is a zorp|circle red|
    caption       red circle This is a|circle red|                                   between | and | carries loss

Each text draws its names anew, so that only the text tells what they mean. Episodes alone leave a small model at
guessing among the names of the text for very long: it has to read what stands before a name, to read what stands before
the question and to compare the two, and none of these helps without the others. Repeats teach to compare, by a loss on
nearly every word; descriptions and captions teach to read, and captions are what the vision stage relies on. What
stands where a picture will stand has two words, as a prefix has two vectors. Next in the data flow: `wording.py`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np

from frozen_jax.data.records import Record
from frozen_jax.data.scenes import COLOURS, NOUN_PHRASES, SHAPES
from frozen_jax.errors import UserError

PAPER_NAMES = ("dax", "blicket", "slation", "perpo", "shously")
"""Names of the paper's episodes, in its order: m-way episodes use the first m."""


def _list_names(count: int) -> tuple[str, ...]:
    letters = itertools.product("bdfghklmnprstvwz", "aeiou", "bdgkmpx")
    made = sorted({"".join(letter) for letter in letters} - set(PAPER_NAMES))
    return (*PAPER_NAMES, *np.random.default_rng(0).choice(made, size=count, replace=False).tolist())


NAMES = _list_names(7)
"""Few: a small tokenizer has a token for each, and comparing words is learned sooner among few words."""

LINKS = ("", " a", " is a", " This is a")
"""What stands between a thing and its name; the last in the few-shot prompts."""

QUERY = "Q: What is this? A: This is a"

CAPTION_FORMATS = tuple(
    (given, f" {phrase}") for given in (LINKS[-1], LINKS[-1], f" {QUERY}") for phrase in NOUN_PHRASES
)
"""(given, predicted) behind a thing."""

KINDS = ("repeats", "short", "episode", "description", "caption")

Thing = tuple[str, str]
Turn = tuple[str, str]


class BindingTexts:
    """Such texts: record i is a pure function of seed and i. Its `turns` are (given, predicted) stretches."""

    def __init__(self, size: int, *, seed: int, words: int = 62, lead: float = 0.75):
        """Makes the source; each text is made when it is asked for.

        Args:
            size: number of records.
            seed: another seed gives other texts.
            words: a text has at most so many, marks counted, and little fewer; 40 or more.
            lead: share of what leads to episodes, repeats and short ones 2 to 1; episodes are three fifths of the rest.

        Raises:
            UserError: fewer words than an episode takes, or what is no share.
        """
        if words < 40 or not 0 <= lead <= 1:
            raise UserError(
                f"data: binding_text options words={words}, lead={lead}: an episode takes 40 words or more, and the "
                "other is a share in 0..1"
            )
        self._size, self._seed, self._words = size, seed, words
        self._shares = (lead * 2 / 3, lead / 3, (1 - lead) * 0.6, (1 - lead) * 0.2, (1 - lead) * 0.2)

    def __len__(self) -> int:
        return self._size

    def ids(self) -> list[str]:
        """Returns "binding/0" and so on."""
        return [f"binding/{index}" for index in range(self._size)]

    def record(self, index: int) -> Record:
        """Returns a text without a picture."""
        rng = np.random.default_rng((self._seed, index))
        kind = KINDS[rng.choice(len(KINDS), p=self._shares)]
        if kind == "repeats":
            turns = _write_repeats(rng, words=self._words)
        elif kind in ("caption", "description"):
            turns = _write_readings(rng, words=self._words, named=kind == "description")
        else:
            turns = _draw_episode(rng, words=self._words, short=kind == "short")
        return Record(f"binding/{index}", None, turns=turns)


def _write_repeats(rng: np.random.Generator, *, words: int) -> tuple[Turn, ...]:
    link = LINKS[rng.choice(len(LINKS), p=(1 / 2, 1 / 6, 1 / 6, 1 / 6))]
    step = 1 + count_words(link)
    most = words // (2 * step)  # so that all are said twice
    pool = (*COLOURS, *SHAPES, *NAMES)
    drawn = [pool[place] for place in rng.permutation(len(pool))[: rng.integers(3, min(most, 16) + 1)]]
    given = "".join(f" {word}{link}" for word in drawn)
    turns: list[Turn] = []
    for place in range(len(drawn), words // step):
        turns.append((given, f" {drawn[place % len(drawn)]}"))
        given = link
    return tuple(turns)


def _write_readings(rng: np.random.Generator, *, words: int, named: bool) -> tuple[Turn, ...]:
    given, room = "", words
    turns: list[Turn] = []
    while True:
        thing = _draw_things(1, rng)[0]
        if named:
            first, then = (
                f"{LINKS[-1]} {NAMES[rng.integers(len(NAMES))]}",
                describe(thing if rng.random() < 0.5 else (thing[1], thing[0])),
            )
        else:
            first, then = CAPTION_FORMATS[rng.integers(len(CAPTION_FORMATS))]
            then = then.format(colour=thing[0], shape=thing[1])
        turn = (f"{given}{describe(thing)}{first}", then)
        room -= count_words(turn[0] + turn[1])
        if room < 0:
            return tuple(turns)
        turns.append(turn)
        given = "."


def _draw_things(count: int, rng: np.random.Generator) -> list[Thing]:
    """Draws different things."""
    places = rng.permutation(len(COLOURS) * len(SHAPES))[:count].tolist()
    return [(COLOURS[place % len(COLOURS)], SHAPES[place // len(COLOURS)]) for place in places]


def _draw_episode(rng: np.random.Generator, *, words: int, short: bool) -> tuple[Turn, ...]:
    things = _draw_things(int(rng.integers(2, 6)), rng)
    names = [NAMES[place] for place in rng.permutation(len(NAMES))[: len(things)]]
    link = LINKS[rng.integers(len(LINKS))] if short else LINKS[-1]
    induced = not short and bool(rng.random() < 0.5)
    room = words - (2 * len(things) + 2 if induced else 0)
    order: list[int] = []
    asked: list[bool] = []
    longest = 4 + count_words(QUERY)
    while room >= longest:
        # The last one has been shown before, so that each text has something to learn.
        place = int(rng.integers(len(things)) if room >= 2 * longest or not order else order[rng.integers(len(order))])
        asked.append(not short and place in order and bool(rng.random() < 0.35))
        order.append(place)
        room -= longest if asked[-1] else 4 + count_words(link)
    return write_episode(things, names, order, asked=asked, link=link, induced=induced)


@functools.lru_cache(maxsize=4096)
def count_words(text: str) -> int:
    """Counts words and marks: the tokens of a text whose words all have a token of their own."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def describe(thing: Thing) -> str:
    """Says in two words what stands where a picture will stand."""
    return f" {thing[0]} {thing[1]}"


def write_episode(
    things: Sequence[Thing],
    names: Sequence[str],
    order: Sequence[int],
    *,
    asked: Sequence[bool],
    link: str = LINKS[-1],
    induced: bool = False,
) -> tuple[Turn, ...]:
    """Writes an episode; a name and its full stop carry loss wherever its thing has been shown before.

    Args:
        things: the classes.
        names: of them.
        order: places in `things`, as they are shown.
        asked: for each of these, whether the question stands before its name.
        link: stands there otherwise.
        induced: begin with the text that says what the task is.
    """
    given = ""
    if induced:
        ordered = [names[place] for place in dict.fromkeys(order)]
        given = f"Answer with {' or '.join([', '.join(ordered[:-1]), ordered[-1]] if ordered[1:] else ordered)}."
    turns: list[Turn] = []
    for number, place in enumerate(order):
        given += describe(things[place]) + (f" {QUERY}" if asked[number] else link)
        named = f" {names[place]}."
        if place in order[:number]:
            turns.append((given, named))
            given = ""
        else:
            given += named
    return tuple(turns)
