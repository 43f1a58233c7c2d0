"""Indexes of files that can only be read from the front, made once and kept as JSON lines beside the file.

What an index holds is up to `tar.py` and `tfrecord.py`; next in the data flow: those.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from frozen_jax.errors import UserError


def cached_index(
    file: Path, *, kind: str, version: int, build: Callable[[Path], Iterable[Any]], progress: str = ""
) -> list[Any]:
    """Returns the rows of a file's index, building it if there is none or the file has changed since.

    Args:
        file: what is indexed; its size and time of change are kept with the index.
        kind: names the index ("tar").
        version: of the rows' format; another one is built anew.
        build: makes the rows, each a JSON value.
        progress: "3/80", shown on the terminal while building.

    Raises:
        UserError: the file does not exist.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise UserError(f"data: {file} cannot be read ({error.strerror}); restore it or change the path") from error
    header = {"kind": kind, "version": version, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
    places = [file.with_name(f".{file.name}.index"), user_cache() / f"{_digest(file)}.index"]
    for place in places:
        rows = _read(place, header)
        if rows is not None:
            return rows
    if sys.stderr.isatty():
        print(f"indexing {file.name} {progress}", file=sys.stderr)
    rows = [json.loads(json.dumps(row)) for row in build(file)]
    for place in places:
        if _write(place, [header, *rows]):
            break
    return rows


def user_cache() -> Path:
    """Returns the folder for indexes of files whose own folder cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "frozen_jax" / "index"


def _digest(file: Path) -> str:
    return hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]


def _read(place: Path, header: dict[str, Any]) -> list[Any] | None:
    """Returns the rows below a matching header, or None."""
    try:
        with place.open() as lines:
            if json.loads(next(lines, "null")) != header:
                return None
            rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return None
    return rows[:-1] if rows and rows[-1] == "end" else None


def _write(place: Path, rows: list[Any]) -> bool:
    """Writes an index at once, so that another process sees all of it or nothing; returns False where it cannot."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.name)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in [*rows, "end"])
        os.replace(name, place)
    except OSError:
        os.unlink(name)
        return False
    return True
