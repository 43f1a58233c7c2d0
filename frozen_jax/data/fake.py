"""A tiny synthetic source: coloured patches with captions, hermetic and deterministic, for tests and dry runs.

Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import numpy as np

from frozen_jax.data.order import sample_rng
from frozen_jax.data.records import Question, Record

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
PLACES = ("top", "bottom", "left", "right")


class FakeSource:
    """`size` pictures of a coloured patch at one side of a grey ground; caption "a red patch at the top"."""

    def __init__(self, size: int = 64, *, side: int = 16, seed: int = 0):
        """Makes nothing yet; pictures are drawn on demand.

        Args:
            size: number of records.
            side: height and width of a picture, in pixels.
            seed: another seed gives other pictures.
        """
        self._size, self._side, self._seed = size, side, seed

    def __len__(self) -> int:
        return self._size

    def ids(self) -> list[str]:
        """Returns "fake/0", "fake/1", …"""
        return [f"fake/{i}" for i in range(self._size)]

    def record(self, index: int) -> Record:
        """Returns a picture uint8[side, side, 3], its caption, one question and two tags."""
        rng = sample_rng(self._seed, 0, index, stream="fake")
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        place = PLACES[rng.integers(len(PLACES))]
        side, half = self._side, self._side // 2
        pixels = np.full((side, side, 3), rng.integers(96, 160), np.uint8)
        rows = slice(0, half) if place == "top" else slice(half, side) if place == "bottom" else slice(None)
        columns = slice(0, half) if place == "left" else slice(half, side) if place == "right" else slice(None)
        pixels[rows, columns] = COLOURS[colour]
        pixels = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        return Record(
            id=f"fake/{index}",
            image=pixels,
            captions=(f"a {colour} patch at the {place}",),
            questions=(Question("what color is the patch?", (colour,)),),
            tags=(colour, place),
        )
