"""Zero-shot easy-VQA and captioning of its pictures, with every control; figures in percent, two decimals.

The prompts hold one image and a question, or one image alone; decoding is greedy and open-ended, no list of answers is
given. Text generation is in `answering.py`, training in `train.py`, the written report in `report.py`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8

from frozen_jax.config import Config
from frozen_jax.data.easy_vqa import EasyQuestion, EasyVQA
from frozen_jax.data.loading import ImageLoader
from frozen_jax.data.scenes import SHAPES, list_captions
from frozen_jax.decode import DecodeConfig
from frozen_jax.metrics.vqa import vqa_accuracy
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.prompt import Image, Prompt
from frozen_jax.state import Params
from frozen_jax.tasks.answering import complete, encode_images
from frozen_jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reader:
    """A trained model with what it takes to ask it."""

    config: Config
    model: FrozenModel
    params: Params
    tokenizer: Tokenizer

    def ask(self, prompts: Sequence[Prompt], prefixes: Float[Array, "R P D"] | None) -> list[str]:
        """Continues prompts greedily, up to the end-of-text token."""
        stop = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        settings = self.config.evaluate
        return complete(
            self.model,
            self.params,
            self.tokenizer,
            prompts,
            prefixes=prefixes,
            bos=self.config.data.bos,
            decode=DecodeConfig(max_new_tokens=settings.max_new_tokens, stop_ids=stop),
            batch_size=settings.batch_size,
        )

    def prefixes(self, images: UInt8[np.ndarray, "R height width 3"]) -> Float[Array, "R2 P D"]:
        """Encodes pictures; one black picture for a model that is blind."""
        if self.config.blind:
            images = np.zeros_like(images[:1])
        return encode_images(self.model, self.params, images, batch_size=self.config.evaluate.batch_size)

    def image(self, row: int) -> Image:
        """Returns the prompt part that shows picture `row`."""
        return Image(0 if self.config.blind else row)


class QuestionSet:
    """The questions and pictures that are asked about: the same for every model and control."""

    def __init__(self, config: Config):
        """Reads the test split, or its first `evaluate.questions` questions."""
        source = EasyVQA("test")
        self.questions = source.questions[: config.evaluate.questions or None]
        self.scenes = [source.scene(index) for index in range(len(source))]
        self.images, _ = ImageLoader(source, config.data.image).load(range(len(source)))
        self.question_format = config.data.question_format

    def prompt(self, question: EasyQuestion, before: str | Image) -> Prompt:
        """Returns `before`, an image or a description in words, then the question."""
        return (before, self.question_format.format(question=question.question))


def accuracy(answers: Sequence[str], questions: Sequence[EasyQuestion]) -> float:
    """Mean VQA accuracy in percent; easy-VQA has one reference answer a question, so it is equality."""
    correct = [vqa_accuracy(answer, [question.answer]) for answer, question in zip(answers, questions, strict=True)]
    return round(100 * float(np.mean(correct)), 2)


def answer_type(answer: str) -> str:
    """The kind of a reference answer: yes/no, shape or colour."""
    return "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"


def accuracy_by_type(answers: Sequence[str], questions: Sequence[EasyQuestion]) -> dict[str, Any]:
    """Accuracy in percent, overall and per answer type, with the number of questions."""
    pairs: dict[str, list[tuple[str, EasyQuestion]]] = defaultdict(list)
    for answer, question in zip(answers, questions, strict=True):
        pairs[answer_type(question.answer)].append((answer, question))
    by_type = {kind: accuracy([a for a, _ in group], [q for _, q in group]) for kind, group in sorted(pairs.items())}
    return {"accuracy": accuracy(answers, questions), "by_type": by_type, "questions": len(questions)}


def score_questions(
    reader: Reader, tests: QuestionSet, prefixes: Float[Array, "R P D"]
) -> tuple[dict[str, Any], list[str]]:
    """Asks every question about its own picture."""
    answers = reader.ask([tests.prompt(q, reader.image(q.image_index)) for q in tests.questions], prefixes)
    return accuracy_by_type(answers, tests.questions), answers


def score_shuffled(reader: Reader, tests: QuestionSet, prefixes: Float[Array, "R P D"]) -> dict[str, Any]:
    """Asks every question about another picture than its own, each picture's questions about the same other one."""
    other = shuffle_without_fixed_points(len(tests.images), seed=reader.config.seed)
    prompts = [tests.prompt(q, reader.image(other[q.image_index])) for q in tests.questions]
    return accuracy_by_type(reader.ask(prompts, prefixes), tests.questions)


def shuffle_without_fixed_points(size: int, *, seed: int) -> list[int]:
    """Returns a random permutation of range(size), size > 1, that leaves nothing in its place: one single cycle."""
    order = list(range(size))
    random.Random(seed).shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[index] for index in range(size)]


def score_text_oracle(reader: Reader, tests: QuestionSet) -> dict[str, Any]:
    """Asks about a description in words in the image's place: the ceiling of what a picture can reach.

    The description is one of the caption wordings, taken in turn; only pictures that their questions disclose have one.
    """
    asked = [question for question in tests.questions if tests.scenes[question.image_index]]
    prompts = []
    for number, question in enumerate(asked):
        colour, shape = tests.scenes[question.image_index] or ("", "")
        captions = list_captions(colour, shape)
        caption = reader.config.data.caption_format.format(caption=captions[number % len(captions)])
        prompts.append(tests.prompt(question, caption))
    return accuracy_by_type(reader.ask(prompts, None), asked)


def score_captions(
    reader: Reader, tests: QuestionSet, prefixes: Float[Array, "R P D"]
) -> tuple[dict[str, Any], list[str]]:
    """Captions every test picture; exact match over those whose colour and shape are disclosed.

    A caption is an exact match when it is, letter for letter, one or several of the picture's reference wordings joined
    by ". ". The chance level is that of the commonest scene.
    """
    captions = reader.ask([(reader.image(row),) for row in range(len(tests.images))], prefixes)
    captions = [caption.strip() for caption in captions]
    disclosed = [(row, scene) for row, scene in enumerate(tests.scenes) if scene]
    hits = [matches_caption(captions[row], list_captions(*scene)) for row, scene in disclosed]
    commonest = Counter(scene for _, scene in disclosed).most_common(1)[0][1]
    figures = {
        "exact_match": round(100 * float(np.mean(hits)), 2),
        "pictures": len(disclosed),
        "chance": round(100 * commonest / len(disclosed), 2),
    }
    return figures, captions


def matches_caption(caption: str, references: Sequence[str]) -> bool:
    """Whether a caption is one or several of the references, joined by ". "."""
    return all(sentence in references for sentence in caption.split(". "))


def score_baselines(tests: QuestionSet) -> dict[str, float]:
    """Accuracy in percent of answering without a picture: the commonest answer, and the commonest to each question.

    Both are counted on the training questions.
    """
    train = EasyVQA("train").questions
    majority = Counter(question.answer for question in train).most_common(1)[0][0]
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_question[question.question][question.answer] += 1

    def guess(question: EasyQuestion) -> str:
        counted = by_question[question.question].most_common(1)
        return counted[0][0] if counted else majority

    return {
        "majority": accuracy([majority] * len(tests.questions), tests.questions),
        "question_only": accuracy([guess(question) for question in tests.questions], tests.questions),
    }
