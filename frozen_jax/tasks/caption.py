"""Captions of any source's pictures against its own captions; figures in percent, CIDEr-D x 100.

Metrics are in `metrics/captions.py`, generation in `api.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frozen_jax.config import Config
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.metrics.captions import bleu, cider_d, exact_match, rouge_l
from frozen_jax.prompt import Image, fill, show
from frozen_jax.tasks.controls import Models, images_of, list_views, read_records, source_line


def evaluate(config: Config, models: Models, directory: Path) -> dict[str, dict[str, Any]]:
    """Captions every picture that has a reference caption, by the model and its controls.

    Raises:
        UserError: no picture has a caption.
    """
    settings = config.evaluate.caption
    line = source_line(config, settings.source)
    records = read_records(open_source(line), most=config.evaluate.examples)
    captioned = [record for record in records if record.captions]
    if not captioned:
        raise UserError(f"evaluate.caption.source={line!r} has no captions to compare with; name another source")
    references: dict[Hashable, Sequence[str]] = {record.id: record.captions for record in captioned}
    prompts = [fill(settings.prompt, Image(row)) for row in range(len(captioned))]
    figures: dict[str, Any] = {
        "source": line,
        "prompt": show(prompts[0]),
        "stop": [*settings.stop, f"{config.evaluate.max_new_tokens} tokens"],
        "n": len(captioned),
        "without_reference": len(records) - len(captioned),
    }
    for name, model, table in list_views(models, images_of(captioned), seed=config.seed):
        texts = model.generate(
            prompts, max_new_tokens=config.evaluate.max_new_tokens, stop=settings.stop, prefixes=table
        )
        predictions: dict[Hashable, str] = {
            record.id: text.strip() for record, text in zip(captioned, texts, strict=True)
        }
        figures[name] = score_captions(predictions, references)
    return {"caption": figures}


def score_captions(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> dict[str, float]:
    """Returns all caption metrics, x 100."""
    scores = {f"bleu_{order}": score for order, score in enumerate(bleu(predictions, references), start=1)}
    scores |= {"rouge_l": rouge_l(predictions, references), "cider_d": cider_d(predictions, references)}
    matches = [exact_match(predictions[name], references[name]) for name in references]
    scores["exact_match"] = sum(matches) / len(matches)
    return {name: round(100 * score, 2) for name, score in scores.items()}
