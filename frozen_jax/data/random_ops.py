"""RandAugment: a few operations of Pillow, drawn at random for each picture, at one strength. Off by default.

The other random changes, each with a strength of its own, are in `augment.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float], Image.Image]
"""(picture, signed strength in [-1, 1]) → changed picture of the same size."""

_MOST_DEGREES, _MOST_SHEAR, _MOST_SHIFT, _MOST_ENHANCED = 30.0, 0.3, 0.3, 0.9


def _affine(image: Image.Image, *rows: float | int) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)


def _shear_x(image: Image.Image, strength: float) -> Image.Image:
    slope = _MOST_SHEAR * strength
    return _affine(image, 1, slope, -slope * image.height / 2, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float) -> Image.Image:
    slope = _MOST_SHEAR * strength
    return _affine(image, 1, 0, 0, slope, 1, -slope * image.width / 2)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength: kind(image).enhance(1.0 + _MOST_ENHANCED * strength)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "rotate": lambda image, strength: image.rotate(_MOST_DEGREES * strength, Image.Resampling.BILINEAR),
    "solarize": lambda image, strength: ImageOps.solarize(image, round(256 * (1.0 - abs(strength)))),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "shift_x": lambda image, strength: _affine(image, 1, 0, _MOST_SHIFT * strength * image.width, 0, 1, 0),
    "shift_y": lambda image, strength: _affine(image, 1, 0, 0, 0, 1, _MOST_SHIFT * strength * image.height),
}
"""The fourteen operations of the paper, with its ranges. Colours change, so leave it off where captions name them."""


def apply_random_operations(
    pixels: UInt8[np.ndarray, "height width 3"], draw: Float64[np.ndarray, "operations 2"], *, magnitude: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Changes one picture by one operation for each row of `draw`; what moves in from outside is black.

    Args:
        pixels: prepared picture.
        draw: uniform numbers in [0, 1): which operation, and in which direction it goes.
        magnitude: strength in [0, 1], the paper's M / 30.

    Source: Cubuk et al., "RandAugment", arXiv 1909.13719 (operations drawn with equal chance, one magnitude for all).
    """
    image = Image.fromarray(pixels)
    operations = list(OPERATIONS.values())
    for which, direction in draw.tolist():
        image = operations[int(which * len(operations))](image, magnitude if direction < 0.5 else -magnitude)
    return np.asarray(image)
