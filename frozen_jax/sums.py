"""SHA256SUMS: the digests that a model directory carries, in the format of `sha256sum`. Used by `language_model.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from frozen_jax.errors import UserError

SUMS = "SHA256SUMS"


def format_sums(files: Iterable[tuple[str, bytes | Path]]) -> str:
    """Returns the text of a SHA256SUMS.

    Args:
        files: name and content, or where it lies.
    """
    return "".join(f"{_digest(content)}  {name}\n" for name, content in files)


def verify_sums(directory: Path) -> None:
    """Verifies the files of a directory that has a SHA256SUMS; does nothing in one that has none.

    Raises:
        UserError: a file is damaged or missing, or the list itself is damaged.
    """
    path = directory / SUMS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        file = directory / name
        # The name of a file here, as `format_sums` writes it: a damaged list must not lead elsewhere.
        if not name or Path(name).name != name or len(expected) != 64:
            raise UserError(f"{path}: the line {line[:80]!r} is damaged; restore the directory, or remove that file")
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
