"""One picture, from any allowed file to uint8[size, size, 3]: the same code in training, evaluation and the tools.

Steps, in this order: allow-list of formats, pixel limit from the header, decode (a JPEG at the smallest of the scales
1, 1/2, 1/4, 1/8 that is not below the target), EXIF orientation, RGB over a background, antialiased bilinear resize,
zero padding to a square or a centre crop. Scaling before padding gives the paper's geometry (zero-padded to square,
then resized) at a fraction of the work.
Random augmentation stands in `augment.py`; next in the data flow: `loading.py`.
"""

from __future__ import annotations

import io
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from frozen_jax.data.records import FileSlice, ImageData, RecordError
from frozen_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""File formats that are opened, by content and whatever the file's name says."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")

MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded by default; 192 MB as RGB."""

Image.init()  # registers every format; without it Pillow knows a few until the first failure
_PILLOW_LIMIT = 89_478_485  # above it Pillow itself warns or refuses
_EXIF_ORIENTATION = 0x0112


class ImageError(RecordError):
    """A picture that cannot be used.

    Attributes:
        reason: "missing", "empty", "not a picture", "damaged", "too many pixels" or "unsupported pixels".
    """


@dataclass(frozen=True)
class ImageOptions:
    """How a picture becomes an array.

    Attributes:
        size: height and width of the result, in pixels.
        fit: "pad": the whole picture, zero-padded to square (the paper's); "crop": the centre square, nothing padded.
        background: RGB under transparent pixels.
        max_pixels: width x height above which a picture is refused before decoding, at most 89,478,485.
    """

    size: int
    fit: str = "pad"
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.fit not in ("pad", "crop"):
            raise UserError(f"images: fit {self.fit!r} is not known; use 'pad' (whole picture) or 'crop' (centre)")
        if not 0 < self.max_pixels <= _PILLOW_LIMIT:
            raise UserError(f"images: max_pixels {self.max_pixels} must lie in 1..{_PILLOW_LIMIT}, Pillow's safe range")
        largest = math.isqrt(self.max_pixels)
        if not 1 <= self.size <= largest:
            raise UserError(f"images: size {self.size} must be at least 1 and at most {largest} pixels (max_pixels)")


def is_feature(source: object) -> TypeGuard[Float32[np.ndarray, " E"]]:
    """Whether what stands in a picture's place is an encoder's feature, float32[E] (`class_features.py`)."""
    return isinstance(source, np.ndarray) and source.ndim == 1 and source.dtype == np.float32


def load_image(
    source: ImageData | os.PathLike[str] | Image.Image,
    *,
    options: ImageOptions,
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> UInt8[np.ndarray, "height width 3"]:
    """Opens, decodes and resizes one picture. A 1x1 picture is accepted and becomes one flat colour.

    Args:
        source: a file, part of a file, an encoded file's bytes, decoded pixels uint8[height, width(, 1 | 3 | 4)], or a
            Pillow image.
        options: size, fit, background, pixel limit.
        window: part of the upright picture to use, (left, top, right, bottom) as fractions; for random crops.

    Returns:
        uint8[size, size, 3].

    Raises:
        RecordError: the file is missing, empty, of no allowed format, damaged or over the pixel limit.
    """
    if isinstance(source, os.PathLike):
        source = Path(source)
    name = _describe(source)
    if isinstance(source, FileSlice):
        source = source.read()
    with _open(source, name) as image:
        if image.width * image.height > options.max_pixels:
            raise ImageError(
                f"image {name}: {image.width} x {image.height} pixels are over the limit of {options.max_pixels}, "
                "which guards against decompression bombs; shrink the picture or raise data.max_pixels",
                reason="too many pixels",
            )
        try:
            return _prepare(image, options, window)
        except ImageError:
            raise
        except Exception as error:  # a decoder that reads hostile bytes may raise anything
            raise ImageError(
                f"image {name}: cannot be decoded ({error}); the file is truncated or damaged: replace or remove it",
                reason="damaged",
            ) from error


def _describe(source: ImageData | Image.Image) -> str:
    if isinstance(source, Path):
        return str(source)
    if isinstance(source, FileSlice):
        return f"{source.path} at byte {source.offset}"
    if isinstance(source, bytes):
        return f"({len(source)} bytes in memory)"
    shape = source.size if isinstance(source, Image.Image) else source.shape
    return f"(pixels {'x'.join(map(str, shape))} in memory)"


def _open(source: Path | bytes | np.ndarray | Image.Image, name: str) -> Image.Image:
    """Reads the header only (of files and bytes)."""
    if isinstance(source, Image.Image):
        try:
            return source.copy()
        except Exception as error:  # it decodes here, whatever it holds, and may have been closed
            message = f"image {name}: cannot be decoded ({error}); open the file anew, or replace it"
            raise ImageError(message, reason="damaged") from error
    if is_feature(source):
        raise UserError(
            "data: class_features holds features and no pictures; train on them with vision.freeze and "
            "vision.feature_cache, and name another source where pictures are shown"
        )
    if isinstance(source, np.ndarray):
        channels = source.shape[2] if source.ndim == 3 else 1
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or 0 in source.shape or channels not in (1, 3, 4):
            raise ImageError(
                f"image {name}: {source.dtype} array; decoded pixels must be uint8[height, width(, 1 | 3 | 4)]",
                reason="unsupported pixels",
            )
        return Image.fromarray(source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source)
    head = b""
    try:
        if isinstance(source, Path):
            mode = source.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening one might wait for ever
                raise ImageError(f"image {name}: is a pipe or a device; name a file", reason="not a picture")
            with source.open("rb") as file:
                head = file.read(16)
        else:
            head = source[:16]
        if head:
            return Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS)
    except ImageError:
        raise
    except OSError as error:
        if not head:
            raise ImageError(
                f"image {name}: cannot be read ({error.strerror}); check the path, or the root= of its source",
                reason="missing",
            ) from error
        if head.startswith(_SIGNATURES):
            message = f"image {name}: its header is cut or damaged; replace or remove it"
            raise ImageError(message, reason="damaged") from error
        raise ImageError(
            f"image {name}: not a picture in an allowed format ({', '.join(FORMATS)}), it begins with {head[:8]!r}; "
            "convert or remove it",
            reason="not a picture",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"image {name}: {error}: refused as a decompression bomb; shrink the picture", reason="too many pixels"
        ) from error
    except Exception as error:  # a parser that reads hostile bytes may raise anything
        raise ImageError(f"image {name}: damaged header ({error}); replace or remove it", reason="damaged") from error
    raise ImageError(f"image {name}: the file is empty (0 bytes); replace or remove it", reason="empty")


def _prepare(image: Image.Image, options: ImageOptions, window: tuple[float, float, float, float]) -> np.ndarray:
    turned = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    width, height = (image.height, image.width) if turned else image.size
    if options.fit == "crop":
        window = centre_square(window, width=width, height=height)
    left, top, right, bottom = window
    target = fitted_size((right - left) * width, (bottom - top) * height, size=options.size)
    whole = (max(1, int(target[0] / (right - left))), max(1, int(target[1] / (bottom - top))))
    image.draft("RGB", whole[::-1] if turned else whole)  # a JPEG only: decode at a fraction of the scale
    image.load()
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    image = _to_rgb(image, options.background)
    # in pixels of the decoded picture; a JPEG's scaled sides are rounded up, so the last may stand for less
    scale = next(s for s in (1, 2, 4, 8) if image.size == (-(-width // s), -(-height // s)))
    box = (left * width / scale, top * height / scale, right * width / scale, bottom * height / scale)
    if (image.size, box) != (target, (0, 0, *target)):
        image = image.resize(target, Image.Resampling.BILINEAR, box=box)
    return place(np.asarray(image), size=options.size)


def centre_square(
    window: tuple[float, float, float, float], *, width: int, height: int
) -> tuple[float, float, float, float]:
    """Returns the largest centred square inside a window (fractions of a picture of width x height pixels)."""
    left, top, right, bottom = window
    side = min((right - left) * width, (bottom - top) * height) / 2
    across, down = (left + right) / 2, (top + bottom) / 2
    return across - side / width, down - side / height, across + side / width, down + side / height


def fitted_size(width: float, height: float, *, size: int) -> tuple[int, int]:
    """Returns (width, height) with the same proportions, the longer one `size` and the shorter at least 1."""
    side = max(width, height)
    return max(1, round(width * size / side)), max(1, round(height * size / side))


def place(pixels: UInt8[np.ndarray, "h w 3"], *, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """Centres pixels in a black square that they fit into."""
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Converts any pixel mode to RGB; 16 bits keep their upper 8, transparency shows the background."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image), 0, 65535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError(
            "image: floating-point pixels have no stated range; save the picture with 8 or 16 bits",
            reason="unsupported pixels",
        )
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
