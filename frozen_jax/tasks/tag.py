"""Tags: which words of a vocabulary belong to a picture, any number of them; figures in percent.

Scored, each tag by its log-probability per token after the picture less that after the mean picture (`naming.py`), with
a threshold for each tag chosen on other pictures; and generated, as those tags that occur in what the model writes. The
metrics are in `metrics/classification.py`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from frozen_jax.config import Config
from frozen_jax.data.records import Record, Source, read_usable
from frozen_jax.data.sources import open_source
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError
from frozen_jax.heads import fit_head
from frozen_jax.metrics.classification import f1_scores, mean_average_precision
from frozen_jax.naming import score_texts
from frozen_jax.processes import is_first
from frozen_jax.prompt import Image, fill, show
from frozen_jax.report import draw_answers
from frozen_jax.tasks.controls import (
    Models,
    images_of,
    join_pictures,
    leave_out_damaged,
    leave_out_pictures,
    list_views,
    read_records,
    shuffle_without_fixed_points,
    source_line,
)
from frozen_jax.tasks.samples import Measured, Sample, collect_samples


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Tags a source's pictures by the model and its controls, by a linear probe, and by how often each tag occurs.

    The last is the same answer to every picture (`score_frequency`). Of the other pictures every second one decides the
    thresholds; from the rest the probe learns, and the frequencies.

    Raises:
        UserError: no tags, or none that occurs in both sources.
    """
    settings = config.evaluate.tag
    line, known = source_line(config, settings.source), settings.calibration or config.data.train
    read = read_records(open_source(line), most=config.evaluate.examples, data=config.data)
    records = [record for record in read if record.tags]
    spread = _read_spread(open_source(known), most=settings.calibrated_on, data=config.data)
    others = [record for record in spread if record.tags]
    others = leave_out_pictures(others, records, line=known)
    learnt, held = others[::2], others[1::2]
    if not held:
        raise UserError(
            f"evaluate.tag: {known!r} has {len(others)} tagged pictures that are not tested; half of them teach and "
            "the others decide the thresholds, so that two are needed at least: name another evaluate.tag.calibration"
        )
    counted = Counter(tag for record in learnt for tag in set(record.tags))
    there = {tag for record in records for tag in record.tags}
    vocabulary = sorted(tag for tag, count in counted.items() if count >= settings.least and tag in there)
    if not vocabulary:
        raise UserError(
            f"evaluate.tag: no tag occurs {settings.least} times in {known!r} and in {line!r}; name other sources, or "
            "lower evaluate.tag.least"
        )
    actual, calibration = _mark(records, vocabulary), _mark(held, vocabulary)
    taught = _mark(learnt, vocabulary)
    figures: dict[str, Any] = {
        "source": line,
        "calibrated_on": known,
        "prompt": show(fill(settings.prompt, Image(0))),
        "list_prompt": show(fill(settings.list_prompt, Image(0))),
        "stop": [*settings.stop, f"{config.evaluate.max_new_tokens} tokens"],
        "tags": len(vocabulary),
        "n": len(records),
        "calibration_n": len(held),
        "probe_n": len(learnt),
        "tags_of_a_picture": round(float(actual.sum(axis=1).mean()), 2),
        "chance": round(100 * float(actual.mean(axis=0).mean()), 2),
    }
    figures["frequency"] = score_frequency(taught.mean(axis=0), actual, calibration)
    samples: list[Sample] = []
    pictures = images_of([*records, *held])
    names = [settings.tag_format.format(tag=tag) for tag in vocabulary]
    asked = [fill(settings.list_prompt, Image(row)) for row in range(len(records))]
    generated: dict[str, Any] = {"chance": figures["chance"]}
    scores: np.ndarray
    for name, model, table in list_views(models, pictures, seed=config.seed):
        if name == "shuffled":  # another picture's scores are those that it got itself
            scores = scores[shuffle_without_fixed_points(len(pictures), seed=config.seed)]
        else:
            scores = score_texts(model, table, names, prompts=(settings.prompt,)).less_prior
        figures[name] = score_tags(scores[: len(records)], actual, scores[len(records) :], calibration)
        texts = model.generate(asked, max_new_tokens=config.evaluate.max_new_tokens, stop=settings.stop, prefixes=table)
        made = np.array([[find_tag(tag, text) for tag in vocabulary] for text in texts])
        f1 = f1_scores(made, actual)
        generated[name] = {"micro_f1": round(100 * f1.micro, 2), "macro_f1": round(100 * f1.macro, 2)}
        if not samples:
            hits = [bool((row == truth).all()) for row, truth in zip(made, actual, strict=True)]
            truths = [[", ".join(record.tags)] for record in records]
            samples = collect_samples("tag", asked, texts, truths, hits, pictures=pictures, seed=config.seed)
            if is_first():
                chosen = [", ".join(tag for tag, has in zip(vocabulary, row, strict=True) if has) for row in made]
                named = [", ".join(record.tags) for record in records]
                path = directory / f"{config.evaluate.report}_tags.png"
                draw_answers(path, pictures, named, chosen, hits, size=config.data.image.size)
    probe = fit_head(models.seeing.encode_image(images_of(learnt)), taught.astype(np.float32), exclusive=False)
    logits = probe.logits(models.seeing.encode_image(pictures))
    figures["linear_probe"] = score_tags(logits[: len(records)], actual, logits[len(records) :], calibration)
    return Measured({"tag": figures, "tag_generated": generated}, samples)


def score_tags(
    scores: Float[np.ndarray, "R C"],
    actual: Bool[np.ndarray, "R C"],
    calibration_scores: Float[np.ndarray, "R2 C"],
    calibration: Bool[np.ndarray, "R2 C"],
) -> dict[str, float]:
    """Returns mean average precision, and F1 at the thresholds that are best on the calibration pictures."""
    thresholds = choose_thresholds(calibration_scores, calibration)
    f1 = f1_scores(scores >= thresholds[None, :], actual)
    return {
        "map": round(100 * mean_average_precision(scores, actual), 2),
        "micro_f1": round(100 * f1.micro, 2),
        "macro_f1": round(100 * f1.macro, 2),
    }


def score_frequency(
    often: Float[np.ndarray, " C"], actual: Bool[np.ndarray, "R C"], calibration: Bool[np.ndarray, "R2 C"]
) -> dict[str, float]:
    """Returns the figures of `score_tags` for an answer that does not look: the same tags for every picture.

    Macro-F1 is that of all tags, which no other such answer exceeds; micro-F1 that of the commonest tags by `often`, as
    many of them as give the largest on the calibration pictures.

    Args:
        often: share of other pictures that have each tag.
        actual: which tags each picture has.
        calibration: likewise, of the pictures that decide.
    """
    order = np.argsort(-often, kind="stable")
    right = np.cumsum(calibration.sum(axis=0)[order])
    called = np.arange(1, len(order) + 1) * len(calibration)
    most = int(np.argmax(2 * right / (called + calibration.sum()))) + 1
    everything, commonest = np.ones_like(actual), np.zeros_like(actual)
    commonest[:, order[:most]] = True
    return {
        "map": round(100 * mean_average_precision(everything.astype(np.float32), actual), 2),
        "micro_f1": round(100 * f1_scores(commonest, actual).micro, 2),
        "macro_f1": round(100 * f1_scores(everything, actual).macro, 2),
    }


def choose_thresholds(scores: Float[np.ndarray, "R C"], actual: Bool[np.ndarray, "R C"]) -> Float[np.ndarray, " C"]:
    """Returns, for each tag, the score of a picture from which on calling all pictures tagged gives the largest F1.

    A tag that no picture here has is never called: any threshold would be a guess, and infinity is none too low.
    """
    thresholds = np.empty(scores.shape[1])
    for tag in range(scores.shape[1]):
        order = np.argsort(-scores[:, tag], kind="stable")
        ranked = scores[order, tag]
        right = np.cumsum(actual[order, tag])
        f1 = 2 * right / (np.arange(1, len(order) + 1) + actual[:, tag].sum())
        f1[:-1][ranked[1:] == ranked[:-1]] = -1  # pictures of equal score are called together
        thresholds[tag] = ranked[f1.argmax()] if right[-1] else np.inf
    return thresholds


def find_tag(tag: str, text: str) -> bool:
    """Whether a tag stands in a text, as whole words."""
    return _compile_tag(tag).search(text) is not None


@functools.cache
def _compile_tag(tag: str) -> re.Pattern[str]:
    """Kept for every tag: a vocabulary of many hundreds is beyond what `re` remembers, for each picture anew."""
    return re.compile(rf"(?<!\w){re.escape(tag)}(?!\w)", flags=re.IGNORECASE)


def _read_spread(source: Source, *, most: int, data: DataSettings) -> list[Record]:
    """Reads records from end to end of a source, which may be sorted by what it shows."""
    usable = read_usable(source.record, range(len(source)), on_bad=data.on_bad)
    records = join_pictures(record for record in usable if record.image is not None)
    places = np.linspace(0, len(records), num=min(most, len(records)), endpoint=False).astype(int)
    return leave_out_damaged([records[place] for place in places], data)


def _mark(records: Sequence[Record], vocabulary: Sequence[str]) -> Bool[np.ndarray, "R C"]:
    return np.array([[tag in record.tags for tag in vocabulary] for record in records])
