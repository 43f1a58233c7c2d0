"""What every data source yields, and the protocol that a source follows. Nothing is opened or decoded here.

The sources themselves stand in `easy_vqa.py`, `fake.py` and their neighbours; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from frozen_jax.data.order import sample_indices
from frozen_jax.errors import UserError

T = TypeVar("T")


class RecordError(UserError):
    """A record that cannot be used; the pipeline raises it or puts another record in its place.

    Attributes:
        reason: short and countable, such as "missing", "damaged", "not UTF-8", "empty caption".
    """

    def __init__(self, message: str, *, reason: str):
        super().__init__(message)
        self.reason = reason


class FileSlice(NamedTuple):
    """An encoded picture or text inside a larger file (a member of a tar shard).

    Attributes:
        path: the larger file.
        offset: first byte.
        length: number of bytes.
    """

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """Returns the bytes.

        Raises:
            RecordError: the file has vanished or was cut.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError as error:
            raise RecordError(
                f"data: {self.path} cannot be read ({error.strerror}); restore the file", reason="missing"
            ) from error
        if len(data) < self.length:
            raise RecordError(
                f"data: {self.path} was cut: {len(data)} of {self.length} bytes at {self.offset} are there; restore it",
                reason="cut shard",
            )
        return data


ImageData: TypeAlias = Path | FileSlice | bytes | np.ndarray


class Question(NamedTuple):
    """One question about a picture.

    Attributes:
        text: as in the source ("what color is the shape?").
        answers: reference answers, ten in VQAv2, one in easy-VQA, none in a hidden test set.
        id: the source's own question id ("" if it has none).
        kind: the source's own type ("yes/no", "number", "other"; "" if it has none).
        raw_answers: the same answers as people wrote them, where the source has changed them (OK-VQA's are stemmed).
    """

    text: str
    answers: tuple[str, ...]
    id: str = ""
    kind: str = ""
    raw_answers: tuple[str, ...] = ()


class Record(NamedTuple):
    """One picture with everything a source says about it.

    Attributes:
        id: unique within the source and stable from run to run; appears in error messages and reports.
        image: a file, part of a file, an encoded file's bytes, decoded pixels uint8[height, width(, 1 | 3 | 4)], or
            None (text only).
        captions: none, one or several.
        questions: about this picture.
        tags: class name or multi-label tags.
        turns: a text of its own, without a picture, as stretches of (what is given, what is to be predicted from all
            before it); nothing is put between them.
        domain: the part of the set that figures are given for by itself, such as NoCaps' "near-domain"; "" is none.
    """

    id: str
    image: ImageData | None
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    tags: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    domain: str = ""


@runtime_checkable
class Source(Protocol):
    """An indexed set of records. `record(i)` must be safe to call from several threads."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def ids(self) -> Sequence[str]:
        """Returns the id of every record, in order, without opening pictures."""
        ...

    def record(self, index: int) -> Record:
        """Returns one record, 0 <= index < len."""
        ...


class Subset:
    """Chosen records of a source, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self.source = source
        self.indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def ids(self) -> list[str]:
        """Returns the ids of the chosen records."""
        ids = self.source.ids()
        return [ids[i] for i in self.indices.tolist()]

    def record(self, index: int) -> Record:
        """Returns the chosen record at `index`."""
        return self.source.record(int(self.indices[index]))


class MemorySource:
    """Records that are held in a list."""

    def __init__(self, records: Sequence[Record]):
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def ids(self) -> list[str]:
        """Returns the ids."""
        return [record.id for record in self.records]

    def record(self, index: int) -> Record:
        """Returns the record at `index`."""
        return self.records[index]


def split_holdout(source: Source, *, count: int, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits a source at random into (the rest, `count` held-out records), the same way in every run.

    Raises:
        UserError: fewer than count + 1 records.
    """
    if not 0 < count < len(source):
        raise UserError(
            f"data: cannot hold out {count} of {len(source)} records for validation; at least one must remain for "
            "training: lower the number held out"
        )
    order = sample_indices(seed, 0, 0, len(source), len(source))
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def read_usable(read: Callable[[int], T], indices: Iterable[int], *, on_bad: str) -> Iterator[T]:
    """Yields what is read of records where they are only counted or shown; no picture is opened.

    Args:
        read: a source's `record`, or what is made of one.
        indices: of the records.
        on_bad: the config's `data.on_bad`: with "replace" those that training replaces are left out here.

    Raises:
        RecordError: one cannot be used, and `on_bad` is "raise".
    """
    for index in indices:
        try:
            yield read(index)
        except RecordError:
            if on_bad == "raise":
                raise


def select(source: Source, keep: Callable[[int], bool]) -> Subset:
    """Returns the records whose index satisfies `keep`, in order."""
    return Subset(source, [i for i in range(len(source)) if keep(i)])


def class_of(record: Record, *, tag: int) -> str:
    """Returns the class of a picture: its tag at place `tag`, or all tags joined by spaces with -1.

    Raises:
        RecordError: the record has no such tag.
    """
    if not record.tags or not -1 <= tag < len(record.tags):
        raise RecordError(
            f"data: record {record.id} has the tags {record.tags}, none at place {tag}; name a source of tagged "
            "pictures (classes:, jsonl:) or another place (0 is the first, -1 all of them joined)",
            reason="no such tag",
        )
    return " ".join(record.tags) if tag < 0 else record.tags[tag]
