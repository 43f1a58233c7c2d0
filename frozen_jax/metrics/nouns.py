"""Whether a caption names the thing: the reference's head noun, a synonym of it or a direct hypernym, by WordNet.

Used by `tasks/caption.py`. The database's files are WordNet's own (wndb(5WN)): `data.noun`, `index.noun`, `noun.exc`,
as Debian's `wordnet-base` and Princeton's archive hold them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from frozen_jax.errors import UserError

_LONGEST = 3
"""Words of the longest compound that is looked up."""

_SENSES = 2
"""Senses of a noun that count, the commonest ones: "tiger" is a person by the first and an animal by the second."""

_MEASURE = re.compile(r"\b(?:pair|pairs|lot|lots|bunch|set|piece|pieces|kind|kinds) of\b")

_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_NO_NOUNS = frozenset(["a", "an", "be", "do", "have", "he", "it", "me", "no", "the", "us"])
"""Words that WordNet lists for names of things and letters ("a", "us") and that are no nouns in captions."""

_PHRASE_END = re.compile(
    r"[,.;:!?()]|(?<![-'])\b(?:with|without|of|in|on|at|for|from|by|to|and|or|that|which|who|as|is|are|has|above|below|behind|"
    r"under|over|near|into|onto|against|like)\b(?![-'])"
)
_ENDINGS = (("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"))


class WordNet(NamedTuple):
    """WordNet's nouns.

    Attributes:
        senses: of each noun in small letters, with spaces, the places of its synsets.
        words: nouns of a synset.
        hypernyms: of a synset, the synsets directly above it, instances' classes included.
        irregular: singular of each irregular plural.
    """

    senses: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]
    hypernyms: Mapping[str, tuple[str, ...]]
    irregular: Mapping[str, str]

    def singular(self, noun: str) -> str:
        """Returns the form that WordNet knows, or the noun itself; the endings are those of morphy(7WN)."""
        if noun in self.irregular:
            return self.irregular[noun]
        if noun in self.senses:
            return noun
        for ending, instead in (*_ENDINGS, ("s", "")):
            if noun.endswith(ending) and noun.removesuffix(ending) + instead in self.senses:
                return noun.removesuffix(ending) + instead
        return noun

    def accept(self, noun: str) -> frozenset[str]:
        """Returns the noun, the other nouns of its two commonest synsets, and those of the synsets directly above."""
        own = self.senses.get(noun, ())[:_SENSES]
        above = [upper for place in own for upper in self.hypernyms[place]]
        return frozenset({noun, *(word for place in (*own, *above) for word in self.words[place])})


def read_wordnet(directory: str | Path) -> WordNet:
    """Reads the noun files of a WordNet database.

    Raises:
        UserError: a file is missing or is not of that format.
    """
    folder = Path(directory).expanduser()
    senses, words, hypernyms, irregular = {}, {}, {}, {}
    try:
        for line in _lines(folder / "data.noun"):
            fields = line.partition(" | ")[0].split()
            count = int(fields[3], 16)
            words[fields[0]] = tuple(_plain(word) for word in fields[4 : 4 + 2 * count : 2])
            pointers = fields[5 + 2 * count :]
            hypernyms[fields[0]] = tuple(
                target for symbol, target in zip(pointers[::4], pointers[1::4], strict=False) if symbol in ("@", "@i")
            )
        for line in _lines(folder / "index.noun"):
            fields = line.split()
            senses[_plain(fields[0])] = tuple(fields[-int(fields[2]) :])
        for line in _lines(folder / "noun.exc"):
            plural, single = line.split()[:2]
            irregular[_plain(plural)] = _plain(single)
        WordNet(senses, words, hypernyms, irregular).accept("entity")
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(
            f"{folder} does not hold WordNet's nouns ({error}); "
            "give the directory of data.noun, index.noun and noun.exc"
        ) from error
    return WordNet({n: places for n, places in senses.items() if n not in _NO_NOUNS}, words, hypernyms, irregular)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("  ")]


def _plain(word: str) -> str:
    return word.replace("_", " ").lower()


def head_noun(caption: str, wordnet: WordNet) -> str:
    """Returns the singular of a caption's head noun: "fire truck" of "Two red fire trucks with ladders.".

    It is the last noun, of at most three words, that WordNet knows in what stands before the first preposition,
    conjunction, copula, mark, or participle behind a noun ("woman dancing"), measures left out ("a pair of"); its last
    word where WordNet knows none; "" where there is no word.
    """
    phrase = _MEASURE.sub(" ", caption.lower().replace("’", "'"))
    whole = _WORD.findall(phrase)
    words = next((found for part in _PHRASE_END.split(phrase) if (found := _WORD.findall(part))), whole)
    for place in range(1, len(words)):
        if words[place].endswith("ing") and wordnet.singular(words[place - 1]) in wordnet.senses:
            words = words[:place]
            break
    for end in range(len(words), 0, -1):
        for length in range(min(_LONGEST, end), 0, -1):
            noun = wordnet.singular(" ".join(words[end - length : end]))
            if noun in wordnet.senses:
                return noun
    return words[-1] if words else ""


def names_noun(text: str, accepted: frozenset[str], wordnet: WordNet) -> bool:
    """Tells whether a text has one of these nouns among its words, in the singular or in the plural."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    ends = range(1, len(words) + 1)
    return any(
        not accepted.isdisjoint({found := " ".join(words[max(0, end - length) : end]), wordnet.singular(found)})
        for end in ends
        for length in range(1, 2 + max((noun.count(" ") for noun in accepted), default=0))
    )
