"""The one exception for what a user can cause and mend; `main` and the tools print it as one line and exit 1.

A message names the value, the rule it broke, the reason for the rule, and what to change.
"""

from __future__ import annotations

_LONGEST = 1200
"""Characters of a message: room for a few paths, and not for a damaged file that turned into one name."""


class UserError(Exception):
    """Bad input, configuration, file, image or checkpoint: shown without a traceback, as one line.

    What messages quote comes from files and may hold line ends, control characters or megabytes.
    """

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        text = "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in text)
        if len(text) <= _LONGEST:
            return text
        return f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 + 3 :]}"
