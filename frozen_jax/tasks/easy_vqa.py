"""Zero-shot easy-VQA and captioning of its pictures, with every control; figures in percent, two decimals.

The prompts hold one image and a question, or one image alone; decoding is greedy and open-ended, no list of answers is
given. Text generation is in `api.py`, training in `train.py`, the written report in `report.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from frozen_jax.adapters import widen_lm
from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.easy_vqa import EasyQuestion, EasyVQA
from frozen_jax.data.loading import ImageLoader
from frozen_jax.data.scenes import SHAPES, list_captions
from frozen_jax.language_model import save_lm
from frozen_jax.metrics.vqa import vqa_accuracy
from frozen_jax.processes import is_first
from frozen_jax.prompt import Image, Prompt
from frozen_jax.report import draw_samples
from frozen_jax.tasks.controls import Models, guess_commonest, list_views
from frozen_jax.tasks.samples import Measured, Sample, collect_samples


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Scores questions and captions by the model and its controls, and draws `samples.png`."""
    tests = QuestionSet(config)
    vqa: dict[str, Any] = {}
    caption: dict[str, Any] = {}
    samples: list[Sample] = []
    # In the shuffled control each picture's questions are all about the same other picture.
    for name, model, prefixes in list_views(models, list(tests.images), seed=config.seed):
        vqa[name], answers = score_questions(model, tests, prefixes)
        caption[name], captions = score_captions(model, tests, prefixes)
        if not samples:
            samples = sample_questions(tests, answers) + sample_captions(tests, captions)
            if is_first():
                draw_samples(directory / "samples.png", tests, captions, answers)
    vqa |= score_baselines(tests)
    vqa["text_oracle"] = score_text_oracle(models.seeing, tests)["accuracy"]
    asked = next(iter(caption.values()))  # of the seeing model; a model that is blind itself has no other view
    caption |= {"exact_match": asked["exact_match"]} | describe_captioned(tests)
    return Measured({"vqa": vqa, "caption": caption, "decoding": describe_decoding(config)}, samples)


def evaluate_scene_text(config: Config, models: Models, directory: Path) -> Measured:
    """Scores the text stage by descriptions in words, and saves its language model where `lm.path` can name it."""
    oracle = score_text_oracle(models.seeing, QuestionSet(config))["accuracy"]
    lm = models.seeing.network.lm
    if is_first():
        save_lm(directory / "lm", lm.config, widen_lm(models.seeing.params["lm"]), models.seeing.tokenizer)
    return Measured({"vqa": {"text_oracle": oracle}, "decoding": describe_decoding(config)}, [])


def describe_decoding(config: Config) -> dict[str, Any]:
    """Returns the prompts and the stop rule, for the report."""
    return {
        "method": "greedy, open-ended",
        "stop": f"end-of-text token or {config.evaluate.max_new_tokens} new tokens",
        "question_prompt": "[img]" + config.data.question_format,
        "caption_prompt": "[img]",
    }


class QuestionSet:
    """The questions and pictures that are asked about: the same for every model and control."""

    def __init__(self, config: Config):
        """Reads the test split, or its first `evaluate.examples` questions."""
        source = EasyVQA("test")
        self.questions = source.questions[: config.evaluate.examples or None]
        self.scenes = [source.scene(index) for index in range(len(source))]
        self.images, _ = ImageLoader(source, config.data.image).load(range(len(source)))
        self.config = config

    def ask(
        self, model: Model, prompts: Sequence[Prompt], prefixes: Float[np.ndarray, "R P D"] | None = None
    ) -> list[str]:
        """Continues prompts greedily, up to the end-of-text token."""
        return model.generate(prompts, max_new_tokens=self.config.evaluate.max_new_tokens, prefixes=prefixes)

    def prompt(self, question: EasyQuestion, before: str | Image) -> Prompt:
        """Returns `before`, an image or a description in words, then the question."""
        return (before, self.config.data.question_format.format(question=question.question))


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
    model: Model, tests: QuestionSet, prefixes: Float[np.ndarray, "R P D"]
) -> tuple[dict[str, Any], list[str]]:
    """Asks every question about its own picture."""
    answers = tests.ask(model, [tests.prompt(q, Image(q.image_index)) for q in tests.questions], prefixes)
    return accuracy_by_type(answers, tests.questions), answers


def score_text_oracle(model: Model, tests: QuestionSet) -> dict[str, Any]:
    """Asks about a description in words in the image's place: the ceiling of what a picture can reach.

    The description is one of the caption wordings, taken in turn; only pictures that their questions disclose have one.
    """
    asked = [question for question in tests.questions if tests.scenes[question.image_index]]
    prompts = []
    for number, question in enumerate(asked):
        colour, shape = tests.scenes[question.image_index] or ("", "")
        captions = list_captions(colour, shape)
        caption = tests.config.data.caption_format.format(caption=captions[number % len(captions)])
        prompts.append(tests.prompt(question, caption))
    return accuracy_by_type(tests.ask(model, prompts), asked)


def score_captions(
    model: Model, tests: QuestionSet, prefixes: Float[np.ndarray, "R P D"]
) -> tuple[dict[str, Any], list[str]]:
    """Captions every test picture; exact match over those whose colour and shape are disclosed.

    A caption is an exact match when it is, letter for letter, one or several of the picture's reference wordings joined
    by ". ".
    """
    captions = tests.ask(model, [(Image(row),) for row in range(len(tests.images))], prefixes)
    captions = [caption.strip() for caption in captions]
    hits = [matches_caption(captions[row], list_captions(*scene)) for row, scene in list_disclosed(tests)]
    return {"exact_match": round(100 * float(np.mean(hits)), 2)}, captions


def list_disclosed(tests: QuestionSet) -> list[tuple[int, tuple[str, str]]]:
    """Returns the pictures whose colour and shape their questions disclose, by row."""
    return [(row, scene) for row, scene in enumerate(tests.scenes) if scene]


def describe_captioned(tests: QuestionSet) -> dict[str, Any]:
    """Returns the number of pictures whose captions are scored, and the chance level: that of the commonest scene."""
    disclosed = list_disclosed(tests)
    commonest = Counter(scene for _, scene in disclosed).most_common(1)[0][1]
    return {"pictures": len(disclosed), "chance": round(100 * commonest / len(disclosed), 2)}


def sample_questions(tests: QuestionSet, answers: Sequence[str]) -> list[Sample]:
    """Chooses questions and answers for the picture page."""
    questions = tests.questions
    return collect_samples(
        "questions",
        [tests.prompt(question, Image(question.image_index)) for question in questions],
        answers,
        [[question.answer] for question in questions],
        [vqa_accuracy(answer, [question.answer]) for answer, question in zip(answers, questions, strict=True)],
        pictures=list(tests.images),
        seed=tests.config.seed,
    )


def sample_captions(tests: QuestionSet, captions: Sequence[str]) -> list[Sample]:
    """Chooses captions for the picture page."""
    disclosed = list_disclosed(tests)
    references = [list_captions(*scene) for _, scene in disclosed]
    made = [captions[row] for row, _ in disclosed]
    return collect_samples(
        "captions",
        [(Image(row),) for row, _ in disclosed],
        made,
        references,
        [matches_caption(caption, truth) for caption, truth in zip(made, references, strict=True)],
        pictures=list(tests.images),
        seed=tests.config.seed,
    )


def matches_caption(caption: str, references: Sequence[str]) -> bool:
    """Whether a caption is one or several of the references, joined by ". "."""
    return all(sentence in references for sentence in caption.split(". "))


def score_baselines(tests: QuestionSet) -> dict[str, float]:
    """Accuracy in percent of answering without a picture: the commonest answer, and the commonest to each question.

    Both are counted on the training questions.
    """
    pairs = ((question.question, question.answer) for question in EasyVQA("train").questions)
    majority, guesses = guess_commonest(pairs, [question.question for question in tests.questions])
    return {
        "majority": accuracy([majority] * len(tests.questions), tests.questions),
        "question_only": accuracy(guesses, tests.questions),
    }
