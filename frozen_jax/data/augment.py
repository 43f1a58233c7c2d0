"""Random changes of prepared pictures, each a pure function of (seed, epoch, sample). Preparation is in `images.py`.

All options are off by default. Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from frozen_jax.data.order import uniforms
from frozen_jax.data.random_ops import apply_random_operations
from frozen_jax.errors import UserError

_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise|anticlockwise)\b", re.IGNORECASE)
_LEVELS = np.arange(256, dtype=np.float32)


@dataclass(frozen=True)
class AugmentOptions:
    """Strengths of the random changes.

    Attributes:
        shift: largest move up, down, left and right, as a fraction of the side; what moves in is black.
        flip: mirror left and right half of the time, except where the text names a side.
        brightness: all channels times a factor in 1 ± brightness.
        contrast: distance from mid-grey times a factor in 1 ± contrast.
        colour: each channel times its own factor in 1 ± colour.
        operations: RandAugment: so many random operations of `random_ops.OPERATIONS` per picture.
        magnitude: their strength.
        zoom: smallest side of the random part of the picture that is used, as a fraction in (0, 1]; 1 = all of it.
    """

    shift: float = 0.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    operations: int = 0
    magnitude: float = 0.3
    zoom: float = 1.0

    def __post_init__(self) -> None:
        for name in ("shift", "brightness", "contrast", "colour", "magnitude"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"augment: {name} {getattr(self, name)} must lie in 0..1; it is a fraction")
        if self.operations < 0:
            raise UserError(f"augment: operations {self.operations} must not be negative; 0 turns them off")
        if not 0.0 < self.zoom <= 1.0:
            raise UserError(f"augment: zoom {self.zoom} must lie in (0, 1]: the smallest part of a side that is kept")


def names_a_side(text: str) -> bool:
    """Returns True if mirroring the picture could make the text wrong ("the dog on the left")."""
    return bool(_SIDES.search(text))


def random_windows(
    options: AugmentOptions, *, seed: int, epochs: Int64[np.ndarray, " B"], samples: Int64[np.ndarray, " B"]
) -> Float64[np.ndarray, "B 4"]:
    """Returns the random part of each picture to use: (left, top, right, bottom) as fractions."""
    draw = uniforms(seed, epochs, samples, stream="zoom", count=3)
    side = options.zoom + (1.0 - options.zoom) * draw[:, 0]
    left, top = (1.0 - side) * draw[:, 1], (1.0 - side) * draw[:, 2]
    return np.stack([left, top, left + side, top + side], axis=1)


def augment(
    images: UInt8[np.ndarray, "B height width 3"],
    options: AugmentOptions,
    *,
    seed: int,
    epochs: Int64[np.ndarray, " B"],
    samples: Int64[np.ndarray, " B"],
    may_flip: Bool[np.ndarray, " B"],
) -> UInt8[np.ndarray, "B height width 3"]:
    """Returns changed copies of a batch of pictures; zoom is done earlier, when a picture is resized.

    Args:
        images: prepared pictures.
        options: strengths.
        seed: of the run.
        epochs: the epoch in which each sample is drawn.
        samples: the samples' numbers in their source.
        may_flip: False where the text names a side.
    """
    rows, height, width = images.shape[:3]
    draw = uniforms(seed, epochs, samples, stream="augment", count=8)
    down = np.rint((2.0 * draw[:, 0] - 1.0) * options.shift * height).astype(int).tolist()
    right = np.rint((2.0 * draw[:, 1] - 1.0) * options.shift * width).astype(int).tolist()
    flips = (options.flip & may_flip & (draw[:, 2] < 0.5)).tolist()
    tables = _colour_tables(draw[:, 3:], options) if options.brightness or options.contrast or options.colour else None
    changed = np.zeros_like(images)
    for row in range(rows):
        dy, dx = down[row], right[row]
        source = images[row, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
        if flips[row]:
            source = source[:, ::-1]
            dx = -dx
        target = changed[row, max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
        if tables is None:
            target[...] = source
        elif not options.colour:  # one table for all channels: the quickest way through Python is bytes.translate
            translated = source.tobytes().translate(tables[row, 0].tobytes())
            target[...] = np.frombuffer(translated, np.uint8).reshape(source.shape)
        else:
            for channel in range(3):
                target[..., channel] = tables[row, channel][source[..., channel]]
    if options.operations:
        draw = uniforms(seed, epochs, samples, stream="operations", count=2 * options.operations)
        for row, numbers in enumerate(draw.reshape(rows, options.operations, 2)):
            changed[row] = apply_random_operations(changed[row], numbers, magnitude=options.magnitude)
    return changed


def _colour_tables(draw: Float64[np.ndarray, "B 5"], options: AugmentOptions) -> UInt8[np.ndarray, "B 3 256"]:
    """Returns the new level of each old level, per picture and channel: a table costs a tenth of the arithmetic."""
    signed = (2.0 * draw - 1.0).astype(np.float32)
    gain = (1.0 + options.brightness * signed[:, 0:1]) * (1.0 + options.colour * signed[:, 2:5])
    slope = 1.0 + options.contrast * signed[:, 1:2]
    levels = (_LEVELS[None, None, :] * gain[:, :, None] - 127.5) * slope[:, :, None] + 127.5
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
