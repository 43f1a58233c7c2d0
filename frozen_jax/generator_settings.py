"""The section `generator` of the config: a network that draws pictures of texts. What it means: `models/generator.py`.

How pictures are drawn once it is trained (steps, guidance) is in `evaluate_settings.py`: that changes no training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

GROUP = 16
"""Channels of a grid that are normalised together."""


@dataclass(frozen=True)
class GeneratorSettings:
    """A picture generator that reads the language model's hidden states; with it, the pictures' loss is what trains.

    Attributes:
        name: `unet`, convolutions on grids of patches that learn a rectified flow; "" trains no generator.
        queries: learned vectors behind the text whose last hidden states are the condition.
        patch_size: side in pixels of the finest grid's patches; each next grid's are twice as long, and the coarsest
            one's divide `data.image.size`.
        channels: of each grid, the finest first; at least two grids, and multiples of 16.
        width: of what steers the blocks: time and condition together.
        condition_drop: share of the training rows that are shown without their text, for classifier-free guidance.
    """

    name: Literal["", "unet"] = ""
    queries: int = 4
    patch_size: int = 2
    channels: tuple[int, ...] = (32, 64, 128, 192)
    width: int = 128
    condition_drop: float = 0.1


def check_generator(
    settings: GeneratorSettings, image_size: int, require: Callable[[bool, str, Any, str], None]
) -> None:
    """Checks the section; `require` is that of `config._check`."""
    for name in ("queries", "patch_size", "width"):
        value = getattr(settings, name)
        require(value >= 1, f"generator.{name}", value, "it must be at least 1")
    rule = "without a text for some rows guidance has nothing to compare with; give at least 0 and less than 1"
    require(0 <= settings.condition_drop < 1, "generator.condition_drop", settings.condition_drop, rule)
    if settings.name:
        channels, coarsest = settings.channels, settings.patch_size * 2 ** (len(settings.channels) - 1)
        fits = len(channels) >= 2 and all(count > 0 and count % GROUP == 0 for count in channels)
        require(fits, "generator.channels", channels, f"give at least two grids, each a positive multiple of {GROUP}")
        rule = f"patches of the coarsest of {len(channels)} grids, {coarsest} pixels long, must fill data.image.size"
        rule = f"{rule}={image_size}; give another patch_size or fewer generator.channels"
        require(image_size % coarsest == 0, "generator.patch_size", settings.patch_size, rule)
