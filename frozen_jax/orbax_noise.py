"""Keeps tracebacks of Orbax's background work off the terminal: `checkpoint.py` raises the same failures in a line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _RaisedLater(logging.Filter):
    """Drops Orbax's tracebacks of failed background work: `wait` raises the same failure as one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


logging.getLogger("absl").addFilter(_RaisedLater())
# A read that Orbax drops before it has begun: once in ten thousand damaged checkpoints.
warnings.filterwarnings("ignore", r"coroutine '_read_\w+' was never awaited", RuntimeWarning)


@contextmanager
def silencing_dropped_reads() -> Iterator[None]:
    """Keeps the reads that Orbax drops unfinished when one fails from printing a traceback each.

    They end at any time after that, so the hook stays for good when the body raises.
    """
    previous = sys.unraisablehook

    def report(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        dropped = code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename
        if not dropped and str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = report
    yield
    sys.unraisablehook = previous
