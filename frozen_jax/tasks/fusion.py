"""Classes, and neighbours of the same class, of items that have a picture and a text (`config.fusion`).

Figures in percent; which class was taken for which is drawn beside the report. The ablation over kinds of fusion is
`benchmarks/fusion_table.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.items import list_all_items, list_items
from frozen_jax.data.records import Source
from frozen_jax.data.sources import open_source, open_splits
from frozen_jax.errors import UserError
from frozen_jax.fusing import Fused, fuse
from frozen_jax.metrics.retrieval import score_direction
from frozen_jax.processes import is_first
from frozen_jax.prompt import Image, show
from frozen_jax.report import draw_confusion
from frozen_jax.tasks.classify import score_classes
from frozen_jax.tasks.controls import (
    Models,
    guess_commonest,
    images_of,
    read_records,
    shuffle_without_fixed_points,
    source_line,
)
from frozen_jax.tasks.samples import Measured, Sample, collect_samples

GALLERY = 1000
"""Most items among which neighbours are looked for, the first."""


class Item(NamedTuple):
    """One item: picture by number, text, class."""

    picture: int
    text: str
    label: str


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Names the class of every item, and looks for items of the same class by the fused vectors.

    A neighbour counts if it is of the same class and of another picture. Items of a class that training did not have
    count as wrong.

    Raises:
        UserError: the model has no fusion, or the source no item.
    """
    line = source_line(config, config.evaluate.fusion.source)
    records = read_records(open_source(line, clean=config.data.clean), most=0, data=config.data)
    items = [
        Item(picture, text, label)
        for picture, record in enumerate(records)
        for text, label in list_items(record, config.fusion)
    ][: config.evaluate.examples or None]
    if not items:
        raise UserError(f"evaluate.fusion.source={line!r} has no item of the kind {config.fusion.item!r}; name another")
    pictures = images_of(records)
    classes = list_class_names(models.seeing)
    targets = np.array([classes.index(item.label) if item.label in classes else -1 for item in items])
    training, _ = open_splits(config.data, validation_examples=config.train.validation_examples)
    figures: dict[str, Any] = {
        "source": line,
        "kind": config.fusion.kind,
        "prompt": show((Image(0), items[0].text)),
        "classes": len(classes),
        "n": len(items),
        "chance": round(100 / len(classes), 2),
        **_score_baselines(training, items, config),
    }
    views = [("blind" if models.seeing.blind else "seeing", models.seeing, list(range(len(pictures))))]
    if not models.seeing.blind and len(pictures) > 1:
        views.append(("shuffled", models.seeing, shuffle_without_fixed_points(len(pictures), seed=config.seed)))
    if models.blind is not None:
        views.append(("blind", models.blind, views[0][2]))
    samples: list[Sample] = []
    for name, model, order in views:
        fused = fuse(model, [(pictures[order[item.picture]], item.text) for item in items])
        figures[name] = {**score_fused(fused, targets), **score_neighbours(fused, items)}
        if not samples:
            guesses = [classes[number] for number in fused.probabilities.argmax(axis=1)]
            hits = [guess == item.label for guess, item in zip(guesses, items, strict=True)]
            known = targets >= 0
            if is_first() and known.any():
                path = directory / f"{config.evaluate.report}_confusion.png"
                draw_confusion(path, fused.probabilities[known], targets[known], classes)
            prompts = [(Image(item.picture), item.text) for item in items]
            truths = [[item.label] for item in items]
            samples = collect_samples("fusion", prompts, guesses, truths, hits, pictures=pictures, seed=config.seed)
    return Measured({"fusion": figures}, samples)


def list_class_names(model: Model) -> tuple[str, ...]:
    """Returns the names of a fusion's classes, in the order of its probabilities.

    Raises:
        UserError: the model has no fusion.
    """
    if model.network.fusion is None:
        raise UserError("evaluate.task='fusion': this model predicts words; train one with config.fusion.kind")
    return model.network.fusion.classes


def _score_baselines(training: Source, items: Sequence[Item], config: Config) -> dict[str, float]:
    """Naming the commonest class, and the commonest class with each text, both counted on the training items."""
    pairs = list_all_items(training, config.fusion, on_bad=config.data.on_bad)
    majority, guesses = guess_commonest(pairs, [item.text for item in items])
    return {
        "majority": _percent([item.label == majority for item in items]),
        "question_only": _percent([guess == item.label for guess, item in zip(guesses, items, strict=True)]),
    }


def score_fused(fused: Fused, targets: Int[np.ndarray, " R"]) -> dict[str, float]:
    """Accuracies and calibration error; an item of no known class, -1, is wrong whatever is said of it."""
    scores = np.log(np.maximum(fused.probabilities, 1e-30))
    # Its class stands behind all others, as a column of its own.
    unknown = np.full((len(scores), 1), -np.inf)
    known = scores.shape[1]
    targets = np.where(targets < 0, known, targets)
    return score_classes(np.concatenate([scores, unknown], axis=1), targets, classes=known)


def score_neighbours(fused: Fused, items: Sequence[Item]) -> dict[str, Any]:
    """Recall of an item of the same class and another picture among the first 1 and 5 by cosine, beside its chance.

    Ties count as misses in `r_1` and `r_5`; `r_1_drawn` is what drawing the first one among equals gives on average.
    """
    chosen = items[:GALLERY]
    vectors = fused.vectors[: len(chosen)] / np.linalg.norm(fused.vectors[: len(chosen)], axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    pictures, labels = np.array([item.picture for item in chosen]), np.array([item.label for item in chosen])
    other = pictures[:, None] != pictures[None, :]
    relevant = (labels[:, None] == labels[None, :]) & other
    asked = relevant.any(axis=1)
    if not asked.any():
        return {}
    # What belongs to the same picture stands behind everything.
    similarity = np.where(other, similarity, -2.0)[asked]
    scores = score_direction(similarity, relevant[asked], ks=(1, 5))
    first = similarity >= similarity.max(axis=1, keepdims=True) - 1e-6  # products of equal vectors differ in rounding
    drawn = np.mean((first & relevant[asked]).sum(axis=1) / first.sum(axis=1))
    chance = np.mean(relevant[asked].sum(axis=1) / other[asked].sum(axis=1))  # of drawing among other pictures' items
    return {
        "neighbours": {
            "gallery": len(chosen),
            "queries": int(asked.sum()),
            "r_1": round(100 * scores.recall[1], 2),
            "r_5": round(100 * scores.recall[5], 2),
            "r_1_drawn": round(100 * float(drawn), 2),
            "chance_r_1": round(100 * float(chance), 2),
        }
    }


def _percent(hits: Sequence[bool]) -> float:
    return round(100 * float(np.mean(hits)), 2)
