"""Pictures to try the page with: some of the run's validation source, or shapes that are drawn here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw

from frozen_jax.config import Config
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.scenes import SHAPES
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError

COUNT = 6
SIDE = 256
"""Height and width of an example, in pixels."""
_COLOURS = {
    "red": "#d62f2f",
    "blue": "#2f56d6",
    "green": "#2c9a46",
    "yellow": "#e0c22c",
    "teal": "#1f9c9c",
    "brown": "#8a5a33",
}
_GROUND = "#f1ece4"


class Example(NamedTuple):
    """A picture file and a caption of it."""

    path: Path
    caption: str


def write_examples(folder: Path, config: Config | None) -> list[Example]:
    """Writes `COUNT` example pictures.

    Args:
        folder: an existing one.
        config: of the run; pictures come from its validation source, if that is there and has captions. None, and
            otherwise: shapes are drawn.
    """
    return (_take(folder, config.data.validation) if config else []) or _draw(folder)


def _take(folder: Path, line: str) -> list[Example]:
    """Takes the first pictures with different captions, looking at no more than 200 records."""
    found: dict[str, Path] = {}
    if not line:
        return []
    try:
        source = open_source(line)
        for index in range(min(len(source), 200)):
            record = source.record(index)
            if record.image is None or not record.captions or record.captions[0] in found or len(found) == COUNT:
                continue
            pixels = load_image(record.image, options=ImageOptions(SIDE))
            found[record.captions[0]] = _save(PIL.Image.fromarray(pixels), folder, len(found))
    except UserError:  # the source stayed on another machine, or is damaged: the page is not about it
        return []
    return [Example(path, caption) for caption, path in found.items()]


def _draw(folder: Path) -> list[Example]:
    """One coloured shape in each picture, in the manner of easy-VQA."""
    made = []
    for number, colour in enumerate(_COLOURS):
        shape = SHAPES[number % len(SHAPES)]
        image = PIL.Image.new("RGB", (SIDE, SIDE), _GROUND)
        draw = PIL.ImageDraw.Draw(image)
        left, top = 40 + 12 * number, 90 - 10 * number
        right, bottom = left + 110, top + (110 if shape == "circle" else 80)
        if shape == "circle":
            draw.ellipse((left, top, right, bottom), fill=_COLOURS[colour])
        elif shape == "rectangle":
            draw.rectangle((left, top, right, bottom), fill=_COLOURS[colour])
        else:
            draw.polygon(((left, bottom), (right, bottom), ((left + right) / 2, top)), fill=_COLOURS[colour])
        made.append(Example(_save(image, folder, number), f"a {colour} {shape}"))
    return made


def _save(image: PIL.Image.Image, folder: Path, number: int) -> Path:
    path = folder / f"example_{number + 1}.png"
    image.save(path)
    return path
