"""Captions of any source's pictures against its own captions; figures in percent, CIDEr-D x 100.

Metrics are in `metrics/captions.py` and `metrics/nouns.py`, generation in `api.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.order import sample_indices
from frozen_jax.data.records import read_usable
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.metrics.captions import bleu, cider_d, exact_match, rouge_l
from frozen_jax.metrics.nouns import WordNet, head_noun, names_noun, read_wordnet
from frozen_jax.processes import is_first
from frozen_jax.prompt import Image, Prompt, fill, show
from frozen_jax.report import SAMPLES, draw_answers
from frozen_jax.tasks.controls import Models, images_of, list_views, read_records, source_line
from frozen_jax.tasks.samples import Measured, Sample, collect_samples

MAJORITY_RECORDS = 20_000
"""Training records among which the commonest caption is counted."""


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Captions every picture that has a reference caption, by the model and its controls.

    Raises:
        UserError: no picture has a caption.
    """
    settings = config.evaluate.caption
    line = source_line(config, settings.source)
    records = read_records(open_source(line), most=config.evaluate.examples, data=config.data)
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
    # Each domain is a set of its own: CIDEr-D's document frequencies are those of its references alone.
    domains: dict[str, dict[Hashable, Sequence[str]]] = {
        domain: {record.id: references[record.id] for record in captioned if record.domain == domain}
        for domain in sorted({record.domain for record in captioned} - {""})
    }
    figures |= {"n_by_domain": {domain: len(part) for domain, part in domains.items()}} if domains else {}
    wordnet = read_wordnet(settings.wordnet) if settings.wordnet else None
    wanted = [config.data.caption_format.format(caption=record.captions[0]) for record in captioned]
    samples: list[Sample] = []
    for name, model, table in list_views(models, images_of(captioned), seed=config.seed):
        texts = model.generate(
            prompts, max_new_tokens=config.evaluate.max_new_tokens, stop=settings.stop, prefixes=table
        )
        predictions: dict[Hashable, str] = {
            record.id: text.strip() for record, text in zip(captioned, texts, strict=True)
        }
        figures[name] = score_captions(predictions, references)
        by_domain = {
            domain: score_captions({name: predictions[name] for name in part}, part) for domain, part in domains.items()
        }
        figures[name] |= {"by_domain": by_domain} if by_domain else {}
        figures[name]["nats_per_token"] = measure_nats(model, prompts, wanted, table)
        figures[name] |= score_nouns(predictions, references, wordnet) if wordnet else {}
        if not samples:
            truths = [record.captions for record in captioned]
            hits = [exact_match(text, captions) for text, captions in zip(texts, truths, strict=True)]
            pictures = images_of(captioned)
            samples = collect_samples("caption", prompts, texts, truths, hits, pictures=pictures, seed=config.seed)
            if is_first():
                drawn = random.Random(config.seed).sample(range(len(captioned)), min(len(captioned), SAMPLES))
                said = [predictions[captioned[row].id] for row in drawn]
                meant = [truths[row][0] for row in drawn]
                right = [hits[row] for row in drawn]
                if wordnet:
                    right = [_is_named(text, truth, wordnet) for text, truth in zip(said, meant, strict=True)]
                path = directory / f"{config.evaluate.report}_captions.png"
                shown = [pictures[row] for row in drawn]
                draw_answers(path, shown, meant, said, right, size=config.data.image.size)
    commonest = find_commonest_caption(config)
    if commonest:
        same = score_captions(dict.fromkeys(references, commonest), references)
        figures["majority"] = {"caption": commonest, **same}
        figures["majority"] |= score_nouns(dict.fromkeys(references, commonest), references, wordnet) if wordnet else {}
    return Measured({"caption": figures}, samples)


def measure_nats(
    model: Model, prompts: Sequence[Prompt], wanted: Sequence[str], table: Float[np.ndarray, "R P D"]
) -> float:
    """Returns the mean loss (nats) of the tokens of a text for each prompt, the end-of-text token left out."""
    tokens = sum(len(model.tokenizer.encode(text)) for text in wanted)
    return round(float(-model.score(prompts, [[text] for text in wanted], prefixes=table).sum()) / tokens, 4)


def score_nouns(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], wordnet: WordNet
) -> dict[str, float]:
    """Returns in how many captions (percent) the head noun of the first reference stands: `noun_exact`, it itself;
    `noun`, it, a synonym or a direct hypernym."""
    heads = {name: head_noun(captions[0], wordnet) for name, captions in references.items()}
    exact = sum(names_noun(predictions[name], frozenset({head}), wordnet) for name, head in heads.items())
    near = sum(_is_named(predictions[name], captions[0], wordnet) for name, captions in references.items())
    return {"noun_exact": round(100 * exact / len(heads), 2), "noun": round(100 * near / len(heads), 2)}


def _is_named(text: str, reference: str, wordnet: WordNet) -> bool:
    return names_noun(text, wordnet.accept(head_noun(reference, wordnet)), wordnet)


def find_commonest_caption(config: Config) -> str:
    """Returns the caption that most training pictures have, the first of equally common ones; "" where none has one.

    Counted on at most `MAJORITY_RECORDS` of the training records, drawn by the seed.
    """
    source = open_source(config.data.train, clean=config.data.clean)
    drawn = sample_indices(config.seed, 0, 0, min(MAJORITY_RECORDS, len(source)), len(source))
    records = read_usable(source.record, sorted(drawn.tolist()), on_bad=config.data.on_bad)
    counted = Counter(caption for record in records for caption in record.captions)
    return counted.most_common(1)[0][0] if counted else ""


def score_captions(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> dict[str, float]:
    """Returns all caption metrics, x 100."""
    scores = {f"bleu_{order}": score for order, score in enumerate(bleu(predictions, references), start=1)}
    scores |= {"rouge_l": rouge_l(predictions, references), "cider_d": cider_d(predictions, references)}
    matches = [exact_match(predictions[name], references[name]) for name in references]
    scores["exact_match"] = sum(matches) / len(matches)
    return {name: round(100 * score, 2) for name, score in scores.items()}
