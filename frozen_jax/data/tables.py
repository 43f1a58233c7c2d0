"""Tables of pictures and captions: JSON lines, TSV and CSV. Nothing is kept in memory but the places of the lines.

Annotation files with a fixed schema (COCO, VQA) are in `annotations.py`; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from frozen_jax.data.records import Question, Record, RecordError
from frozen_jax.errors import UserError

_CAPTION_NUMBER = re.compile(r"#\d+$")  # Flickr's "picture.jpg#0"
_LONGEST_LINE = 1 << 22


def existing_file(path: str | Path) -> Path:
    """Returns the file.

    Raises:
        UserError: it does not exist.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        raise UserError(f"data: {file} is not a file; check the path")
    return file


def picture_path(root: Path, name: str) -> Path:
    """Returns where a table's picture lies: a path relative to the root, or a URL as root/host/path.

    Raises:
        RecordError: what looks like a URL is none.
    """
    if "://" in name:
        try:
            parts = urlsplit(name)
        except ValueError as error:
            raise RecordError(f"data: {name!r} is no URL ({error}); mend it", reason="bad URL") from error
        return root / parts.netloc / unquote(parts.path).lstrip("/")
    return root / name


class Lines:
    """The non-empty lines of a text file by number, read one at a time."""

    def __init__(self, path: Path, *, skip: int = 0):
        """Finds where the lines begin.

        Args:
            path: the file.
            skip: lines at the top that do not count (a header).
        """
        self.path = path
        begins: list[int] = []
        place = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number >= skip and line.strip():
                    begins.append(place)
                place += len(line)
        self._begins = np.array(begins, np.int64)
        self._skip = skip

    def __len__(self) -> int:
        return len(self._begins)

    def line(self, index: int) -> str:
        """Returns one line without its end.

        Raises:
            RecordError: the file has vanished, the line is not UTF-8, or longer than 4 MiB.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(int(self._begins[index]))
                raw = file.readline(_LONGEST_LINE)
        except OSError as error:
            raise RecordError(f"data: {self.path} cannot be read ({error.strerror})", reason="missing") from error
        if len(raw) == _LONGEST_LINE:
            raise RecordError(f"data: {self.path} line {index} is over 4 MiB; shorten it", reason="huge caption")
        try:
            return raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise RecordError(
                f"data: {self.path} line {index} is not UTF-8 ({error.reason}); convert it", reason="not UTF-8"
            ) from error


class JsonLines:
    """One JSON object per line: a picture's path or URL, one caption or a list, and optionally questions and tags."""

    def __init__(
        self,
        path: str | Path,
        *,
        root: str | Path = "",
        image: str = "image",
        caption: str = "caption",
        question: str = "question",
        answer: str = "answer",
        tags: str = "tags",
    ):
        """Finds the lines.

        Args:
            path: the `.jsonl` file.
            root: folder of the pictures; by default the file's own.
            image: key of the picture's path or URL.
            caption: key of a caption or a list of captions; absent means none.
            question: key of a question; absent means none.
            answer: key of an answer or a list of answers.
            tags: key of a list of tags.
        """
        file = existing_file(path)
        self._lines = Lines(file)
        self._root = Path(root).expanduser() if root else file.parent
        self._keys = {"image": image, "caption": caption, "question": question, "answer": answer, "tags": tags}

    def __len__(self) -> int:
        return len(self._lines)

    def ids(self) -> list[str]:
        """Returns "name.jsonl:0", …: the file and the number of the non-empty line."""
        return [f"{self._lines.path.name}:{i}" for i in range(len(self))]

    def record(self, index: int) -> Record:
        """Returns the record of one line.

        Raises:
            RecordError: the line is not a JSON object, or a value has the wrong type.
        """
        name = f"{self._lines.path.name}:{index}"
        try:
            row = json.loads(self._lines.line(index))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"data: {name} is not JSON ({error}); mend the line", reason="not JSON") from error
        if not isinstance(row, Mapping):
            raise RecordError(f"data: {name} is {type(row).__name__}, not a JSON object; mend it", reason="not JSON")
        image = row.get(self._keys["image"])
        if image is not None and not isinstance(image, str):
            raise RecordError(f"data: {name}: {self._keys['image']!r} must be a path; mend it", reason="not JSON")
        question = row.get(self._keys["question"])
        answers = strings(row.get(self._keys["answer"]), name)
        return Record(
            id=name,
            image=picture_path(self._root, image) if image else None,
            captions=strings(row.get(self._keys["caption"]), name),
            questions=(Question(str(question), answers),) if question else (),
            tags=strings(row.get(self._keys["tags"]), name),
        )


def strings(value: Any, name: str) -> tuple[str, ...]:
    """Returns a JSON value that is a text, a list of texts or nothing as a tuple.

    Raises:
        RecordError: it is something else.
    """
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise RecordError(f"data: {name}: {str(value)[:40]!r} must be a text or a list of texts", reason="not JSON")
    return tuple(values)


class TsvTable:
    """Tab-separated lines without quoting, as Conceptual Captions is published: caption, then URL or path."""

    def __init__(self, path: str | Path, *, root: str | Path = "", image: str = "1", caption: str = "0"):
        """Finds the lines.

        Args:
            path: the file.
            root: folder of the pictures; by default the file's own.
            image: column of the path or URL: its number from 0, or its name if the first line holds names.
            caption: column of the caption, likewise; a Flickr token file has image="0", caption="1".

        Raises:
            UserError: a named column is not in the first line.
        """
        file = existing_file(path)
        self._root = Path(root).expanduser() if root else file.parent
        named = not (image.isdigit() and caption.isdigit())
        self._lines = Lines(file, skip=int(named))
        header = Lines(file).line(0).split("\t") if named else []
        self._image, self._caption = (column_number(header, column, file) for column in (image, caption))

    def __len__(self) -> int:
        return len(self._lines)

    def ids(self) -> list[str]:
        """Returns "name.tsv:0", …: the file and the number of the line."""
        return [f"{self._lines.path.name}:{i}" for i in range(len(self))]

    def record(self, index: int) -> Record:
        """Returns the record of one line.

        Raises:
            RecordError: the line lacks a column.
        """
        name = f"{self._lines.path.name}:{index}"
        row = self._lines.line(index).split("\t")
        if len(row) <= max(self._image, self._caption):
            raise RecordError(f"data: {name} has only {len(row)} columns; mend the line", reason="missing column")
        picture = _CAPTION_NUMBER.sub("", row[self._image].strip())
        return Record(id=name, image=picture_path(self._root, picture), captions=(row[self._caption],))


def column_number(header: list[str], column: str, file: Path) -> int:
    """Returns the place of a column given by number or name.

    Raises:
        UserError: the header lacks the name.
    """
    names = [name.strip() for name in header]
    if column in names:
        return names.index(column)
    if not column.isdigit():
        raise UserError(f"data: {file} has no column {column!r}; its first line names {names}")
    return int(column)


class CsvTable:
    """Comma-separated rows with a header; rows of the same picture become one record with several captions."""

    def __init__(
        self,
        path: str | Path,
        *,
        root: str | Path = "",
        image: str = "image",
        caption: str = "caption",
        delimiter: str = ",",
    ):
        """Reads the table (kept in memory: quoted fields may span lines).

        Args:
            path: the file.
            root: folder of the pictures; by default the file's own.
            image: name or number of the column of the path or URL.
            caption: name or number of the column of the caption.
            delimiter: one character ("|" in Flickr30k's results.csv).

        Raises:
            UserError: not UTF-8, a column is missing, or `delimiter` cannot separate columns.
        """
        if len(delimiter) != 1 or delimiter in ' "\r\n':
            raise UserError(
                f"data: {path}: delimiter is {delimiter!r}; it must be one character, no space, quote or line end, "
                "such as ';' or '|'"
            )
        file = existing_file(path)
        self._root = Path(root).expanduser() if root else file.parent
        try:
            text = file.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"data: {file} is not UTF-8 ({error.reason}); convert it") from error
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
        columns = [column_number(rows[0] if rows else [], column, file) for column in (image, caption)]
        grouped: dict[str, list[str]] = {}
        for number, row in enumerate(rows[1:], 2):
            if not row:
                continue
            if len(row) <= max(columns):
                raise UserError(f"data: {file} row {number} has only {len(row)} columns; mend it")
            grouped.setdefault(row[columns[0]].strip(), []).append(row[columns[1]])
        self._rows = list(grouped.items())

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        """Returns the pictures' names."""
        return [name for name, _ in self._rows]

    def record(self, index: int) -> Record:
        """Returns one picture with its captions."""
        name, captions = self._rows[index]
        return Record(id=name, image=picture_path(self._root, name), captions=tuple(captions))
