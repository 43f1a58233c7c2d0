"""Text that an encoding may not have, such as the name of a file in other bytes, spelt with escapes."""

from __future__ import annotations

import sys


def spell(text: str, encoding: str = "utf-8") -> str:
    r"""Returns a text in which what the encoding does not have is an escape.

    Example:
        >>> spell("\udcff.png"), spell("été", "ascii")
        ('\\udcff.png', '\\xe9t\\xe9')
    """
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_lines(*lines: object) -> None:
    """Prints lines at once; what the terminal cannot spell, as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    print(*(spell(str(line), encoding) for line in lines), sep="\n", flush=True)
