"""One style of captions for sets that only have names: "hamster" becomes "A hamster.", as people caption pictures."""

from __future__ import annotations

import re

_PHRASE_END = re.compile(r" (?:with|without|of|in|on|and|at|for) ")
_NO_ARTICLE = frozenset(("men", "women", "people", "person", "two"))


def make_sentence(name: str) -> str:
    """Returns a name as a caption; plurals and proper names stay without an article.

    Example:
        >>> make_sentence("hamster"), make_sentence("open mailbox with raised flag"), make_sentence("bubbles")
        ('A hamster.', 'An open mailbox with raised flag.', 'Bubbles.')
    """
    name = name.strip()
    words = _PHRASE_END.split(name)[0].split()
    plural = words[-1].endswith("s") and not words[-1].endswith("ss")
    if plural or words[0] in _NO_ARTICLE or name[0].isupper():
        return f"{name[0].upper()}{name[1:]}."
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name}."
