"""TFRecord and ArrayRecord files of `tf.train.Example` messages, read at random places and without TensorFlow.

TFDS builders, which hold such files, are in `tfds_source.py`; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import glob
import importlib
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from frozen_jax.data.index_cache import cached_index
from frozen_jax.data.records import FileSlice, Record, RecordError
from frozen_jax.data.tar import decode
from frozen_jax.errors import UserError

Features: TypeAlias = Mapping[str, Sequence[bytes | int | float]]

IMAGE_KEYS = ("image", "image/encoded", "image_bytes", "jpg", "png")
CAPTION_KEYS = ("captions/text", "captions", "caption", "image/caption", "text", "txt")
_INDEX_VERSION = 1


def tfrecord_files(path: str | Path, *, image: str = "", caption: str = "") -> ExampleSource:
    """Opens TFRecord files, which are indexed once.

    Args:
        path: a file, or a pattern with * and ?.
        image: feature with the encoded picture; by default the first of IMAGE_KEYS that is there.
        caption: feature with one or several captions; by default the first of CAPTION_KEYS that is there.

    Raises:
        UserError: no file is found, or one is damaged.
    """
    return ExampleSource(TFRecords(matching_files(path)), image=image, caption=caption)


def array_record_files(path: str | Path, *, image: str = "", caption: str = "") -> ExampleSource:
    """Opens ArrayRecord files, which carry their own index; arguments as of `tfrecord_files`.

    Raises:
        UserError: no file is found, or the package array_record is not installed.
    """
    return ExampleSource(ArrayRecords(matching_files(path)), image=image, caption=caption)


def matching_files(path: str | Path) -> list[Path]:
    """Returns the files that a path or pattern names, sorted.

    Raises:
        UserError: there is none.
    """
    files = [Path(name) for name in sorted(glob.glob(str(Path(path).expanduser())))]
    if not files:
        raise UserError(f"data: no record file at {path}; check the path or pattern")
    return files


class ExampleSource:
    """Examples of record files as a source."""

    def __init__(self, files: TFRecords | ArrayRecords, *, image: str = "", caption: str = ""):
        """Chooses the features; see `tfrecord_files`."""
        self._files = files
        self._image_keys = (image,) if image else IMAGE_KEYS
        self._caption_keys = (caption,) if caption else CAPTION_KEYS

    def __len__(self) -> int:
        return len(self._files)

    def ids(self) -> list[str]:
        """Returns the records' numbers."""
        return [str(i) for i in range(len(self))]

    def record(self, index: int) -> Record:
        """Returns one example's picture (encoded) and captions.

        Raises:
            RecordError: the message is damaged, or has none of the expected features.
        """
        try:
            features = parse_example(self._files.read(index))
        except (ValueError, IndexError, struct.error) as error:
            raise RecordError(
                f"data: record {index} is no tf.train.Example ({error}); make the file again", reason="damaged"
            ) from error
        image = next((features[key][0] for key in self._image_keys if features.get(key)), None)
        texts = next((features[key] for key in self._caption_keys if key in features), ())
        if not isinstance(image, bytes) or not all(isinstance(text, bytes) for text in texts):
            raise RecordError(
                f"data: record {index} has features {sorted(features)}; name those of picture and caption with "
                "?image=…&caption=…",
                reason="missing column",
            )
        captions = tuple(decode(bytes(text), f"record {index}") for text in texts if isinstance(text, bytes))
        return Record(id=str(index), image=image, captions=captions)


class TFRecords:
    """The raw records of TFRecord files by number."""

    def __init__(self, files: Sequence[Path]):
        self._files = list(files)
        tables = []
        for number, file in enumerate(files):
            progress = f"{number + 1}/{len(files)}"
            rows = cached_index(file, kind="tfrecord", version=_INDEX_VERSION, build=index_tfrecord, progress=progress)
            tables.append(np.array(rows, np.int64).reshape(-1, 2))
        self._places = np.concatenate(tables)
        self._ends = np.cumsum([len(table) for table in tables]).tolist()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """Returns one record's bytes.

        Raises:
            RecordError: the file has vanished or was cut.
        """
        offset, length = self._places[index].tolist()
        file = self._files[int(np.searchsorted(self._ends, index, side="right"))]
        if length < 0:
            raise RecordError(f"data: {file} ends inside a record; restore the file", reason="cut shard")
        return FileSlice(file, offset, length).read()


class ArrayRecords:
    """The raw records of ArrayRecord files by number."""

    def __init__(self, files: Sequence[Path]):
        try:
            module = importlib.import_module("array_record.python.array_record_data_source")
        except ImportError as error:
            raise UserError("data: ArrayRecord files need a package: pip install array_record") from error
        self._reader: Any = module.ArrayRecordDataSource([str(file) for file in files])
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, index: int) -> bytes:
        """Returns one record's bytes.

        Raises:
            RecordError: the reader fails.
        """
        try:
            with self._lock:
                return bytes(self._reader[index])
        except (ValueError, RuntimeError, OSError, IndexError) as error:
            raise RecordError(f"data: record {index} cannot be read ({error})", reason="damaged") from error


def index_tfrecord(file: Path) -> Iterator[tuple[int, int]]:
    """Yields (first byte, length) of each record; a record that the file's end cuts has length -1.

    A record is: length (8 bytes), its checksum (4), the data, their checksum (4).

    Raises:
        UserError: a length's checksum is wrong: not a TFRecord file, or a damaged or compressed one.
    """
    size = file.stat().st_size
    place = 0
    with file.open("rb") as stream:
        while place < size:
            stream.seek(place)
            head = stream.read(12)
            if len(head) < 12:
                yield place, -1
                return
            length, checksum = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != checksum:
                raise UserError(f"data: {file} is no TFRecord file or damaged at byte {place}; make it again")
            if place + 16 + length > size:
                yield place, -1
                return
            yield place + 12, length
            place += 16 + length


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum that TFRecord files use: CRC-32C, rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(message: bytes) -> dict[str, list[bytes | int | float]]:
    """Decodes a `tf.train.Example` protocol buffer into {feature: values}.

    Raises:
        ValueError: the message is damaged.
    """
    features: dict[str, list[bytes | int | float]] = {}
    for number, content in _fields(memoryview(message)):
        if number != 1 or isinstance(content, int):
            continue
        for inner, entry in _fields(content):
            if inner == 1 and not isinstance(entry, int):
                pair = dict(_fields(entry))
                key, value = pair.get(1, 0), pair.get(2, 0)
                if isinstance(key, int) or isinstance(value, int):
                    raise ValueError("a feature has no name or value")
                features[bytes(key).decode()] = _values(value)
    if not features:
        raise ValueError("no features")
    return features


def _values(feature: memoryview) -> list[bytes | int | float]:
    values: list[bytes | int | float] = []
    for kind, content in _fields(feature):  # 1 bytes_list, 2 float_list, 3 int64_list
        if isinstance(content, int):
            raise ValueError("a feature's list is damaged")
        for _, item in _fields(content):
            if isinstance(item, int):
                values.append(item)
            elif kind == 1:
                values.append(bytes(item))
            elif kind == 2:
                values.extend(np.frombuffer(item, "<f4").tolist())
            else:
                place = 0
                while place < len(item):
                    number, place = _varint(item, place)
                    values.append(number - (1 << 64) if number >> 63 else number)
    return values


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yields (field number, content) of a protocol buffer message, without copying."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            number, place = _varint(message, place)
            yield tag >> 3, number - (1 << 64) if number >> 63 else number
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + length > len(message):
            raise ValueError("cut message")
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return number, place
        if shift > 63:
            raise ValueError("endless number")
