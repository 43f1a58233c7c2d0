"""Closed-set classification: the class whose name is the most probable after the prompt, per token of the name.

Scores are those of `naming.py`. Beside them, where asked for: the same after answered pictures (in context), and heads
on the encoder's pooled features. Metrics are in `metrics/classification.py`; figures in percent.

`less_prior` is the same less what each name is worth after the mean picture: a name that the model likes to say,
whatever it sees, is then no likelier than others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.order import sample_indices, sample_rng
from frozen_jax.data.records import Record, class_of, read_usable
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.heads import fit_head
from frozen_jax.metrics.classification import expected_calibration_error, top_k_accuracy
from frozen_jax.naming import lay_question, score_texts
from frozen_jax.processes import is_first
from frozen_jax.prompt import Image, fill, show
from frozen_jax.report import draw_confusion
from frozen_jax.tasks.controls import (
    Models,
    images_of,
    leave_out_damaged,
    leave_out_pictures,
    list_views,
    read_records,
    source_line,
)
from frozen_jax.tasks.samples import Measured, Sample, collect_samples

LISTED = 20
"""Class names that a report shows."""

HEADS = {"linear_probe": 0, "head": 128}
"""Heads on the encoder's features, with the width of their hidden layer."""


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Classifies a source's pictures among all classes that occur in it, by the model and its controls.

    Raises:
        UserError: a picture without a class, fewer than two classes, or too few pictures to learn from.
    """
    settings = config.evaluate.classify
    line = source_line(config, settings.source)
    records = read_records(open_source(line), most=0, data=config.data)
    labels = [class_of(record, tag=settings.tag) for record in records]
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UserError(f"evaluate.classify.source={line!r} has the class {classes} alone; name a source with more")
    records = records[: config.evaluate.examples or None]
    targets = np.array([classes.index(label) for label in labels[: len(records)]])
    names = [settings.name_format.format(name=name) for name in classes]
    most = Counter(targets.tolist()).most_common(1)[0][1]
    baselines = {"chance": round(100 / len(classes), 2), "majority": round(100 * most / len(records), 2)}
    figures: dict[str, Any] = {
        "source": line,
        "prompt": show(fill(settings.prompts[0], Image(0))),
        "prompts": len(settings.prompts),
        "names": settings.name_format,
        "classes": len(classes),
        "class_names": classes[:LISTED],
        "n": len(records),
        **baselines,
    }
    sections = {"classify": figures}
    samples: list[Sample] = []
    pool = _read_pool(config, classes, records) if max(settings.shots) or settings.heads else []
    shown = pool[: settings.shot_pool] if max(settings.shots) else []
    pictures = images_of([*records, *shown])
    views = list_views(models, pictures, seed=config.seed)
    for count in settings.shots:
        section = sections.setdefault("classify" if not count else f"classify_shots_{count}", {**baselines})
        shots = [
            (len(records) + place, settings.name_format.format(name=class_of(shown[place], tag=settings.tag)))
            for place in _draw_shots(shown, count, seed=config.seed)
        ]
        if count:
            section |= {"shots_from": settings.shot_source or config.data.train, "shots": count, "n": len(records)}
            section["prompt"] = show(lay_question(settings.prompts[0], 0, shots=shots))
        for name, model, table in views:
            answered = [(table[row], answer) for row, answer in shots]
            worth = score_texts(model, table[: len(records)], names, prompts=settings.prompts, shots=answered)
            scores = worth.scores
            section[name] = score_classes(scores, targets)
            without = score_classes(worth.less_prior, targets)
            section[name] |= {f"less_prior_{key}": value for key, value in without.items() if key != "ece"}
            if name == "seeing" and is_first():
                draw_confusion(directory / f"{config.evaluate.report}_confusion_{count}.png", scores, targets, classes)
            if not samples:
                guesses = scores.argmax(axis=1)
                samples = collect_samples(
                    "classify",
                    [lay_question(settings.prompts[-1], row, shots=shots) for row in range(len(records))],
                    [names[guess] for guess in guesses],
                    [[names[target]] for target in targets],
                    (guesses == targets).tolist(),
                    pictures=pictures,
                    seed=config.seed,
                )
    if settings.heads:
        asked_of = {"blind" if models.seeing.blind else "seeing": models.seeing} | (
            {} if models.blind is None else {"blind": models.blind}
        )
        for head, hidden in HEADS.items():
            facts = {**baselines, "n": len(records), "trained_on": len(pool), "hidden": hidden}
            section = sections.setdefault(f"classify_{head}", facts)
            for name, model in asked_of.items():
                scores = _score_by_head(model, pool, records, classes, hidden=hidden, config=config)
                section[name] = score_classes(scores, targets)
    return Measured(sections, samples)


def score_classes(
    scores: Float[np.ndarray, "examples columns"], targets: Int[np.ndarray, " examples"], *, classes: int = 0
) -> dict[str, float]:
    """Returns accuracies in percent, and how far the softmax of the scores, taken for confidence, is from the truth.

    Args:
        scores: of each class, and of what is no class behind them.
        targets: the right column.
        classes: how many columns are classes; 0 is all.
    """
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    confidence = shifted.max(axis=1) / shifted.sum(axis=1)
    correct = scores.argmax(axis=1) == targets
    ks = [k for k in (1, 5) if k < (classes or scores.shape[1])]
    return {
        **{f"top_{k}": round(100 * top_k_accuracy(scores, targets, k=k), 2) for k in ks},
        "ece": round(100 * expected_calibration_error(confidence, correct), 2),
    }


def _read_pool(config: Config, classes: Sequence[str], tested: Sequence[Record]) -> list[Record]:
    """Returns the pictures of these classes to learn from, none of them tested, in an order drawn by the seed."""
    settings = config.evaluate.classify
    line = settings.shot_source or config.data.train
    source = open_source(line)
    drawn = sample_indices(config.seed, 0, 0, len(source), len(source)).tolist()
    usable = read_usable(source.record, drawn, on_bad=config.data.on_bad)
    records = [r for r in usable if r.image is not None and r.tags and class_of(r, tag=settings.tag) in classes]
    # Heads learn from all of them; shots are a few, for which not every picture of the source is opened.
    most = None if settings.heads else max(settings.shot_pool, max(settings.shots) + 1)
    records = leave_out_damaged(leave_out_pictures(records, tested, line=line), config.data, most=most)
    if len(records) <= max(settings.shots):
        raise UserError(
            f"evaluate.classify: {line!r} has {len(records)} pictures of these classes, {max(settings.shots)} shots "
            "are wanted; name another evaluate.classify.shot_source"
        )
    return records


def _draw_shots(pool: Sequence[Record], count: int, *, seed: int) -> list[int]:
    """Returns the places of `count` pictures, the same for all queries."""
    rng = sample_rng(seed, 0, 0, stream="classify shots")
    return [int(place) for place in rng.choice(len(pool), size=count, replace=False)] if count else []


def _score_by_head(
    model: Model,
    pool: Sequence[Record],
    records: Sequence[Record],
    classes: Sequence[str],
    *,
    hidden: int,
    config: Config,
) -> Float[np.ndarray, "examples classes"]:
    labels = np.array([classes.index(class_of(record, tag=config.evaluate.classify.tag)) for record in pool])
    features = model.encode_image(images_of(pool))
    head = fit_head(features, np.eye(len(classes))[labels], exclusive=True, hidden=hidden, seed=config.seed)
    return head.logits(model.encode_image(images_of(records)))
