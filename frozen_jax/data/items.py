"""Records as items of a picture, a text and a class, for a fusion of the two (`config.fusion`). Next: `pipeline.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from frozen_jax.data.pipeline import TextFunction
from frozen_jax.data.records import Record, Source, class_of, read_usable
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


def list_all_items(source: Source, settings: FusionSettings, *, on_bad: str) -> Iterator[tuple[str, str]]:
    """Yields (text, class) of all items of a source; no picture is opened.

    Args:
        source: of records.
        settings: the section `fusion`.
        on_bad: the config's `data.on_bad`: with "replace" records that training replaces are left out.

    Raises:
        RecordError: one cannot be used, and `on_bad` is "raise".
    """
    read = lambda index: list_items(source.record(index), settings)  # noqa: E731
    for items in read_usable(read, range(len(source)), on_bad=on_bad):
        yield from items


def list_classes(source: Source, settings: FusionSettings, *, on_bad: str) -> tuple[str, ...]:
    """Returns the classes of all records, the commonest first, then by the alphabet; no picture is opened.

    Raises:
        UserError: fewer than two, or as `list_all_items`.
    """
    counts = Counter(label for _, label in list_all_items(source, settings, on_bad=on_bad))
    if len(counts) < 2:
        raise UserError(
            f"config.fusion.item is {settings.item!r}, and data.train has the classes {sorted(counts)}; name a source "
            "of pictures with text and two classes or more, or take another item"
        )
    return tuple(sorted(counts, key=lambda label: (-counts[label], label)))


def check_classes(training: Source, validation: Source, settings: FusionSettings) -> None:
    """Checks that every class can be learnt and some can be validated; no picture is opened, nor more records read than
    it takes to meet the classes.

    Raises:
        UserError: a class that no training record has, or validation records of none of the classes.
    """
    missing = dict.fromkeys(settings.classes)
    for label in _list_labels(training, settings):
        missing.pop(label, None)
        if not missing:
            break
    if missing:
        raise UserError(
            f"config.fusion.classes has {_name(missing)}, and no record of data.train is of that class; there: "
            f"{_name(sorted(set(_list_labels(training, settings))))}; name these, or () for all of them"
        )
    if not any(label in settings.classes for label in _list_labels(validation, settings)):
        raise UserError(
            f"config.fusion.classes is {settings.classes}, and none of the {len(validation)} validation records is of "
            f"such a class; there: {_name(sorted(set(_list_labels(validation, settings))))}; name another "
            "data.validation or raise train.validation_examples"
        )


def _list_labels(source: Source, settings: FusionSettings) -> Iterator[str]:
    # What cannot be used the pipeline raises or replaces, as `data.on_bad` says.
    return (label for _, label in list_all_items(source, settings, on_bad="replace"))


def _name(labels: Iterable[str]) -> str:
    names = [repr(label) for label in labels]
    return ", ".join(names[:20]) + (" …" if len(names) > 20 else "") if names else "none"
