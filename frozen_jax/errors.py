"""The one exception for what a user can cause and mend; `main` and the tools print it as one line and exit 1.

A message names the value, the rule it broke, the reason for the rule, and what to change.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

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


_OF_THE_MACHINE = {
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "free some space, or name another place",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its links lead to themselves; name another path",
}
"""What the system refuses for no fault of the program, and what to change."""


@contextlib.contextmanager
def exit_in_one_line() -> Iterator[None]:
    """Ends the process with exit status 1 and one line on stderr for what a user can mend; the rest stays a traceback.

    That is a `UserError`, and a path that the system refuses: no rights, no space, a name that is too long.
    """
    try:
        yield
    except UserError as error:
        message = error
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        message = UserError(f"{place}{error.strerror}; {_OF_THE_MACHINE[error.errno]}")
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
