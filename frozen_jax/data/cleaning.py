"""The usual cleaning of captions, and a source wrapped in it. Tokenizing is in `text.py`.

Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from frozen_jax.data.records import Record, RecordError, Source, Subset
from frozen_jax.errors import UserError

_SPACES = re.compile(r"\s+")
_HIDDEN = dict.fromkeys((0x00AD, 0x200B, 0x2060, 0xFEFF))  # soft hyphen, zero-width space, word joiner, BOM
_JOINERS = "\u200c\u200d"  # parts of emoji and of words in several scripts
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "…": "..."})


@dataclass(frozen=True)
class CleanOptions:
    """What is done to a caption, in this order.

    Attributes:
        entities: "&amp;" and its like become the characters (twice, for text that was escaped twice).
        normal_form: Unicode normalisation, "NFC" or "NFKC" (which also unifies ligatures and full-width forms), or "".
        plain_quotes: curly quotes, dashes and the ellipsis become ASCII.
        lower_case: off by default: the language models have seen both cases.
        min_characters: shorter captions are dropped.
        max_characters: longer ones are dropped as "huge caption".
        drop_repeats: leave out records all of whose captions came before, in the order of the source.
    """

    entities: bool = True
    normal_form: str = "NFC"
    plain_quotes: bool = False
    lower_case: bool = False
    min_characters: int = 1
    max_characters: int = 2000
    drop_repeats: bool = False

    def __post_init__(self) -> None:
        if self.normal_form not in ("", "NFC", "NFKC"):
            raise UserError(f"data: normal_form {self.normal_form!r} is not known; use 'NFC', 'NFKC' or ''")
        if not 1 <= self.min_characters <= self.max_characters:
            raise UserError(
                f"data: min_characters {self.min_characters} must lie in 1..max_characters ({self.max_characters})"
            )


def clean_text(text: str, options: CleanOptions = CleanOptions()) -> str:
    """Returns a caption in one line without control characters, doubled spaces or escapes; "" if nothing is left."""
    text = text[: 4 * options.max_characters]  # a text beyond it is refused by its length in any case
    if options.entities and "&" in text:
        text = html.unescape(html.unescape(text))
    if options.normal_form and not text.isascii():
        text = unicodedata.normalize("NFC" if options.normal_form == "NFC" else "NFKC", text)
    if not text.isascii():
        text = text.translate(_HIDDEN)
        if options.plain_quotes:
            text = text.translate(_QUOTES)
    text = _SPACES.sub(" ", text)
    if not text.isprintable():
        text = "".join(c for c in text if c in _JOINERS or unicodedata.category(c)[0] != "C")
        text = _SPACES.sub(" ", text)
    text = text.strip()
    return text.lower() if options.lower_case else text


def clean_captions(captions: Sequence[str], options: CleanOptions, *, name: str) -> tuple[str, ...]:
    """Returns the usable captions, cleaned, each once.

    Args:
        captions: at least one.
        options: what is done to each.
        name: of the record, for the message.

    Raises:
        RecordError: none is usable; the reason is that of the first: "empty caption", "huge caption" or "not UTF-8".
    """
    kept: dict[str, None] = {}
    first = ""
    for caption in captions:
        text = clean_text(caption, options)
        if "\ufffd" in text:
            reason = "not UTF-8"
        elif len(text) < options.min_characters:
            reason = "empty caption"
        elif len(text) > options.max_characters:
            reason = "huge caption"
        else:
            kept[text] = None
            continue
        first = first or reason
    if not kept:
        raise RecordError(
            f"data: record {name} has no usable caption ({first}: {captions[0][:40]!r}); mend or remove it",
            reason=first,
        )
    return tuple(kept)


def clean_source(source: Source, options: CleanOptions) -> Source:
    """Wraps a source: captions and questions cleaned as they are read, repeated records left out if wished."""
    cleaned = CleanedSource(source, options)
    return without_repeats(cleaned) if options.drop_repeats else cleaned


class CleanedSource:
    """A source whose captions and questions are cleaned as they are read; answers stay as they are."""

    def __init__(self, source: Source, options: CleanOptions):
        self.source, self.options = source, options

    def __len__(self) -> int:
        return len(self.source)

    def ids(self) -> Sequence[str]:
        """Returns the source's ids."""
        return self.source.ids()

    def record(self, index: int) -> Record:
        """Returns the record at `index`, its captions cleaned.

        Raises:
            RecordError: it had captions, and none is usable.
        """
        record = self.source.record(index)
        questions = tuple(q._replace(text=clean_text(q.text, self.options)) for q in record.questions)
        captions = record.captions and clean_captions(record.captions, self.options, name=record.id)
        return record._replace(captions=captions, questions=questions)


def without_repeats(source: Source) -> Subset:
    """Returns the records whose set of captions has not come before; those without captions or unreadable all stay.

    Reads every record's text once; keeps 8 bytes of each in memory.
    """
    seen: set[int] = set()
    kept = []
    for index in range(len(source)):
        try:
            captions = source.record(index).captions
        except RecordError:
            captions = ()
        text = "\0".join(sorted(caption.casefold() for caption in captions))
        key = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        if not captions or key not in seen:
            kept.append(index)
            seen.add(key)
    return Subset(source, kept)
