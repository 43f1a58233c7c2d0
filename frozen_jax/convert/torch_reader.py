"""Weights in a file that `torch.save` wrote, zip or legacy: names, shapes and numbers, without PyTorch.

Such files are pickles, and a pickle is a program. It is not run here: `pickletools` lists its operations, and the few
that a dict of tensors needs are followed with what they make kept as plain data. Any other operation, and any name but
those of tensors and their storages, is refused. What the file says of its own sizes is held to its length, and nothing
is hashed or printed that a few bytes can make exponentially large: a tuple that holds itself twice, again and again.

Source: torch/serialization.py of PyTorch 2.13 for the two layouts; pickletools for the operations.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import IO, Any, NamedTuple, cast

import numpy as np

from frozen_jax.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin")

_WRAPPERS = ("state_dict", "model")
_DISTRIBUTED = "module."
_MAGIC = 0x1950A86A20F9469CFC6C  # the first value of a legacy file
_BFLOAT16 = "BFloat16Storage"
_DTYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    _BFLOAT16: "u2",  # numpy has no bfloat16: widened below
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _fill(target: dict[Any, Any], names: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    """Adds entries to a dict, whose names must be texts, numbers or None, and returns it."""
    if not all(type(name) in (str, int, float, bool, NoneType) for name in names):
        raise ValueError("it has a dict with names that are no text")
    target.update(zip(names, values, strict=True))
    return target


_NAMES: Mapping[str, Any] = {
    # Python 2 wrote the entries as arguments, later ones by operations of their own.
    "collections OrderedDict": lambda pairs=(): _fill({}, [name for name, _ in pairs], [value for _, value in pairs]),
    "torch._utils _rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _Tensor(
        storage, offset, shape, strides
    ),
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch {kind}": kind for kind in _DTYPES},
}
"""What a file may ask for, and what makes it here."""

_VALUES = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"))
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict, contiguous; bfloat16 as float32.

    Raises:
        UserError: a damaged file, or one that holds anything but tensors.
    """
    try:
        content, storages = _read(path)
        for name in _WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(name), dict):
                content = content[name]
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path}: holds {type(content).__name__}, must hold a state dict: names and tensors")
        strangers = [name for name, value in content.items() if not isinstance(value, _Tensor)]
        if strangers:
            raise UserError(f"{path}: {strangers[0]!r} is no tensor; save the state dict alone")
        names: dict[str, Any] = {}
        for name in content:
            plain = str(name).removeprefix(_DISTRIBUTED)
            if plain in names:
                raise UserError(
                    f"{path}: holds both {names[plain]!r} and {name!r}, the same name but for what training on several "
                    "devices puts before it; save one of them"
                )
            names[plain] = name
        return {plain: _take(content[name], storages) for plain, name in names.items()}
    except (
        OSError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        reason = _explain(error)
    except (struct.error, zipfile.BadZipFile) as error:
        reason = _explain(error)
    raise UserError(
        f"{path}: cannot be read as plain tensors ({reason}); it is damaged or holds other objects than weights: "
        "get the state dict alone"
    )


def _explain(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _read(path: Path) -> tuple[Any, Mapping[_Storage, np.ndarray]]:
    """Returns what the file's program makes, and the numbers of the storages that it names."""
    named: dict[str, _Storage] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type for member in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are longer than the file")
            (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = program.removesuffix("data.pkl")
            order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
            content = _follow(io.BytesIO(archive.read(program)), named)
            sign = ">" if order == b"big" else "<"
            return content, {
                storage: np.frombuffer(archive.read(f"{root}data/{key}"), sign + _DTYPES[storage.kind])
                for key, storage in named.items()
            }
    # Of a map no more can be read than it has, whatever length the file states, and no memory is taken for it.
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if _follow(file, {}) != _MAGIC:
            raise ValueError("it was not written by torch.save")
        _follow(file, {})  # the layout's version, always the same
        sign = "<" if _follow(file, {})["little_endian"] else ">"
        content = _follow(file, named)
        storages = {}
        for key in _follow(file, {}):
            if not isinstance(key, str):
                raise ValueError("it names its numbers by something else than texts")
            dtype = np.dtype(sign + _DTYPES[named[key].kind])
            (count,) = struct.unpack(f"{sign}q", file.read(8))
            numbers = file.read(max(0, count) * dtype.itemsize)
            if len(numbers) != count * dtype.itemsize:
                raise EOFError("its numbers are cut off")
            storages[named[key]] = np.frombuffer(numbers, dtype)
        return content, storages


def _follow(file: io.BytesIO | mmap.mmap, named: dict[str, _Storage]) -> Any:
    """Returns the value of the program that begins here, as plain data; lists the storages that it names by key."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def take(start: int) -> list[Any]:
        taken = stack[start:]
        del stack[start:]
        return taken

    for operation, argument, _ in pickletools.genops(cast(IO[bytes], file)):
        name = operation.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(take(marks.pop())))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(take(len(stack) - int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            values = take(marks.pop() if name == "APPENDS" else len(stack) - 1)
            stack[-1].extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = take(marks.pop() if name == "SETITEMS" else len(stack) - 2)
            _fill(stack[-1], values[::2], values[1::2])
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise ValueError(f"it asks for {argument.replace(' ', '.')}")
            stack.append(_NAMES[argument])
        elif name == "BINPERSID":
            _, kind, key, _, size, *_ = stack.pop()
            if (type(kind), type(key), type(size)) != (str, str, int) or kind not in _DTYPES:
                raise ValueError("it has numbers of an unknown kind")
            stack.append(named.setdefault(key, _Storage(kind, key, size)))
        elif name == "REDUCE":
            function, arguments = take(len(stack) - 2)
            stack.append(function(*arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of an ordered dict, such as the versions of modules
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"it has the operation {name}")
    raise EOFError("it is cut off")


def _take(tensor: _Tensor, storages: Mapping[_Storage, np.ndarray]) -> np.ndarray:
    """Copies a tensor out of its storage, which its offset, shape and strides must not leave."""
    shape, strides = tuple(tensor.shape), tuple(tensor.strides)
    if not isinstance(tensor.storage, _Storage) or any(
        type(size) is not int for size in (tensor.offset, *shape, *strides)
    ):
        raise ValueError("it has a tensor whose sizes are no whole numbers")
    flat = storages[tensor.storage]
    count = math.prod(shape)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((tensor.offset, *shape, *strides)) < 0 or (count and last >= len(flat)) or count > len(flat):
        raise ValueError(f"a tensor of shape {shape} lies outside its {len(flat)} numbers")
    steps = [stride * flat.itemsize for stride in strides]
    start = flat[tensor.offset :] if count else flat[:0]
    numbers = np.array(np.lib.stride_tricks.as_strided(start, shape, steps), order="C")
    if tensor.storage.kind == _BFLOAT16:
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
