"""Closed-set classification: the class whose name is the most probable after the prompt, per token of the name.

The metrics are in `metrics/classification.py`; figures in percent.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from frozen_jax.config import Config
from frozen_jax.data.records import class_of
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.metrics.classification import top_k_accuracy
from frozen_jax.prompt import Image, fill, show
from frozen_jax.tasks.controls import Models, images_of, list_views, read_records, source_line
from frozen_jax.tasks.samples import Measured, Sample, collect_samples

LISTED = 20
"""Class names that a report shows."""


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Classifies a source's pictures among all classes that occur in it, by the model and its controls.

    Raises:
        UserError: a picture without a class, or fewer than two classes.
    """
    settings = config.evaluate.classify
    line = source_line(config, settings.source)
    records = read_records(open_source(line), most=0)
    labels = [class_of(record, tag=settings.tag) for record in records]
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UserError(f"evaluate.classify.source={line!r} has the class {classes} alone; name a source with more")
    records = records[: config.evaluate.examples or None]
    targets = np.array([classes.index(label) for label in labels[: len(records)]])
    names = [settings.name_format.format(name=name) for name in classes]
    prompts = [fill(settings.prompt, Image(row)) for row in range(len(records))]
    most = Counter(targets.tolist()).most_common(1)[0][1]
    figures: dict[str, Any] = {
        "source": line,
        "prompt": show(prompts[0]),
        "names": settings.name_format,
        "classes": len(classes),
        "class_names": classes[:LISTED],
        "n": len(records),
        "chance": round(100 / len(classes), 2),
        "majority": round(100 * most / len(records), 2),
    }
    samples: list[Sample] = []
    for name, model, table in list_views(models, images_of(records), seed=config.seed):
        scores = model.score(prompts, names, normalise=True, prefixes=table)
        figures[name] = {
            f"top_{k}": round(100 * top_k_accuracy(scores, targets, k=k), 2) for k in (1, 5) if k < len(classes)
        }
        if not samples:
            guesses = scores.argmax(axis=1)
            answers, truths = [names[guess] for guess in guesses], [[names[target]] for target in targets]
            hits, pictures = (guesses == targets).tolist(), images_of(records)
            samples = collect_samples("classify", prompts, answers, truths, hits, pictures=pictures, seed=config.seed)
    return Measured({"classify": figures}, samples)
