"""What a task hands over beside its figures: prompts with what the model wrote, for the picture page (`page.py`).

Prompts name pictures by their row in a table of prefixes (`prompt.py`); here the pictures themselves stand in place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from frozen_jax.api import Picture
from frozen_jax.prompt import Image, Prompt

CHOSEN = 12
"""Samples that a page shows of one group."""


@dataclass(frozen=True)
class Sample:
    """One prompt, what the seeing model wrote after it, and what is right.

    Attributes:
        group: samples of one group stand together: a row of the report, such as "shots_4".
        prompt: text and pictures, as the model got them.
        answer: as the model wrote it.
        truths: reference answers.
        score: 0 (wrong) to 1 (right), as the task counts.
    """

    group: str
    prompt: tuple[str | Picture, ...]
    answer: str
    truths: tuple[str, ...]
    score: float


class Measured(NamedTuple):
    """What a task returns.

    Attributes:
        figures: by section of the report.
        samples: for its picture page.
    """

    figures: dict[str, dict[str, Any]]
    samples: list[Sample]


def collect_samples(
    group: str,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    truths: Sequence[Sequence[str]],
    scores: Sequence[float | bool],
    *,
    pictures: Sequence[Picture],
    seed: int,
) -> list[Sample]:
    """Chooses some of a group's examples.

    Args:
        group: its name.
        prompts: with pictures by number.
        answers: of the model.
        truths: reference answers of each.
        scores: of each answer, 0 to 1.
        pictures: by number.
        seed: of the choice.
    """
    return [
        Sample(
            group,
            tuple(pictures[part.row] if isinstance(part, Image) else part for part in prompts[index]),
            answers[index],
            tuple(truths[index]),
            float(scores[index]),
        )
        for index in choose_samples(scores, seed=seed)
    ]


def choose_samples(scores: Sequence[float | bool], *, seed: int, most: int = CHOSEN) -> list[int]:
    """Returns numbers of examples, in order: half of them right and half wrong, as far as there are so many.

    Args:
        scores: of all examples, 0 to 1; 1 alone is right.
        seed: of the choice among the right, and among the wrong.
        most: how many.
    """
    order = list(range(len(scores)))
    random.Random(seed).shuffle(order)
    right = [index for index in order if scores[index] == 1]
    wrong = [index for index in order if scores[index] < 1]
    wrong_count = min(len(wrong), max(most // 2, most - len(right)))
    return sorted(wrong[:wrong_count] + right[: most - wrong_count])
