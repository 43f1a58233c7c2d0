"""What a compiled program does, read from its text: operations of its products, and its collectives.

`cost_analysis` of a compiled program counts the body of a loop once, however often it turns; here bodies count as often
as they run. Everything is per device. Used by `aot.py`.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|condition)=%([\w.\-]+)|branch_computations=\{([^}]*)\}")
_BYTES = {"pred": 1, "bf16": 2}


class Instruction(NamedTuple):
    """One line of a program: `%name = shape operation(arguments), attributes`."""

    name: str
    shape: str
    operation: str
    rest: str

    def arguments(self) -> list[str]:
        """Returns the names of the arguments."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    def dims(self) -> tuple[int, ...]:
        """Returns the sizes of an array result."""
        match = _SHAPE.search(self.shape)
        return tuple(int(size) for size in match[2].split(",") if size) if match else ()


class Program:
    """A compiled program, by computation."""

    def __init__(self, text: str):
        """Reads `compiled.as_text()`."""
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = name = ""
        self._roots: dict[str, Instruction] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            head = _COMPUTATION.match(line)
            if head:
                name = head[2]
                current = self.computations.setdefault(name, [])
                self.entry = name if head[1] else self.entry
            elif match := _INSTRUCTION.match(line):
                root, *parts = match.groups()
                current.append(Instruction(*parts))
                if root:
                    self._roots[name] = current[-1]
        self._named = {one.name: one for body in self.computations.values() for one in body}
        self._runs = self._count_runs()

    def flops(self) -> float:
        """Returns the operations of all matrix products and convolutions."""
        return sum(
            self._runs[name] * self._product_flops(instruction)
            for name, body in self.computations.items()
            for instruction in body
            if self._runs.get(name) and instruction.operation in ("dot", "convolution")
        )

    def collectives(self) -> dict[str, dict[str, int]]:
        """Returns {kind: {"count", "runs", "bytes"}}: different ones, how often they run in all, and their results.

        The two halves of an asynchronous one, and its parts under one channel, are one.
        """
        found: dict[str, dict[str, int]] = {}
        seen = set()
        for name, body in self.computations.items():
            for instruction in body:
                kind = instruction.operation.removesuffix("-start")
                if kind not in COLLECTIVES or not self._runs.get(name):
                    continue
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                entry = found.setdefault(kind, {"count": 0, "runs": 0, "bytes": 0})
                key = (kind, channel[1] if channel else instruction.name)
                entry["count"] += key not in seen
                seen.add(key)
                entry["runs"] += self._runs[name]
                entry["bytes"] += self._runs[name] * _result_bytes(instruction)
        return found

    def _count_runs(self) -> dict[str, int]:
        """Returns how often each computation runs; a loop whose turns cannot be read counts as one turn."""
        runs = {self.entry: 1}
        # A computation stands before those that call it.
        for name in reversed(self.computations):
            for instruction in self.computations[name] if name in runs else ():
                turns = self._turns(instruction) if instruction.operation == "while" else 1
                for called, branches in _CALLED.findall(instruction.rest):
                    for target in [called] if called else re.findall(r"%([\w.\-]+)", branches):
                        runs[target] = runs.get(target, 0) + runs[name] * turns
        return runs

    def _turns(self, loop: Instruction) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        calls = dict(re.findall(r"\b(condition|body)=%([\w.\-]+)", loop.rest))
        # condition: counter < limit; body: the counter's place in the result is counter + stride.
        compared = [self._named.get(name) for name in self._roots[calls["condition"]].arguments()]
        counter, limit = compared[:2] if len(compared) >= 2 else (None, None)
        if limit is None or (end := _constant(limit)) is None:
            return 1
        stride = None
        place = re.search(r"index=(\d+)", counter.rest) if counter else None
        results = self._roots[calls["body"]].arguments()
        if place and int(place[1]) < len(results):
            following = self._named.get(results[int(place[1])])
            if following is not None and following.operation == "add":
                values = [_constant(self._named[name]) for name in following.arguments() if name in self._named]
                stride = max((value for value in values if value), default=None)
        return -(-end // (stride or 1))

    def _product_flops(self, instruction: Instruction) -> float:
        left, right = (self._named[name].dims() for name in instruction.arguments()[:2])
        out = instruction.dims()
        if instruction.operation == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
            axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
            return 2.0 * math.prod(out) * math.prod(left[axis] for axis in axes)
        return _convolution_flops(instruction.rest, left, right, out)


def _convolution_flops(rest: str, image: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]) -> float:
    """Counts taps on the image alone: not those on padding, nor those between the places of a dilated image.

    A product of many small matrices is a convolution too, over an image dilated such that each meets its partner.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels, rest
    image_labels, kernel_labels, out_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", rest)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    sides = options["size"].split("x") if "size" in options else []

    def read(name: str, default: str) -> list[str]:
        return options[name].split("x") if name in options else [default] * len(sides)

    strides, pads = read("stride", "1"), read("pad", "0_0")
    spread, kernel_spread = read("lhs_dilate", "1"), read("rhs_dilate", "1")
    taps = 1
    for axis in range(len(sides)):
        size = image[image_labels.index(str(axis))]
        places = (
            np.arange(out[out_labels.index(str(axis))])[:, None] * int(strides[axis])
            + np.arange(kernel[kernel_labels.index(str(axis))])[None, :] * int(kernel_spread[axis])
            - int(pads[axis].split("_")[0])
        )
        step = int(spread[axis])
        taps *= int(((places >= 0) & (places <= (size - 1) * step) & (places % step == 0)).sum())
    batch, channels = out[out_labels.index("b")], kernel[kernel_labels.index("i")] * kernel[kernel_labels.index("o")]
    return 2.0 * batch * channels * taps


def _constant(instruction: Instruction) -> int | None:
    """Returns the value of a whole number that stands in the program."""
    match = re.match(r"(\d+)\)", instruction.rest) if instruction.operation == "constant" else None
    return int(match[1]) if match else None


def _result_bytes(instruction: Instruction) -> int:
    """Bytes of the result; of the start of an asynchronous one, whose result holds operands too, of its last array."""
    shapes = _SHAPE.findall(instruction.shape)
    if instruction.operation.endswith("-start"):
        arrays = [one for one in shapes if one[1]]
        shapes = arrays[-1:] if arrays else shapes[-1:]
    return sum(_width(kind) * math.prod(int(size) for size in dims.split(",") if size) for kind, dims in shapes)


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return _BYTES.get(kind) or (max(int(bits[0]) // 8, 1) if bits else 0)
