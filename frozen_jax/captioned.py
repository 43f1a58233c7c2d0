"""What a trained model says of some validation pictures, for TensorBoard and its like. Next: `writers.py`."""

from __future__ import annotations

import contextlib
import textwrap
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import UInt8

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.images import load_image
from frozen_jax.data.records import RecordError, Source
from frozen_jax.prompt import Image, fill

SHOWN_REFERENCES = 2
_PICTURE_PIXELS = 192
_TEXT_PIXELS = 260
_FONT_PIXELS = 14
_LINE_PIXELS = 18


class Captioned(NamedTuple):
    """A picture with what is said of it.

    Attributes:
        pixels: as the model sees it.
        references: captions that it has.
        caption: that the model gives it.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    references: tuple[str, ...]
    caption: str

    def lines(self) -> list[str]:
        """What stands beside the picture."""
        return [*(f"reference: {text}" for text in self.references[:SHOWN_REFERENCES]), f"model: {self.caption}"]

    def draw(self) -> PIL.Image.Image:
        """Returns the picture, enlarged or reduced to one height, with the lines beside it: cards are wide."""
        picture = PIL.Image.fromarray(self.pixels)
        picture = picture.resize((max(1, round(_PICTURE_PIXELS * picture.width / picture.height)), _PICTURE_PIXELS))
        font = PIL.ImageFont.load_default(_FONT_PIXELS)
        lines = [part for line in self.lines() for part in textwrap.wrap(line, 34)]
        size = (picture.width + _TEXT_PIXELS, max(picture.height, _LINE_PIXELS * len(lines) + 6))
        sheet = PIL.Image.new("RGB", size, "white")
        sheet.paste(picture)
        pen = PIL.ImageDraw.Draw(sheet)
        for number, line in enumerate(lines):
            pen.text((picture.width + 6, 3 + _LINE_PIXELS * number), line, fill="black", font=font)
        return sheet


def caption_pictures(model: Model, source: Source, config: Config) -> list[Captioned]:
    """Captions the first pictures of a source that have a caption, as many as `telemetry.captions` says.

    At least a whole batch of pictures is captioned, whatever is shown of it, so that the program is the one that most
    tasks of `evaluate.task` compile anyway. Several processes make the same call.
    """
    found: list[tuple[UInt8[np.ndarray, "height width 3"], tuple[str, ...]]] = []
    count = max(model.batch_size, config.telemetry.captions)
    for index in range(min(len(source), 4 * count)):
        with contextlib.suppress(RecordError):  # training has listed it among the bad ones, or stopped at it
            record = source.record(index)
            if record.image is not None and record.captions and len(found) < count:
                found.append((load_image(record.image, options=model.images), tuple(record.captions)))
    if not found:
        return []
    settings = config.evaluate.caption
    table = model.embed_image([pixels for pixels, _ in found])
    prompts = [fill(settings.prompt, Image(row)) for row in range(len(found))]
    tokens = config.evaluate.max_new_tokens
    texts = model.generate(prompts, max_new_tokens=tokens, stop=settings.stop, prefixes=table)
    pairs = list(zip(found, texts, strict=True))[: config.telemetry.captions]
    return [Captioned(pixels, references, text.strip()) for (pixels, references), text in pairs]
