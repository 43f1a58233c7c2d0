"""Noto's colour emoji as pictures, with the names and keywords that Unicode's CLDR gives them.

The rules: an emoji is a fully-qualified sequence of Unicode's `emoji-test.txt`, of any group but Component and Flags
and without a skin tone; its picture is the bitmap of the font's glyph; its caption is CLDR's English name, worded as
the stamps' captions are (`wording.py`), so that one style is learnt and the same thing has the same caption; its tags
are its group and then its keywords. Of pictures that are equal in every pixel the first stays.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from frozen_jax.errors import UserError
from frozen_jax.fetch.archives import read_members, read_one
from frozen_jax.fetch.split import Entry
from frozen_jax.fetch.stamps import square
from frozen_jax.fetch.wording import make_sentence

FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ORDER = "usr/share/unicode/emoji/emoji-test.txt"
ANNOTATIONS = tuple(
    f"usr/share/unicode/cldr/common/{folder}/en.xml" for folder in ("annotations", "annotationsDerived")
)

QUESTION = "Which group of emoji is this?"

_LEFT_OUT = ("Component", "Flags")
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_AS_PICTURE = "\ufe0f"
"""Variation selector, which CLDR and the font leave out."""


class Annotation(NamedTuple):
    """What CLDR says of an emoji: its name, and its keywords."""

    name: str
    keywords: tuple[str, ...]


def write_emoji(font: Path, cldr: Path, unicode_data: Path, folder: Path) -> list[Entry]:
    """Writes the pictures and returns their captions, in Unicode's order.

    Args:
        font: the `.deb` of the font.
        cldr: the `.deb` of CLDR.
        unicode_data: the `.deb` with the list of emoji.
        folder: gets `pictures/CODEPOINTS.png`.

    Raises:
        UserError: a package that is damaged or not the expected one, or fontTools is not installed.
    """
    annotations: dict[str, Annotation] = {}
    for _, content in read_members(cldr, ANNOTATIONS.__contains__):
        annotations |= read_annotations(content)
    bitmaps = Bitmaps(read_one(font, FONT))
    (folder / "pictures").mkdir(parents=True)
    entries: list[Entry] = []
    seen: set[bytes] = set()
    for sequence, group in read_groups(read_one(unicode_data, ORDER).decode("utf-8")).items():
        annotation, bitmap = annotations.get(sequence), bitmaps(sequence)
        if annotation is None or bitmap is None:
            continue  # newer than the names or than the font
        picture = square(bitmap)
        if picture.tobytes() in seen:
            continue
        seen.add(picture.tobytes())
        path = folder / "pictures" / f"{'-'.join(f'{ord(sign):x}' for sign in sequence)}.png"
        picture.save(path)
        keywords = tuple(word for word in annotation.keywords if word != annotation.name)
        entries.append(Entry(f"pictures/{path.name}", make_sentence(annotation.name), (group, *keywords)))
    return entries


def read_groups(text: str) -> dict[str, str]:
    """Reads `emoji-test.txt`: the group of each emoji that counts, by its sequence without variation selectors.

    Example:
        >>> read_groups("# group: Food & Drink\\n1F34E ; fully-qualified # red apple\\n")
        {'🍎': 'Food & Drink'}
    """
    groups: dict[str, str] = {}
    group = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        codes, _, status = line.partition("#")[0].partition(";")
        if status.strip() != "fully-qualified" or group in _LEFT_OUT:
            continue
        points = [int(code, 16) for code in codes.split()]
        if not any(point in _SKIN_TONES for point in points):
            groups["".join(map(chr, points)).replace(_AS_PICTURE, "")] = group
    return groups


def read_annotations(xml: bytes) -> dict[str, Annotation]:
    """Reads an annotation file of CLDR: name and keywords by sequence; what has no name is left out.

    Raises:
        UserError: not well-formed, or it declares entities, which such a file does not need.
    """
    texts: dict[tuple[str, bool], str] = {}
    current: tuple[str, bool] | None = None

    def begin(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal current
        current = (attributes.get("cp", ""), attributes.get("type") == "tts") if tag == "annotation" else None

    def add(text: str) -> None:
        if current is not None:
            texts[current] = texts.get(current, "") + text

    def end(tag: str) -> None:
        nonlocal current
        current = None

    def refuse(name: str, *_: object) -> None:
        raise UserError(f"fetch: the CLDR file declares the entity {name!r}; it is not the one that is expected")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = add, refuse
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise UserError(f"fetch: the CLDR file is not well-formed XML ({error}); fetch it again") from error
    return {
        sequence.replace(_AS_PICTURE, ""): Annotation(
            text.strip(), tuple(word.strip() for word in texts.get((sequence, False), "").split("|") if word.strip())
        )
        for (sequence, named), text in texts.items()
        if named
    }


class Bitmaps:
    """A font's colour bitmaps by sequence, as PNG files' bytes; None for a sequence without one."""

    def __init__(self, content: bytes):
        try:
            from fontTools.ttLib import TTFont, TTLibError
        except ModuleNotFoundError as error:
            raise UserError("fetch: fontTools reads the font: pip install 'frozen_jax[fetch]'") from error
        try:
            font = TTFont(io.BytesIO(content), lazy=True)
            self._glyphs: Mapping[int, str] = font.getBestCmap()
            self._bitmaps = font["CBDT"].strikeData[0]
            lookups = font["GSUB"].table.LookupList.Lookup
        except (TTLibError, LookupError) as error:
            raise UserError(f"fetch: the font has no colour bitmaps ({error}); it is not the expected one") from error
        self._joined: dict[tuple[str, ...], str] = {}
        for table in (table for lookup in lookups for table in lookup.SubTable):
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    self._joined[(first, *ligature.Component)] = ligature.LigGlyph

    def __call__(self, sequence: str) -> bytes | None:
        """Returns the bitmap of a sequence without variation selectors."""
        glyphs = tuple(self._glyphs.get(ord(sign), "") for sign in sequence)
        glyph = glyphs[0] if len(glyphs) == 1 else self._joined.get(glyphs, "")
        bitmap = self._bitmaps.get(glyph)
        return None if bitmap is None else bytes(bitmap.imageData)
