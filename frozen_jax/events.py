"""TensorBoard's event files, as far as a run needs them: scalars, histograms, pictures; where a resumption begins.

They are written here, record by record, because the ready-made writer imports torch wherever that is installed (seconds
at each start), and waits for ever on its full queue when the disk is full. Its format is two small, frozen ones:
TFRecord frames, and the protocol buffer `Event`.
Next in the data flow: TensorBoard, on the directory of these files.

Source: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/event.proto (field numbers), likewise
framework/summary.proto and tsl/protobuf/histogram.proto;
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details (frames, masked CRC-32C).
"""

from __future__ import annotations

import io
import math
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from frozen_jax.captioned import Captioned


class EventWriter:
    """Appends events to one new file in a directory; each is on its way to the disk when the call returns."""

    def __init__(self, directory: str | Path, *, first_step: int) -> None:
        """Creates the file; what earlier files in the directory hold from `first_step` on is void to TensorBoard.

        Raises:
          OSError: the directory cannot be made or written.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**6:013d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("ab", buffering=0)
        self._write(_field(3, b"brain.Event:2"))
        self._write(_field(2, first_step) + _field(7, _field(1, 1)))  # SessionLog with the status START

    def add_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one event with the scalars, each under its tag.

        Raises:
          OSError: the disk is full, read-only or failing.
        """
        self._add(step, {tag: b"\x15" + _pack_float32(value) for tag, value in scalars.items()})

    def add_histogram(self, step: int, tag: str, values: Float[np.ndarray, " n"]) -> None:
        """Adds the distribution of some finite values, at least one, in 30 bins of equal width.

        Raises:
          OSError: the disk is full, read-only or failing.
        """
        values = values.astype(np.float64)  # in float32, bins between values that are nearly equal are none
        counts, edges = np.histogram(values, bins=30)
        moments = (values.min(), values.max(), values.size, values.sum(), np.square(values).sum())
        histogram = b"".join(
            _varint(number << 3 | 1) + struct.pack("<d", moment) for number, moment in enumerate(moments, start=1)
        )
        # The proto names each bucket by its upper end; an empty one below says where the first begins.
        limits, counts = edges.astype("<f8"), np.concatenate([[0], counts]).astype("<f8")
        histogram += _field(6, limits.tobytes()) + _field(7, counts.tobytes())
        self._add(step, {tag: _field(5, histogram)})

    def add_captions(self, step: int, captions: Sequence[Captioned]) -> None:
        """Adds each picture with its captions drawn beside it, as `captions/1`, `captions/2`, …

        Raises:
          OSError: the disk is full, read-only or failing.
        """
        images = {}
        for number, one in enumerate(captions, start=1):
            drawn = one.draw()
            image = b"".join(_field(place, size) for place, size in enumerate((drawn.height, drawn.width, 3), start=1))
            file = io.BytesIO()
            drawn.save(file, "PNG")
            images[f"captions/{number}"] = _field(4, image + _field(4, file.getvalue()))
        self._add(step, images)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, step: int, values: Mapping[str, bytes]) -> None:
        """Adds one event: encoded values by their tags."""
        summary = b"".join(_field(1, _field(1, tag.encode()) + value) for tag, value in values.items())
        self._write(_field(2, step) + _field(5, summary))

    def _write(self, event: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _pack_float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # a perplexity beyond 3e38 is shown as what it is in that format
        return struct.pack("<f", math.copysign(math.inf, value))


def _field(number: int, value: int | bytes) -> bytes:
    """Encodes a protocol buffer field: an integer as a varint, bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def _masked_crc(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
