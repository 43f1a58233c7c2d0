"""Folders of pictures: captions in `.txt` files beside them, or classes as sub-folders.

Every picture and every caption is a record, so that one without the other is reported instead of lost.
Tables and annotation files are in `tables.py` and `annotations.py`; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from frozen_jax.data.records import Record, RecordError
from frozen_jax.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".svg")
"""Suffixes taken for pictures; the content decides whether one opens (SVG does not, and is then reported)."""


def existing_folder(path: str | Path) -> Path:
    """Returns the folder.

    Raises:
        UserError: it does not exist.
    """
    folder = Path(path).expanduser()
    if not os.path.isdir(folder):
        raise UserError(f"data: {folder} is not a folder; check the path")
    return folder


def read_text(path: Path) -> str:
    """Returns a text file's content.

    Raises:
        RecordError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"data: {path} is not UTF-8 ({error.reason}); convert it", reason="not UTF-8") from error
    except OSError as error:
        raise RecordError(f"data: {path} cannot be read ({error.strerror}); restore it", reason="missing") from error


def walk(folder: Path) -> Iterator[str]:
    """Yields the files below a folder as relative paths, sorted, the same on every machine."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(place, folder)
        found += [name if relative == "." else f"{relative}/{name}" for name in files if not name.startswith(".")]
    yield from sorted(found)


class SidecarFolder:
    """Pictures with captions in a `.txt` of the same name; the folder below the root is the tag.

    The first non-empty line is the caption; all lines are captions with lines="all".
    """

    def __init__(self, path: str | Path, *, lines: str = "first"):
        """Lists the folder.

        Args:
            path: root folder, searched with its sub-folders.
            lines: "first" or "all" lines of a `.txt` are captions.

        Raises:
            UserError: no such folder, or nothing in it.
        """
        if lines not in ("first", "all"):
            raise UserError(f"data: folder option lines={lines!r} is not known; use 'first' or 'all'")
        self._root, self._all_lines = existing_folder(path), lines == "all"
        pictures: dict[str, str] = {}
        captions: set[str] = set()
        self._entries: list[tuple[str, str | None]] = []
        for name in walk(self._root):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() == ".txt":
                captions.add(stem)
            elif suffix.lower() in PICTURES:
                pictures[name] = stem
        for name, stem in pictures.items():
            pictures[name] = stem if stem in captions else name  # a.txt, or a.png.txt
        alone = captions.difference(pictures, pictures.values())
        for name in sorted([*pictures, *alone]):
            stem = pictures.get(name, name)
            self._entries.append((name, stem if stem in captions else None))
        if not self._entries:
            raise UserError(f"data: {self._root} holds no pictures ({', '.join(PICTURES)}); check the path")

    def __len__(self) -> int:
        return len(self._entries)

    def ids(self) -> list[str]:
        """Returns the paths below the root."""
        return [name for name, _ in self._entries]

    def record(self, index: int) -> Record:
        """Returns the picture at `index` with its caption.

        Raises:
            RecordError: the caption's file cannot be read.
        """
        name, stem = self._entries[index]
        lines: list[str] = []
        if stem is not None:
            lines = [line.strip() for line in read_text(self._root / f"{stem}.txt").splitlines() if line.strip()]
        folder = os.path.dirname(name)
        return Record(
            id=name,
            image=self._root / name if name.lower().endswith(PICTURES) else None,
            captions=tuple(lines if self._all_lines else lines[:1]),
            tags=(folder,) if folder else (),
        )


class ClassFolder:
    """Pictures in one sub-folder per class (the layout of ImageNet); the class's name is tag and caption."""

    def __init__(self, path: str | Path, *, names: str | Path = ""):
        """Lists the folder.

        Args:
            path: root folder, whose sub-folders are the classes.
            names: file with a folder's name and the class's readable name per line ("n01440764 tench"); by default
                the folder's own name with "_" read as a space.

        Raises:
            UserError: no such folder, no pictures, or a folder that `names` leaves out.
        """
        self._root = existing_folder(path)
        self._names = [name for name in walk(self._root) if "/" in name and name.lower().endswith(PICTURES)]
        if not self._names:
            raise UserError(f"data: {self._root} holds no class folders with pictures; check the path")
        folders = sorted({name.split("/")[0] for name in self._names})
        self.classes = {folder: folder.replace("_", " ") for folder in folders}
        if names:
            rows = (line.split(maxsplit=1) for line in read_text(Path(names)).splitlines() if line.strip())
            given = {row[0]: row[-1].strip() for row in rows}
            lacking = [folder for folder in folders if folder not in given]
            if lacking:
                raise UserError(f"data: {names} has no line for class folder {lacking[0]!r}; add it")
            self.classes = {folder: given[folder] for folder in folders}

    def __len__(self) -> int:
        return len(self._names)

    def ids(self) -> list[str]:
        """Returns the paths below the root."""
        return list(self._names)

    def record(self, index: int) -> Record:
        """Returns the picture at `index` with its class as tag and caption."""
        name = self._names[index]
        label = (self.classes[name.split("/")[0]],)
        return Record(id=name, image=self._root / name, captions=label, tags=label)
