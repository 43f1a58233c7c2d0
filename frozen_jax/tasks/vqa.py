"""Open-ended questions about pictures, zero-shot and after k answered ones; VQA accuracy in percent.

Sources of any kind with questions: VQAv2 and OKVQA (`vqa:`), easy-VQA, tables. Predictions are compared by the official
rule (`metrics/vqa.py`) as they are, not stemmed; where a source has stemmed its answers, also with those that people
wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from frozen_jax.config import Config
from frozen_jax.data.order import sample_indices, sample_rng
from frozen_jax.data.records import Question, Record, read_usable
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import VQASettings
from frozen_jax.metrics.vqa import summarise_accuracy, vqa_accuracy
from frozen_jax.prompt import Image, Prompt, fill, show
from frozen_jax.tasks.controls import (
    Models,
    View,
    images_of,
    join_pictures,
    leave_out_damaged,
    list_views,
    picture_of,
    read_records,
    source_line,
    summarise_seeds,
)
from frozen_jax.tasks.samples import Measured, Sample, collect_samples


class Asked(NamedTuple):
    """A question with its picture's row in the table of prefixes."""

    row: int
    record: Record
    question: Question


class Pool(NamedTuple):
    """Where shots come from: records with answered questions, and the row of the first one's picture."""

    records: list[Record]
    first_row: int


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Asks every question, for each number of shots, by the model and its controls.

    The controls get the same shots: similar ones are chosen by what the seeing model sees.

    Raises:
        UserError: a source without answered questions, or a pool with too few pictures.
    """
    settings = config.evaluate.vqa
    line = source_line(config, settings.source)
    records = [record for record in read_records(open_source(line), most=0, data=config.data) if list_answered(record)]
    asked = [Asked(row, record, question) for row, record in enumerate(records) for question in list_answered(record)]
    asked = asked[: config.evaluate.examples or None]
    if not asked:
        raise UserError(f"evaluate.vqa.source={line!r} has no questions with answers; name another source")
    records = records[: asked[-1].row + 1]
    pool = read_pool(config, first_row=len(records)) if max(settings.shots) else Pool([], len(records))
    pictures = images_of([*records, *pool.records])
    views = list_views(models, pictures, seed=config.seed)
    majority = commonest_answer([q for record in pool.records or records for q in list_answered(record)])
    figures: dict[str, Any] = {
        "source": line,
        "induction": settings.induction,
        "query": settings.query_format,
        "stop": [*settings.stop, f"{config.evaluate.max_new_tokens} tokens"],
        "n": len(asked),
        "majority": {
            "answer": majority,
            "accuracy": score_answers([majority] * len(asked), asked)["overall"],
            "counted_on": "shot_pool" if pool.records else "these questions",
        },
    }
    samples: list[Sample] = []
    for count in settings.shots:
        seeds = range(config.evaluate.seeds) if count else range(1)
        shots = [choose_shots(asked, pool, count, settings, table=views[0].table, seed=seed) for seed in seeds]
        row: dict[str, Any] = {"example": show(make_prompt(asked[0], shots[0][0], settings))}
        if count:
            row |= {"shot": settings.shot_format, "shots_from": settings.shot_source or config.data.train}
            row |= {"shot_choice": settings.shot_choice, "seeds": len(shots)}
        for view in views:
            row[view.name], answers = measure(config, view, asked, shots)
            if view is views[0]:
                samples += collect_samples(
                    f"shots_{count}",
                    [make_prompt(query, before, settings) for query, before in zip(asked, shots[0], strict=True)],
                    answers,
                    [query.question.answers for query in asked],
                    [
                        vqa_accuracy(answer, query.question.answers)
                        for answer, query in zip(answers, asked, strict=True)
                    ],
                    pictures=pictures,
                    seed=config.seed,
                )
        figures[f"shots_{count}"] = row
    return Measured({"vqa": figures}, samples)


def measure(
    config: Config, view: View, asked: Sequence[Asked], shots: Sequence[list[list[Asked]]]
) -> tuple[dict[str, Any], list[str]]:
    """Accuracy over all questions: mean and spread over the choices of shots, and by answer type (mean).

    Returns also the answers after the first choice of shots.
    """
    settings = config.evaluate.vqa
    scores: list[dict[str, float]] = []
    raw: list[float] = []
    as_written = [query.question._replace(answers=query.question.raw_answers) for query in asked]
    written = [query._replace(question=question) for query, question in zip(asked, as_written, strict=True)]
    written = written if all(question.answers for question in as_written) else []
    first: list[str] = []
    for chosen in shots:
        prompts = [make_prompt(query, before, settings) for query, before in zip(asked, chosen, strict=True)]
        answers = view.model.generate(
            prompts, max_new_tokens=config.evaluate.max_new_tokens, stop=settings.stop, prefixes=view.table
        )
        scores.append(score_answers(answers, asked))
        raw.append(score_answers(answers, written)["overall"] if written else 0.0)
        first = first or answers
    kinds = [kind for kind in scores[0] if kind not in ("overall", "")]
    by_type = {kind: round(float(np.mean([score[kind] for score in scores])), 2) for kind in kinds}
    summary = summarise_seeds([score["overall"] for score in scores]) | ({"by_type": by_type} if by_type else {})
    if written:
        summary["accuracy_raw_answers"] = round(float(np.mean(raw)), 2)
    return summary, first


def make_prompt(query: Asked, shots: Sequence[Asked], settings: VQASettings) -> Prompt:
    """Returns induction, shots and question."""
    prompt: Prompt = (settings.induction,) if settings.induction else ()
    for shot in shots:
        answer = commonest_answer([shot.question])
        prompt += fill(settings.shot_format, Image(shot.row), question=shot.question.text, answer=answer)
    return prompt + fill(settings.query_format, Image(query.row), question=query.question.text)


def score_answers(answers: Sequence[str], asked: Sequence[Asked]) -> dict[str, float]:
    """VQA accuracy in percent, "overall" and by answer type."""
    scores = [vqa_accuracy(answer, query.question.answers) for answer, query in zip(answers, asked, strict=True)]
    return summarise_accuracy(scores, [query.question.kind for query in asked])


def list_answered(record: Record) -> list[Question]:
    """Questions about a picture that have an answer."""
    return [question for question in record.questions if question.answers]


def commonest_answer(questions: Sequence[Question]) -> str:
    """The answer given most often to any of some questions; of equally common ones the first."""
    return Counter(answer for question in questions for answer in question.answers).most_common(1)[0][0]


def read_pool(config: Config, *, first_row: int) -> Pool:
    """Draws the records that shots come from, the same in every run.

    Raises:
        UserError: too few records have answered questions.
    """
    settings = config.evaluate.vqa
    line = settings.shot_source or config.data.train
    source = open_source(line)
    drawn = sample_indices(config.seed, 0, 0, min(settings.shot_pool, len(source)), len(source))
    usable = read_usable(source.record, drawn.tolist(), on_bad=config.data.on_bad)
    shown = join_pictures(record for record in usable if list_answered(record) and record.image is not None)
    records = leave_out_damaged(shown, config.data)
    if len(records) <= max(settings.shots):
        raise UserError(
            f"evaluate.vqa.shots asks for {max(settings.shots)} shots, and {line!r} has {len(records)} pictures with "
            f"answered questions among the {len(drawn)} drawn; give evaluate.vqa.shot_source or a larger shot_pool"
        )
    return Pool(records, first_row)


def choose_shots(
    asked: Sequence[Asked],
    pool: Pool,
    count: int,
    settings: VQASettings,
    *,
    table: Float[np.ndarray, "R P D"],
    seed: int,
) -> list[list[Asked]]:
    """Returns `count` shots for each question: other pictures than its own, one question about each.

    Args:
        asked: the queries.
        pool: what to choose from.
        count: shots per query, fewer than the pool has.
        settings: how to choose.
        table: prefixes of all pictures, by which similar ones are found.
        seed: of the choice; with similar shots, of the question about each alone.
    """
    if not count:
        return [[] for _ in asked]
    flat = table.reshape(len(table), -1)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    candidates = flat[pool.first_row :]
    shown = [picture_of(record) for record in pool.records]
    chosen = []
    for number, query in enumerate(asked):
        # "fixed" is one draw for all; a question about one of its pictures has the next one drawn in its place.
        rng = sample_rng(seed, 0, 0 if settings.shot_choice == "fixed" else number, stream="shots")
        if settings.shot_choice == "similar":
            order = np.argsort(-(candidates @ flat[query.row]), kind="stable")[: count + 1]
        else:
            order = rng.choice(len(shown), size=count + 1, replace=False)
        places = [place for place in order.tolist() if shown[place] != picture_of(query.record)][:count]
        if settings.shot_choice == "similar":
            places.reverse()
        shots = []
        for place in places:
            answered = list_answered(pool.records[place])
            question = answered[rng.integers(len(answered))]
            shots.append(Asked(pool.first_row + place, pool.records[place], question))
        chosen.append(shots)
    return chosen
