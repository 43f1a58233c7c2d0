"""Finding pictures by texts, texts by pictures and pictures by pictures; figures in percent, ranks from 1.

Metrics are in `metrics/retrieval.py`; the command for galleries of one's own is `tools/retrieve.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.order import sample_rng
from frozen_jax.data.records import Question, Record
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.metrics.retrieval import DirectionScores, score_direction, score_retrieval
from frozen_jax.naming import Worth, score_texts
from frozen_jax.prompt import Image, Prompt, fill, show
from frozen_jax.tasks.controls import (
    Models,
    images_of,
    list_views,
    read_records,
    shuffle_without_fixed_points,
    source_line,
)
from frozen_jax.tasks.samples import Measured, Sample, collect_samples

METHODS: Mapping[str, str] = {
    "likelihood": "log p(caption | picture) per token",
    "likelihood_prior": "the same less log p(caption | mean picture) per token",
    "states": "cosine of mean LM states, less the mean of each side",
    "ret": "cosine of the [RET] state and the picture's feature, each through its trained map",
    "prefix": "cosine of mean prefix vectors, less their mean",
    "dialogue": "cosine of the [RET] state behind answered questions about a picture with the pictures' features",
    "dialogue_added": "the same, with [RET] behind each question by itself and the cosines added",
    "ret_prompt": "cosine of the [RET] state behind picture and caption with the pictures' features",
}
"""What a row of the report is, in words."""


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Ranks a source's pictures and captions for each other, by every method that the model has.

    Where `evaluate.retrieval.turns` asks for it, pictures are also looked for by what was asked and answered of them;
    right are then all pictures of the same caption.

    Pictures without a caption are left out. Equal captions are one caption; it is right for each picture that has it,
    and any of these is right for it.

    Raises:
        UserError: fewer than two pictures with captions, or no picture with so many answered questions.
    """
    settings = config.evaluate.retrieval
    line = source_line(config, settings.source)
    source = open_source(line, clean=config.data.clean)
    records = read_records(source, most=config.evaluate.examples, data=config.data)
    captioned = [record for record in records if record.captions]
    captions = list(dict.fromkeys(caption for record in captioned for caption in record.captions))
    if len(captioned) < 2 or len(captions) < 2:
        raise UserError(
            f"evaluate.retrieval.source={line!r} has {len(captioned)} pictures with {len(captions)} different captions;"
            " there is nothing to find among fewer than two: name another source"
        )
    column = {caption: place for place, caption in enumerate(captions)}
    relevant = np.zeros((len(captioned), len(captions)), bool)
    for row, record in enumerate(captioned):
        relevant[row, [column[caption] for caption in record.captions]] = True
    pictures = images_of(captioned)
    prompts = [fill(settings.prompt, Image(row)) for row in range(len(captioned))]
    texts = [config.data.caption_format.format(caption=caption) for caption in captions]
    own = [config.data.caption_format.format(caption=record.captions[0]) for record in captioned]
    alike = relevant.astype(np.float32) @ relevant.T > 0  # of truth values numpy's product is a slow loop
    partners = _pairs_without_self(alike)
    dialogues = tell_dialogues(captioned, config)
    findable = partners.any(axis=1)
    figures: dict[str, Any] = {
        "source": line,
        "prompt": show(prompts[0]),
        "gallery": {
            "pictures": len(captioned),
            "captions": len(captions),
            "without_caption": len(records) - len(captioned),
        },
        "right": "any caption that the picture has; any picture that has the caption",
        "methods": dict(METHODS),
    }
    samples: list[Sample] = []
    order = shuffle_without_fixed_points(len(captioned), seed=config.seed)
    likelihood: Worth
    states: np.ndarray
    for view in list_views(models, pictures, seed=config.seed):
        model, table = view.model, view.table
        if view.name == "shuffled":  # another picture's answers are those that it got itself
            likelihood, states = Worth(likelihood.scores[order], likelihood.prior), states[order]
        else:
            likelihood = score_texts(model, table, texts, prompts=(settings.prompt,))
            states = model.embed_prompts(prompts, prefixes=table)
        ranked = {
            "likelihood": likelihood.scores,
            "likelihood_prior": likelihood.less_prior,
            "states": _cosines(states, model.embed_text(texts)),
        }
        vectors = {"states": _cosines(states, states), "prefix": _cosines(table.mean(axis=1), table.mean(axis=1))}
        if model.network.retrieval is not None:
            seen = model.map_image(pictures)
            seen = seen[order] if view.name == "shuffled" else seen
            ranked["ret"] = seen @ model.embed_prompts([(text,) for text in texts], retrieval=True).T
            vectors["ret"] = seen @ seen.T
            asked: list[Prompt] = [(Image(row), text) for row, text in enumerate(own)]
            vectors["ret_prompt"] = model.embed_prompts(asked, retrieval=True, prefixes=table) @ seen.T
            for turns, dialogue in dialogues.items():
                talks = list(dialogue.values())
                whole, added = model.embed_prompts(talks, retrieval=True), add_turns(model, talks)
                for method, queries in {"dialogue": whole, "dialogue_added": added}.items():
                    direction = score_direction(queries @ seen.T, alike[list(dialogue)])
                    row = figures.setdefault(method, {}).setdefault(f"turns_{turns}", {"queries": len(dialogue)})
                    row["chance"] = round(100 * direction.chance[1], 2)
                    row[view.name] = _list_figures(text_to_image=direction)
        for method, similarity in ranked.items():
            scores = score_retrieval(similarity, relevant)
            row = figures.setdefault(method, {})
            row[view.name] = _list_figures(text_to_image=scores.text_to_image, image_to_text=scores.image_to_text)
            chance = _list_chance(text_to_image=scores.text_to_image, image_to_text=scores.image_to_text)
            row |= {"chance": chance["text_to_image_r_1"], "chances": chance}
        if findable.any():
            others = figures.setdefault("image_to_image", {"queries": int(findable.sum())})
            for method, similarity in vectors.items():
                direction = score_direction(_pairs_without_self(similarity)[findable], partners[findable])
                chance = _list_chance(image_to_image=direction)
                row = others.setdefault(method, {"chance": chance["image_to_image_r_1"], "chances": chance})
                row[view.name] = _list_figures(image_to_image=direction)
        if not samples:
            best = ranked.get("ret", ranked["likelihood"]).argmax(axis=0)
            samples = collect_samples(
                "text_to_image",
                [(Image(int(row)),) for row in best],
                texts,
                [captioned[row].captions for row in best],
                [bool(relevant[row, place]) for place, row in enumerate(best)],
                pictures=pictures,
                seed=config.seed,
            )
    return Measured({"retrieval": figures}, samples)


def tell_dialogues(records: Sequence[Record], config: Config) -> dict[int, dict[int, Prompt]]:
    """Returns, for each number of turns, what is said about each picture that has so many answered questions.

    The order of a picture's questions is drawn by the seed, so that more turns begin with fewer.
    """
    data, told = config.data, dict[int, dict[int, Prompt]]()
    for row, record in enumerate(records):
        turns = [
            data.question_format.format(question=question.text)
            + data.answer_format.format(answer=Counter(question.answers).most_common(1)[0][0])
            for question in order_questions(record, row, seed=config.seed)
        ]
        for count in config.evaluate.retrieval.turns:
            if count <= len(turns):
                told.setdefault(count, {})[row] = tuple(turns[:count])
    missing = [count for count in config.evaluate.retrieval.turns if count not in told]
    if missing:
        raise UserError(
            f"evaluate.retrieval.turns has {missing[0]}, and no picture has so many answered questions; lower it, or "
            "name a source of pictures with questions"
        )
    return told


def add_turns(model: Model, dialogues: Sequence[Prompt]) -> Float[np.ndarray, "queries W"]:
    """Returns the sum of what finds pictures by each turn alone.

    The contrastive loss makes a cosine, times the inverse temperature, the logarithm of how much more probable a
    picture is after a turn than before it, up to a constant; of answers that depend on the picture alone these add up.

    Source: van den Oord et al., arXiv 1807.03748, section 2.3 (the optimal critic is the ratio of densities).
    """
    turns = list(dict.fromkeys(turn for dialogue in dialogues for turn in dialogue))
    vectors = dict(zip(turns, model.embed_prompts([(turn,) for turn in turns], retrieval=True), strict=True))
    return np.stack([np.sum([vectors[turn] for turn in dialogue], axis=0) for dialogue in dialogues])


def order_questions(record: Record, row: int, *, seed: int) -> list[Question]:
    """Returns a record's answered questions in the order in which they are told of the picture in this row."""
    answered = [question for question in record.questions if question.answers]
    order = sample_rng(seed, 0, row, stream="dialogue").permutation(len(answered))
    return [answered[place] for place in order]


def _cosines(rows: Float[np.ndarray, "R W"], columns: Float[np.ndarray, "C W"]) -> Float[np.ndarray, "R C"]:
    """Compares vectors after each side's mean is taken off: what all of a side have in common says nothing."""
    rows, columns = (x - x.mean(axis=0, keepdims=True) for x in (rows, columns))
    rows, columns = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in (rows, columns))
    cosines: np.ndarray = rows @ columns.T
    return cosines


def _pairs_without_self(square: Any) -> Any:
    """Drops the diagonal: each row keeps the others, in order."""
    size = len(square)
    return square[~np.eye(size, dtype=bool)].reshape(size, size - 1)


def _list_figures(**directions: DirectionScores) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, scores in directions.items():
        figures |= {f"{name}_r_{k}": round(100 * recall, 2) for k, recall in scores.recall.items()}
        figures[f"{name}_median_rank"] = scores.median_rank
    return figures


def _list_chance(**directions: DirectionScores) -> dict[str, float]:
    return {
        f"{name}_r_{k}": round(100 * chance, 2)
        for name, scores in directions.items()
        for k, chance in scores.chance.items()
    }
