"""The section `generator` of the config: a network that draws pictures of texts. What it means: `models/generator.py`.

How pictures are drawn once it is trained (steps, guidance) is in `evaluate_settings.py`: that changes no training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class GeneratorSettings:
    """A picture generator that reads the language model's hidden states; with it, the pictures' loss is what trains.

    Attributes:
        name: `dit`, a transformer over patches that learns a rectified flow; "" trains no generator.
        queries: learned vectors behind the text whose last hidden states are the condition.
        patch_size: side of a patch in pixels; it divides `data.image.size`.
        width: of the transformer; a multiple of `heads` and of 4.
        layers: of the transformer.
        heads: of its attention.
        condition_drop: share of the training rows that are shown without their text, for classifier-free guidance.
    """

    name: Literal["", "dit"] = ""
    queries: int = 4
    patch_size: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    condition_drop: float = 0.1


def check_generator(
    settings: GeneratorSettings, image_size: int, require: Callable[[bool, str, Any, str], None]
) -> None:
    """Checks the section; `require` is that of `config._check`."""
    for name, value in (
        ("queries", settings.queries),
        ("patch_size", settings.patch_size),
        ("layers", settings.layers),
        ("heads", settings.heads),
    ):
        require(value >= 1, f"generator.{name}", value, "it must be at least 1")
    rule = "without a text for some rows guidance has nothing to compare with; give at least 0 and less than 1"
    require(0 <= settings.condition_drop < 1, "generator.condition_drop", settings.condition_drop, rule)
    if settings.name:
        rule = f"patches must fill the picture of data.image.size={image_size}; give a divisor of that"
        require(image_size % settings.patch_size == 0, "generator.patch_size", settings.patch_size, rule)
        rule = f"it must be a positive multiple of 4 and of generator.heads={settings.heads}"
        fits = settings.width > 0 and settings.width % 4 == 0 and settings.width % settings.heads == 0
        require(fits, "generator.width", settings.width, rule)
