"""What every vision encoder shares at its two ends: pixels in, features out.

The encoders themselves are in `nf_resnet.py`, `resnet.py` and `vit.py`, the table of their names in `vision.py`.
Decoding and resizing of image files belongs to `frozen_jax/data/`. Next in the data flow: an encoder, then `prefix.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN = (0.5, 0.5, 0.5)
HALF_STD = (0.5, 0.5, 0.5)
LITE_MEAN = (127 / 255, 127 / 255, 127 / 255)
LITE_STD = (128 / 255, 128 / 255, 128 / 255)


PixelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of each channel, on the scale 0..1, by which an encoder's pixels are normalised."""


class VisionOutput(NamedTuple):
    """What an encoder says about an image.

    Attributes:
        pooled: one vector per image, always float32; what the prefix is made of.
        tokens: one vector per place of the image (and per class token), in the compute dtype.
    """

    pooled: Float32[Array, "B E"]
    tokens: Float[Array, "B M E"]


def normalise(
    images: UInt8[Array, "B height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: jax.typing.DTypeLike,
) -> Float[Array, "B height width 3"]:
    """Turns bytes into the numbers an encoder was trained on: `(images / 255 - mean) / std`, per channel.

    It runs on the device, so that a quarter of the bytes cross from the host.

    Args:
        images: RGB, 0..255.
        mean: of each channel, on the scale 0..1.
        std: of each channel, on the scale 0..1.
        dtype: of the result; the arithmetic is float32.
    """
    scaled = images.astype(jnp.float32) / 255.0
    centred = scaled - jnp.asarray(mean, jnp.float32)[None, None, None, :]
    return (centred / jnp.asarray(std, jnp.float32)[None, None, None, :]).astype(dtype)
