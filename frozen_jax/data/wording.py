"""What text a training row holds: captions joined, or questions with answers. Next in the data flow: `text.py`."""

from __future__ import annotations

import numpy as np

from frozen_jax.data.pipeline import TextFunction
from frozen_jax.data.records import Question, Record
from frozen_jax.data.text import Text
from frozen_jax.data_settings import DataSettings


def word_rows(settings: DataSettings, *, turns: int = 1) -> TextFunction:
    """Builds the choice of text for training: captions, and questions for `question_fraction` of the rows.

    A record without a picture is described by one caption where the picture would stand (the text stage):

        picture     SLOT SLOT         Question: … Answer: | red
                    SLOT SLOT         | the circle is red
        no picture  a red circle      Question: … Answer: | red
                    a red circle      | the circle is red            what stands behind | carries loss

    Args:
        settings: the section `data`.
        turns: most questions of a row, different ones, each with its answer, which carries loss; the number is drawn.
    """

    def caption(record: Record, rng: np.random.Generator, *, most: int) -> str:
        count = int(rng.integers(1, min(most, len(record.captions)) + 1))
        chosen = rng.choice(len(record.captions), size=count, replace=False)
        return settings.caption_format.format(caption=". ".join(record.captions[i] for i in chosen))

    def ask(answered: list[Question], rng: np.random.Generator, shown: str) -> list[tuple[str, str]]:
        chosen = [rng.integers(len(answered))]
        if turns > 1:
            count = int(rng.integers(1, min(turns, len(answered)) + 1))
            chosen = list(rng.choice(len(answered), size=count, replace=False))
        asked: list[tuple[str, str]] = []
        for place in chosen:
            question = answered[place]
            answer = question.answers[rng.integers(len(question.answers))]
            prompt = settings.question_format.format(question=question.text)
            asked.append((("" if asked else shown) + prompt, settings.answer_format.format(answer=answer)))
        return asked

    def word(record: Record, rng: np.random.Generator) -> Text | None:
        if record.turns:
            *before, (prompt, target) = record.turns
            return Text(target, prompt, tuple(before))
        described = record.image is None and record.captions
        shown = caption(record, rng, most=1) if described else ""
        answered = [question for question in record.questions if question.answers]
        if answered and rng.random() < settings.question_fraction:
            *before, (prompt, answer) = ask(answered, rng, shown)
            return Text(answer, prompt, tuple(before))
        if not record.captions:
            return None
        return Text(caption(record, rng, most=settings.captions_per_example), shown + settings.caption_prompt)

    return word
