"""SHA256SUMS: the digests that a model directory carries, in the format of `sha256sum`. Loaders of weights verify."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

from frozen_jax.errors import UserError

SUMS = "SHA256SUMS"


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
    listed = _read_list(path)
    absent = [name for name in required if name not in listed]
    if absent:
        raise UserError(
            f"{path} is missing or does not list {absent[0]}, so that nothing vouches for that file; get the whole "
            "directory again"
        )
    for name, expected in listed.items():
        # The name of a file here, as `format_sums` writes it: a damaged list must not lead elsewhere.
        if Path(name).name != name:
            raise _call_damaged(path, f"{expected}  {name}")
        _compare(directory / name, expected)


def verify_file(file: Path) -> None:
    """Verifies one file by the SHA256SUMS beside it, as `tools.fetch_data` leaves one; does nothing if that has it not.

    Raises:
        UserError: the file is damaged, or the list itself is.
    """
    expected = _read_list(file.parent / SUMS).get(file.name)
    if expected is not None:
        _compare(file, expected)


def _read_list(path: Path) -> dict[str, str]:
    """Returns names and digests; none where there is no list."""
    listed = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        expected, _, name = line.partition("  ")
        if not name or len(expected) != 64:
            raise _call_damaged(path, line)
        listed[name] = expected
    return listed


def _call_damaged(path: Path, line: str) -> UserError:
    return UserError(f"{path}: the line {line[:80]!r} is damaged; restore the directory, or remove that file")


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
