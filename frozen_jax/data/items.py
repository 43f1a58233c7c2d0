"""Records as items of a picture, a text and a class, for a fusion of the two (`config.fusion`). Next: `pipeline.py`."""

from __future__ import annotations

from collections import Counter

import numpy as np

from frozen_jax.data.pipeline import TextFunction
from frozen_jax.data.records import Record, Source, class_of
from frozen_jax.data.text import Text
from frozen_jax.errors import UserError
from frozen_jax.fusion_settings import FusionSettings


def list_items(record: Record, settings: FusionSettings) -> list[tuple[str, str]]:
    """Returns (text, class) of every item that a record gives: its questions with the commonest of their answers, its
    captions with its tag, or its tag without a text."""
    if settings.item == "question":
        asked = [question for question in record.questions if question.answers]
        return [(question.text, Counter(question.answers).most_common(1)[0][0]) for question in asked]
    texts = record.captions if settings.item == "caption" else ("",)
    return [(text, class_of(record, tag=settings.tag)) for text in texts]


def word_items(settings: FusionSettings) -> TextFunction:
    """Builds the choice of an item of a record, another one in each epoch."""

    def word(record: Record, rng: np.random.Generator) -> Text | None:
        items = list_items(record, settings)
        if not items:
            return None
        text, label = items[int(rng.integers(len(items)))]
        return Text("", text, label=label)

    return word


def list_classes(source: Source, settings: FusionSettings) -> tuple[str, ...]:
    """Returns the classes of all records, the commonest first, then by the alphabet; no picture is opened.

    Raises:
        UserError: fewer than two.
    """
    counts = Counter(label for index in range(len(source)) for _, label in list_items(source.record(index), settings))
    if len(counts) < 2:
        raise UserError(
            f"config.fusion.item is {settings.item!r}, and data.train has the classes {sorted(counts)}; name a source "
            "of pictures with text and two classes or more, or take another item"
        )
    return tuple(sorted(counts, key=lambda label: (-counts[label], label)))
