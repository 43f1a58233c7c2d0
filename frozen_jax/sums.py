"""SHA256SUMS: the digests that a model directory carries, in the format of `sha256sum`. Loaders of weights verify."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from frozen_jax.errors import UserError

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
"""A digest, how `sha256sum` read the file, and its name."""


def format_sums(files: Iterable[tuple[str, bytes | Path]]) -> str:
    """Returns the text of a SHA256SUMS.

    Args:
        files: name and content, or where it lies.
    """
    return "".join(f"{_digest(content)}  {name}\n" for name, content in files)


def verify_sums(directory: Path, *, required: Collection[str] = ()) -> None:
    """Verifies the files of a directory that has a SHA256SUMS; does nothing in one that has none.

    Args:
        directory: of a model.
        required: names that have to be in the list, which has to be there, then.

    Raises:
        UserError: a file is damaged or missing, or the list itself is damaged or incomplete.
    """
    path = directory / SUMS
    listed = dict(_read_line(path, line) for line in _read_lines(path))
    absent = [name for name in required if name not in listed]
    if absent:
        raise UserError(
            f"{path} is missing or does not list {absent[0]}, so that nothing vouches for that file; get the whole "
            "directory again"
        )
    for name, expected in listed.items():
        _compare(directory / name, expected)


def verify_file(file: Path) -> None:
    """Verifies one file by the SHA256SUMS beside it, as `tools.fetch_data` leaves one; does nothing if that has it not.

    The list may be of anything, such as of a folder of downloads: lines about other files are not looked at.

    Raises:
        UserError: the file is damaged, or its line is.
    """
    path = file.parent / SUMS
    ours = re.compile(rf".*[ *](\./)?{re.escape(file.name)}")
    for line in filter(ours.fullmatch, _read_lines(path)):
        _compare(file, _read_line(path, line)[1])


def _read_lines(path: Path) -> list[str]:
    """Returns the lines of a list; none where there is no list."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _read_line(path: Path, line: str) -> tuple[str, str]:
    """Returns a file's name and digest. The name is one of a file there: a damaged list must not lead elsewhere."""
    found = _LINE.fullmatch(line)
    if found is None or Path(found[2]).name != found[2]:
        raise UserError(f"{path}: the line {line[:80]!r} is damaged; restore the directory, or remove that file")
    return found[2], found[1].lower()


def _compare(file: Path, expected: str) -> None:
    found = digest_file(file) if file.is_file() else "absent"
    if found != expected:
        raise UserError(
            f"{file} is not what {SUMS} beside it lists ({found[:16]}, not {expected[:16]}): it is damaged or was "
            f"changed; restore the directory, or remove {SUMS} if the change was meant"
        )


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: bytes | Path) -> str:
    return digest_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
