"""What every task measures beside the seeing model: the same prompts with other pictures. Used by the tasks.

Prompts name pictures by their row in a table of prefixes, so another table shows other pictures to the same prompts.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from frozen_jax.api import Model, Picture
from frozen_jax.config import Config
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.records import FileSlice, Record, RecordError, Source, read_usable
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError


class Models(NamedTuple):
    """The trained model, and the one trained on black pictures, where there is one."""

    seeing: Model
    blind: Model | None = None


class View(NamedTuple):
    """One column of a report: a model and what it is shown.

    Attributes:
        name: "seeing", "shuffled" (each picture in another's place) or "blind" (trained and asked on black pictures).
        model: that answers.
        table: prefixes by picture.
    """

    name: str
    model: Model
    table: Float[np.ndarray, "R P D"]


def list_views(models: Models, pictures: Sequence[Picture], *, seed: int) -> list[View]:
    """Encodes pictures for the model and its controls; a model that is itself blind has none.

    Args:
        models: to compare.
        pictures: in the order of the rows that prompts name.
        seed: of the shuffle.
    """
    table = models.seeing.embed_image(pictures)
    if models.seeing.blind:
        return [View("blind", models.seeing, table)]
    views = [View("seeing", models.seeing, table)]
    if len(pictures) > 1:
        order = shuffle_without_fixed_points(len(pictures), seed=seed)
        views.append(View("shuffled", models.seeing, table[order]))
    if models.blind is not None:
        views.append(View("blind", models.blind, models.blind.embed_image(pictures)))
    return views


def shuffle_without_fixed_points(size: int, *, seed: int) -> list[int]:
    """Returns a random permutation of range(size), size > 1, that leaves nothing in its place: one single cycle."""
    order = list(range(size))
    random.Random(seed).shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[index] for index in range(size)]


def guess_commonest(training: Iterable[tuple[str, str]], texts: Sequence[str]) -> tuple[str, list[str]]:
    """Answers without a picture: the commonest answer, and for each text the commonest that this text has.

    Args:
        training: (text, answer) pairs that are counted, at least one; of equal counts the first wins.
        texts: that are answered; one that was never counted gets the commonest answer of all.
    """
    overall: Counter[str] = Counter()
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in training:
        overall[answer] += 1
        by_text[text][answer] += 1
    return overall.most_common(1)[0][0], [by_text.get(text, overall).most_common(1)[0][0] for text in texts]


def summarise_seeds(figures: Sequence[float]) -> dict[str, Any]:
    """Mean of an accuracy in percent over seeds, its standard deviation (n - 1) and the single figures."""
    summary: dict[str, Any] = {"accuracy": round(float(np.mean(figures)), 2)}
    if len(figures) > 1:
        summary |= {"spread": round(float(np.std(figures, ddof=1)), 2), "by_seed": [round(x, 2) for x in figures]}
    return summary


def source_line(config: Config, given: str) -> str:
    """Returns the source that a task's section names, or what the run is validated on.

    Raises:
        UserError: neither is named.
    """
    line = given or config.data.validation
    if not line:
        raise UserError(f"evaluate.{config.evaluate.task}.source is ''; name what to evaluate on")
    return line


def read_records(source: Source, *, most: int, data: DataSettings) -> list[Record]:
    """Returns the first pictures with all that is said of each (`join_pictures`), all of them with `most` 0.

    Lines about one of the first `most` pictures count as far as the first line about the next one after those. What
    cannot be used is left out where training replaces such items (`data.on_bad`).

    Raises:
        UserError: a record without a picture.
    """
    records: list[Record] = []
    pictures: set[Hashable] = set()
    for record in read_usable(source.record, range(len(source)), on_bad=data.on_bad):
        if record.image is None:
            raise UserError(f"evaluate: record {record.id} has no picture; name a source of pictures")
        pictures.add(picture_of(record))
        if most and len(pictures) > most:
            break
        records.append(record)
    return leave_out_damaged(join_pictures(records), data)


def leave_out_damaged(records: Sequence[Record], data: DataSettings, *, most: int | None = None) -> list[Record]:
    """Returns the first `most` records whose pictures open, where `data.on_bad` is "replace"; otherwise the first at
    all, and asking stops at one that does not."""
    opening = (record for record in records if data.on_bad == "raise" or _opens(record, data.image))
    return list(itertools.islice(opening, most))


def _opens(record: Record, options: ImageOptions) -> bool:
    try:
        return record.image is None or load_image(record.image, options=options) is not None
    except RecordError:
        return False


def join_pictures(records: Iterable[Record]) -> list[Record]:
    """Joins the records of one picture into its first: a table may have a line for each caption or question.

    As pictures of their own they would be told apart by nothing: each would have the others' captions for wrong ones.
    """
    joined: dict[Hashable, Record] = {}
    for record in records:
        picture = picture_of(record)
        first = joined.setdefault(picture, record)
        if first is not record:
            joined[picture] = first._replace(
                captions=tuple(dict.fromkeys((*first.captions, *record.captions))),
                questions=(*first.questions, *record.questions),
                tags=tuple(dict.fromkeys((*first.tags, *record.tags))),
            )
    return list(joined.values())


def picture_of(record: Record) -> Hashable:
    """Returns what tells a record's picture from others in any source: its file, however it is named, or its content;
    a record without a picture has its id."""
    image = record.image
    if isinstance(image, Path):
        return os.path.realpath(image)
    if isinstance(image, FileSlice):
        return os.path.realpath(image.path), image.offset, image.length
    if isinstance(image, np.ndarray):
        return image.shape, hashlib.sha256(image.tobytes()).hexdigest()
    return record.id if image is None else hashlib.sha256(image).hexdigest()


def leave_out_pictures(records: Sequence[Record], tested: Iterable[Record], *, line: str) -> list[Record]:
    """Returns the records of pictures that are not among those that are tested.

    What is learnt from for an evaluation must not hold its answers, even where both sources are the same.

    Args:
        records: to learn from.
        tested: those whose pictures are left out.
        line: where `records` came from, for the message.

    Raises:
        UserError: none is left of some.
    """
    shown = {picture_of(record) for record in tested}
    left = [record for record in records if picture_of(record) not in shown]
    if records and not left:
        raise UserError(
            f"evaluate: {line!r} has no picture to learn from but those that are tested; name another source for "
            "one of the two"
        )
    return left


def images_of(records: Sequence[Record]) -> list[Picture]:
    """Returns the pictures of records that have one."""
    return [record.image for record in records if record.image is not None]
