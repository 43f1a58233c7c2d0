"""Opens sources by the one line that a config gives: `<kind>:<argument>`. Next in the data flow: `pipeline.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frozen_jax.data.fake import FakeSource
from frozen_jax.data.records import Source
from frozen_jax.data.scene_sources import DescribedScenes, open_easy_vqa
from frozen_jax.errors import UserError

EXAMPLES = {
    "easy_vqa": "easy_vqa:train, easy_vqa:validation or easy_vqa:test",
    "scene_text": "scene_text:<seed>, a million scenes in words, without pictures",
    "fake": "fake:<number of pictures>",
}


def _open_number(kind: str, argument: str) -> int:
    if not argument.isdecimal():
        raise UserError(f"data: {kind}:{argument} needs a whole number, for example {EXAMPLES[kind]}")
    return int(argument)


OPENERS: Mapping[str, Callable[[str], Source]] = {
    "easy_vqa": open_easy_vqa,
    "scene_text": lambda argument: DescribedScenes(1_000_000, seed=_open_number("scene_text", argument)),
    "fake": lambda argument: FakeSource(_open_number("fake", argument)),
}


def open_source(spec: str) -> Source:
    """Opens a source.

    Args:
        spec: `<kind>:<argument>`, kinds as in `OPENERS`.

    Raises:
        UserError: an unknown kind or a bad argument, with the examples.
    """
    kind, _, argument = spec.partition(":")
    if kind not in OPENERS:
        raise UserError(f"data: source {spec!r} is not known; use one of: {'; '.join(EXAMPLES.values())}")
    return OPENERS[kind](argument)
