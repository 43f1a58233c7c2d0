"""Accelerators in figures, and TPU slices by the names that users know: for rooflines, MFU and `tools/compile_check`.

Peaks and bandwidths are the makers' (per chip, dense bfloat16): the architecture pages of Google Cloud's TPU
documentation and NVIDIA's data sheets. `hbm_bytes` of a TPU is less than its page says: it is what the compiler grants
a program on one device, as its own out-of-memory errors state it (libtpu 0.0.42).
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

from frozen_jax.errors import UserError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator.

    Attributes:
        name: generation, e.g. "v5e".
        kinds: what JAX says as `device_kind`, in full or its beginning.
        flops_per_s: peak of a chip, dense bfloat16 with float32 sums.
        hbm_bytes: memory of a device that a program may use.
        hbm_bytes_per_s: bandwidth of a chip's memory.
        devices: JAX devices per chip; a device has its share of a chip's peak and bandwidth.
    """

    name: str
    kinds: tuple[str, ...]
    flops_per_s: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    devices: int = 1

    @property
    def device_flops_per_s(self) -> float:
        """Peak of one device."""
        return self.flops_per_s / self.devices

    @property
    def device_bytes_per_s(self) -> float:
        """Bandwidth of one device's memory."""
        return self.hbm_bytes_per_s / self.devices


def _tpu(name: str, kinds: tuple[str, ...], tflops: float, gib: float, gbytes: float, devices: int = 1) -> Chip:
    return Chip(
        name=name,
        kinds=kinds,
        flops_per_s=tflops * 1e12,
        hbm_bytes=int(gib * GIB),
        hbm_bytes_per_s=gbytes * 1e9,
        devices=devices,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", ("TPU v4",), 275.0, 30.75, 1228.0),  # both cores as one device, as Cloud TPU runs it
        _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197.0, 15.75, 819.0),
        _tpu("v5p", ("TPU v5p", "TPU v5"), 459.0, 95.74, 2765.0),
        _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918.0, 31.25, 1638.0),
        _tpu("tpu7x", ("TPU7x",), 2307.0, 94.75, 7380.0, devices=2),
        Chip(
            name="h100",
            kinds=("NVIDIA H100",),
            flops_per_s=989e12,
            hbm_bytes=80 * 10**9,
            hbm_bytes_per_s=3.35e12,
        ),
        Chip(
            name="h200",
            kinds=("NVIDIA H200",),
            flops_per_s=989e12,
            hbm_bytes=141 * 10**9,
            hbm_bytes_per_s=4.8e12,
        ),
    )
}
"""Chips by name. H100 and H200 are the SXM boards."""


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip behind a JAX device's `device_kind`, or None for one without figures here, such as a CPU.

    Example:
        >>> find_chip("NVIDIA H100 80GB HBM3").name
        'h100'
    """
    # The longest kind first: "TPU v5" (v5p) begins "TPU v5 lite" (v5e) too.
    known = [(kind, chip) for chip in CHIPS.values() for kind in chip.kinds]
    for kind, chip in sorted(known, key=lambda pair: -len(pair[0])):
        if device_kind.startswith(kind):
            return chip
    return None


@dataclass(frozen=True)
class Slice:
    """Some connected TPU chips that are rented as one.

    Attributes:
        name: e.g. "v5e-8".
        chip: their kind.
        topology: chips along each axis.
        hosts: machines that they hang on.
    """

    name: str
    chip: Chip
    topology: tuple[int, ...]
    hosts: int

    @property
    def devices(self) -> int:
        """JAX devices."""
        return math.prod(self.topology) * self.chip.devices

    def describe(self) -> tuple[str, dict[str, Any]]:
        """Returns name and options of the topology for `jax.experimental.topologies.get_topology_desc`."""
        options: dict[str, Any] = {}
        if self.hosts == 1:
            options["chips_per_host_bounds"] = (*self.topology, *(1,) * (3 - len(self.topology)))
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"
        return f"{self.chip.name}:{'x'.join(map(str, self.topology))}", options


_SQUARE = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""v5e and v6e: chips → topology. Eight chips are one machine, larger slices have four a machine."""

_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
"""v4, v5p and TPU7x: chips → topology, four a machine."""


def _list_slices() -> dict[str, Slice]:
    slices = {}
    # In names v5e and v6e count chips; v4, v5p and TPU7x count cores, two a chip.
    for generation, topologies, counted in (
        ("v4", _CUBE, 2),
        ("v5e", _SQUARE, 1),
        ("v5p", _CUBE, 2),
        ("v6e", _SQUARE, 1),
        ("tpu7x", _CUBE, 2),
    ):
        for chips, text in topologies.items():
            hosts = 1 if chips <= (8 if topologies is _SQUARE else 4) else chips // 4
            topology = tuple(int(side) for side in text.split("x"))
            name = f"{generation}-{chips * counted}"
            slices[name] = Slice(name, CHIPS[generation], topology, hosts)
    return slices


SLICES = _list_slices()
"""Slices by name. Google's tools also write v5litepod-8 for v5e-8."""


def find_slice(name: str) -> Slice:
    """Returns the slice of a name such as "v5e-8", "v5litepod-8", "v4-8" or "v5p-32".

    Raises:
        UserError: there is no such slice here.
    """
    plain = re.sub(r"^v5lite(pod)?-", "v5e-", name.strip().lower())
    if plain in SLICES:
        return SLICES[plain]
    generation = plain.rpartition("-")[0]
    near = [other for other in SLICES if other.rpartition("-")[0] == generation]
    near = near or difflib.get_close_matches(plain, SLICES, n=4, cutoff=0.5)
    raise UserError(
        f"--slice={name} is not a TPU slice known here; near it: {', '.join(near)}"
        if near
        else f"--slice={name} is not a TPU slice; name one such as v5e-8, v4-8, v5p-8, v6e-8 or tpu7x-8"
    )
