"""The GGUF container: header, metadata, tensor directory, and the block formats F32, F16, Q4_0, Q4_1 and Q8_0.

Lives here: bytes to named values and arrays, whatever the model. Not here: what they mean (`gguf_reader.py`, the next
file in the data flow).

    "GGUF" version u32, tensors u64, pairs u64 | key, type u32, value … | name, dims, type u32, offset u64 … | data

Everything in a file is untrusted: each count is held against the bytes that are left before anything is allocated, the
header has a size limit, and no tensor is read before it is asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frozen_jax.errors import UserError

MAX_HEADER_BYTES = 1 << 26
"""Of metadata and directory together; a vocabulary of 256k entries with its merges takes about 2^24."""

MAX_ENTRIES = 1 << 16
"""Metadata pairs, and tensors: far more than any model has."""

BLOCK = 32
"""Weights that share a scale in the quantised formats; they lie along the last axis."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True)
class BlockFormat:
    """How `weights` consecutive weights are stored, and how an array of such blocks becomes f32 [blocks, weights]."""

    name: str
    weights: int
    layout: np.dtype
    decode: Callable[[np.ndarray], np.ndarray]


def _widen(halves: np.ndarray) -> np.ndarray:
    return halves.astype(np.float32)[:, None]


def _unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Byte j of a block holds weight j in its low half and weight j + 16 in its high half."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


_SCALE, _MINIMUM, _NIBBLES = ("scale", "<f2"), ("minimum", "<f2"), ("quants", "u1", (BLOCK // 2,))
FORMATS = {
    0: BlockFormat("F32", 1, np.dtype([("value", "<f4")]), lambda b: _widen(b["value"])),
    1: BlockFormat("F16", 1, np.dtype([("value", "<f2")]), lambda b: _widen(b["value"])),
    2: BlockFormat(
        "Q4_0",
        BLOCK,
        np.dtype([_SCALE, _NIBBLES]),
        lambda b: (_unpack_nibbles(b["quants"]) - 8) * _widen(b["scale"]),
    ),
    3: BlockFormat(
        "Q4_1",
        BLOCK,
        np.dtype([_SCALE, _MINIMUM, _NIBBLES]),
        lambda b: _unpack_nibbles(b["quants"]) * _widen(b["scale"]) + _widen(b["minimum"]),
    ),
    8: BlockFormat(
        "Q8_0",
        BLOCK,
        np.dtype([_SCALE, ("quants", "i1", (BLOCK,))]),
        lambda b: b["quants"].astype(np.float32) * _widen(b["scale"]),
    ),
}
"""Supported formats by their number in the file."""

# Named in the message that refuses them; others appear there by number.
_UNSUPPORTED = {
    6: "Q5_0",
    7: "Q5_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    30: "BF16",
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: shape in numpy's order, slowest axis first; offset from the start of the file."""

    format: BlockFormat
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    def read(self, data: mmap.mmap) -> np.ndarray:
        """Reads and dequantises the tensor to f32."""
        count = self.size_bytes // self.format.layout.itemsize
        blocks = np.frombuffer(data, self.format.layout, count=count, offset=self.offset)
        return self.format.decode(blocks).reshape(self.shape)


class Metadata:
    """The key-value pairs, with typed access that names the key in its errors and remembers what was asked for."""

    def __init__(self, path: Path, pairs: dict[str, Any]) -> None:
        self.path = path
        self.pairs = pairs
        self._asked: set[str] = set()

    def get(self, key: str, kind: type, *, default: Any = None) -> Any:
        """Returns the value of `key`.

        Raises:
            UserError: it is missing and there is no default, or it is not of type `kind`.
        """
        self._asked.add(key)
        value = self.pairs.get(key, default)
        if value is None:
            raise UserError(f"{self.path}: has no {key}, which a language model needs; fetch the file again")
        if type(value) is not kind:
            raise UserError(
                f"{self.path}: {key} = {_abbreviate(value)} is not supported, only a value of type {kind.__name__}"
            )
        return value

    def size(self, key: str, *, default: int | None = None) -> int:
        """Returns a positive whole number.

        Raises:
            UserError: as `get`, or the number is less than 1.
        """
        value = int(self.get(key, int, default=default))
        if value < 1:
            raise UserError(f"{self.path}: {key} = {value} must be at least 1; the file is damaged, fetch it again")
        return value

    def token_id(self, key: str) -> int | None:
        """Returns an id, or None where the file has none."""
        return self.get(key, int) if key in self.pairs else None

    def require(self, key: str, allowed: Any, *, reason: str) -> None:
        """Refuses an optional key with any other value than the one that needs no support.

        Raises:
            UserError: the value differs.
        """
        self._asked.add(key)
        if self.pairs.get(key, allowed) != allowed:
            raise UserError(f"{self.path}: {key} = {_abbreviate(self.pairs[key])} is not supported: {reason}")

    def finish(self, prefix: str) -> None:
        """Refuses keys under `prefix` that nothing asked for, since they might change the model.

        Raises:
            UserError: there is one; it is named.
        """
        unknown = sorted(key for key in self.pairs if key.startswith(prefix) and key not in self._asked)
        if unknown:
            value = _abbreviate(self.pairs[unknown[0]])
            raise UserError(f"{self.path}: {unknown[0][:80]} = {value} is not supported by this project")


def read_container(path: Path) -> tuple[Metadata, dict[str, StoredTensor], mmap.mmap]:
    """Maps a file into memory and reads its metadata and its directory, but no tensor.

    Raises:
        UserError: the file cannot be read, is truncated or contradicts itself, or stores a tensor in another format.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise UserError(f"{path}: cannot be read ({error}); check the path, or fetch the file again") from None
    reader = _Reader(path, data)
    if reader.take(4) != b"GGUF":
        raise reader.refuse("does not begin with GGUF")
    version = reader.scalar("<I")
    if version not in (2, 3):
        raise UserError(
            f"{path}: GGUF version {version} is not supported, only little-endian 2 and 3; convert the file"
        )
    tensors = reader.count("tensors", least_bytes=32, limit=MAX_ENTRIES)
    pairs: dict[str, Any] = {}
    for _ in range(reader.count("metadata pairs", least_bytes=13, limit=MAX_ENTRIES)):
        key = reader.text()
        if key in pairs:
            raise reader.refuse(f"has two values of {key[:80]!r}")
        pairs[key] = reader.value(reader.scalar("<I"))
    metadata = Metadata(path, pairs)

    directory: dict[str, tuple[BlockFormat, tuple[int, ...], int]] = {}
    for _ in range(tensors):
        name = reader.text()
        if name in directory:
            raise reader.refuse(f"has two tensors {name[:80]!r}")
        directory[name] = _read_directory_line(reader, name)

    alignment = metadata.size("general.alignment", default=32)
    start = -(-reader.position // alignment) * alignment
    stored = {}
    for name, (block_format, shape, offset) in directory.items():
        blocks = shape[-1] // block_format.weights
        for length in shape[:-1]:
            blocks *= length
        size = blocks * block_format.layout.itemsize
        if start + offset + size > len(data):
            raise reader.refuse(f"ends at byte {len(data)}, before the end of tensor {name[:80]!r}")
        stored[name] = StoredTensor(block_format, shape, start + offset, size)
    return metadata, stored, data


def _read_directory_line(reader: _Reader, name: str) -> tuple[BlockFormat, tuple[int, ...], int]:
    rank = reader.scalar("<I")
    if not 1 <= rank <= 4:
        raise reader.refuse(f"gives tensor {name[:80]!r} {rank} dimensions, not 1 to 4")
    shape = tuple(reader.scalar("<Q") for _ in range(rank))[::-1]  # the file names the fastest axis first
    number, offset = reader.scalar("<I"), reader.scalar("<Q")
    if number not in FORMATS:
        known = ", ".join(known.name for known in FORMATS.values())
        raise UserError(
            f"{reader.path}: tensor {name[:80]!r} is stored as {_UNSUPPORTED.get(number, f'type {number}')}, of which "
            f"nothing is known here; take a file that has only {known}"
        )
    block_format = FORMATS[number]
    if min(shape) < 1 or shape[-1] % block_format.weights:
        raise reader.refuse(f"gives tensor {name[:80]!r} the shape {shape}, impossible in {block_format.name}")
    return block_format, shape, offset


class _Reader:
    """A cursor over the header that never leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.position = 0
        self._data = data
        self._end = min(len(data), MAX_HEADER_BYTES)

    def refuse(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}; the file is damaged or not a GGUF file, fetch it again")

    def take(self, size: int) -> bytes:
        if size > self._end - self.position:
            raise self.refuse(f"is cut short, or has more than {MAX_HEADER_BYTES} bytes before its tensors")
        self.position += size
        return self._data[self.position - size : self.position]

    def scalar(self, kind: str) -> Any:
        value = struct.unpack(kind, self.take(struct.calcsize(kind)))[0]
        # The shortest decimal of an f32, so that 1e-5 does not become 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == "<f" else value

    def count(self, what: str, *, least_bytes: int, limit: int = MAX_HEADER_BYTES) -> int:
        """Reads a number of things, each of which takes at least `least_bytes` of what is left."""
        value = int(self.scalar("<Q"))
        if value > limit or value * least_bytes > self._end - self.position:
            raise self.refuse(f"claims to hold {value} {what}, for which it has no room")
        return value

    def text(self) -> str:
        try:
            return self.take(self.count("bytes of text", least_bytes=1)).decode()
        except UnicodeDecodeError:
            raise self.refuse(f"has text that is not UTF-8 before byte {self.position}") from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.refuse(f"has a metadata value of unknown type {kind}")
        element = self.scalar("<I")
        if element == _STRING:
            return [self.text() for _ in range(self.count("strings", least_bytes=8))]
        if element not in _SCALARS:
            raise self.refuse(f"has a metadata array with elements of type {element}")
        layout = np.dtype(_SCALARS[element])
        number = self.count("array elements", least_bytes=layout.itemsize)
        return np.frombuffer(self.take(number * layout.itemsize), layout).tolist()


def _abbreviate(value: Any) -> str:
    return repr(value[:5] if isinstance(value, list) else value)[:80]
