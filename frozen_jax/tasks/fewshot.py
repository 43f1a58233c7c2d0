"""In-context naming and fast binding: episodes of ways x inner-shots x repeats, with and without task induction.

    Answer with dax or blicket.[img] This is a dax.[img] This is a blicket.[img] Q: What is this? A: This is a

Open-Ended and Real-Name miniImageNet, Fast-VQA and Guided-VQA in their released format (`episodes.py`). Accuracies in
percent: strict = what is written before the stop mark is the answer, and a stop mark came; lenient = the answer occurs.
Where the set says in words what its pictures show, `text_oracle` is the language model's own accuracy on the same
prompts with those words in the pictures' places: the ceiling.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frozen_jax.adapters import widen_lm
from frozen_jax.api import Model, Picture
from frozen_jax.config import Config
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import FewShotSettings
from frozen_jax.language_model import save_lm
from frozen_jax.metrics.vqa import normalise_answer
from frozen_jax.processes import is_first
from frozen_jax.prompt import Image, Prompt, fill, show
from frozen_jax.stopping import Completion
from frozen_jax.tasks.controls import Models, View, list_views
from frozen_jax.tasks.episodes import Episode, read_episodes
from frozen_jax.tasks.samples import Measured, Sample, collect_samples


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Runs the whole grid by the model and its controls, each on the same episodes.

    Raises:
        UserError: episodes that cannot be read, or a grid point whose prompts are longer than the language model's
            positions.
    """
    settings = config.evaluate.fewshot
    figures: dict[str, Any] = {
        "episodes": settings.episodes,
        "stop": [*settings.stop, f"{config.evaluate.max_new_tokens} tokens"],
    }
    samples: list[Sample] = []
    for ways in settings.ways:
        for shots in settings.inner_shots:
            found = read_episodes(settings.episodes, ways=ways, shots=shots, most=config.evaluate.examples)
            figures["task"] = found.task
            views = []
            if models.seeing.network.vision is not None:
                views = list_views(models, list_pictures(found.episodes), seed=config.seed)
            for repeats in settings.repeats:
                for induced in settings.induction:
                    name = f"ways_{ways}_shots_{shots}_repeats_{repeats}{'_induction' if induced else ''}"
                    point = measure(
                        config, models.seeing, views, found.episodes, repeats=repeats, induced=induced, title=name
                    )
                    figures[name] = point.figures
                    samples += point.samples
    return Measured({"fewshot": figures}, samples)


def evaluate_text(config: Config, models: Models, directory: Path) -> Measured:
    """Runs the grid by the text oracle alone, and saves its language model where `lm.path` can name it."""
    if is_first():
        model = models.seeing
        save_lm(directory / "lm", model.network.lm.config, widen_lm(model.params["lm"]), model.tokenizer)
    return evaluate(config, models, directory)


def measure(
    config: Config,
    model: Model,
    views: Sequence[View],
    episodes: Sequence[Episode],
    *,
    repeats: int,
    induced: bool,
    title: str,
) -> Measured:
    """Scores one point of the grid.

    Args:
        config: the run.
        model: whose language model is the text oracle.
        views: the model and its controls.
        episodes: the same for all.
        repeats: extra presentations of the support set.
        induced: begin with the text that says what the task is.
        title: of the samples.

    Raises:
        UserError: a prompt is too long for the language model, or nobody can be asked.
    """
    settings = config.evaluate.fewshot
    prompts, first = [], 0
    for episode in episodes:
        prompts.append(make_prompt(episode, settings, first_row=first, repeats=repeats, induced=induced))
        first += len(episode.images) + 1
    commonest = Counter(normalise_answer(episode.answer) for episode in episodes).most_common(1)[0][1]
    figures: dict[str, Any] = {
        "prompt": show(prompts[0]),
        "n": len(episodes),
        "chance": percent([chance_of(episode, settings) for episode in episodes]),
        "majority": round(100 * commonest / len(episodes), 2),
    }
    asked: list[tuple[str, Model, list[Prompt], Any]] = [(view.name, view.model, prompts, view.table) for view in views]
    if all(episode.descriptions for episode in episodes):
        asked.append(("text_oracle", model, describe_pictures(prompts, episodes, config.data.caption_format), None))
    if not asked:
        raise UserError(
            f"evaluate.fewshot.episodes={settings.episodes!r} do not say in words what their pictures show, and this "
            "model sees no pictures; make episodes with descriptions, or ask a model with a vision side"
        )
    samples: list[Sample] = []
    for name, answering, shown, table in asked:
        try:
            made = answering.complete(
                shown, max_new_tokens=config.evaluate.max_new_tokens, stop=settings.stop, prefixes=table
            )
        except UserError as error:
            if name != "text_oracle" or not views:
                raise
            figures["text_oracle_left_out"] = str(error)  # words take more room than slots; the other rows stand
            continue
        pairs = [(completion, episode.answer) for completion, episode in zip(made, episodes, strict=True)]
        figures[name] = {
            "strict": percent([is_strict(completion, answer) for completion, answer in pairs]),
            "lenient": percent([is_lenient(completion, answer) for completion, answer in pairs]),
        }
        samples = samples or collect_samples(
            title,
            prompts,
            [completion.text for completion in made],
            [[episode.answer] for episode in episodes],
            [is_strict(completion, answer) for completion, answer in pairs],
            pictures=list_pictures(episodes),
            seed=config.seed,
        )
    return Measured(figures, samples)


def describe_pictures(prompts: Sequence[Prompt], episodes: Sequence[Episode], template: str) -> list[Prompt]:
    """Returns the prompts with what each picture shows in words, as in the text stage, in the picture's place."""
    words = [template.format(caption=text) for episode in episodes for text in episode.descriptions]
    return [tuple(words[part.row] if isinstance(part, Image) else part for part in prompt) for prompt in prompts]


def list_pictures(episodes: Sequence[Episode]) -> list[Picture]:
    """Returns all pictures, each episode's support set and then its question's: the rows that `make_prompt` names."""
    return [picture for episode in episodes for picture in (*episode.images, episode.question_image)]


def make_prompt(episode: Episode, settings: FewShotSettings, *, first_row: int, repeats: int, induced: bool) -> Prompt:
    """Returns induction, the support set 1 + `repeats` times, and the question, with nothing in between.

    Args:
        episode: texts.
        settings: templates.
        first_row: row of the episode's first picture in the table of prefixes.
        repeats: extra presentations of the support set.
        induced: begin with the text that says what the task is.
    """
    support = [
        fill(settings.support_format, Image(first_row + number), caption=caption)
        for number, caption in enumerate(episode.captions)
    ]
    query = fill(settings.query_format, Image(first_row + len(episode.images)), question=episode.question)
    pieces = support * (1 + repeats) + [query]
    if induced:
        names = list_names(episode, settings) if "{names}" in settings.induction_format else []
        pieces.insert(0, (settings.induction_format.format(names=join_names(names)),))
    return tuple(part for piece in pieces for part in piece)


def list_names(episode: Episode, settings: FewShotSettings) -> list[str]:
    """Returns the distinct names in the support captions, in order of appearance.

    Raises:
        UserError: a caption does not follow `evaluate.fewshot.name_format`.
    """
    before, after = settings.name_format.split("{name}")
    pattern = re.compile(f"{re.escape(before)}(.+){re.escape(after)}")
    names: dict[str, None] = {}
    for caption in episode.captions:
        match = pattern.fullmatch(caption.strip())
        if match is None:
            raise UserError(
                f"evaluate.fewshot.name_format={settings.name_format!r} does not fit the support caption {caption!r}, "
                "from which the induction text takes its names; change it, or give an induction_format without {names}"
            )
        names.setdefault(match[1])
    return list(names)


def join_names(names: Sequence[str]) -> str:
    """Returns "dax, blicket or slation"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def chance_of(episode: Episode, settings: FewShotSettings) -> float:
    """Probability that a caption drawn from the support set names the answer; 0 where none does, as in Fast-VQA."""
    before, after = settings.name_format.split("{name}")
    stripped = [caption.strip().removeprefix(before).removesuffix(after) for caption in episode.captions]
    alike = [words == wanted for words, wanted in (split_words(name, episode.answer) for name in stripped)]
    return sum(alike) / len(alike)


def is_strict(completion: Completion, answer: str) -> bool:
    """Whether exactly the answer was written and then a stop mark."""
    words, wanted = split_words(completion.text, answer)
    return completion.stopped and words == wanted


def is_lenient(completion: Completion, answer: str) -> bool:
    """Whether the answer's words occur, side by side, in what was written."""
    words, wanted = split_words(completion.text, answer)
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1))


def split_words(text: str, answer: str) -> tuple[list[str], list[str]]:
    """Returns the words of both after normalisation; as written where that leaves nothing of the answer ("a")."""
    wanted = normalise_answer(answer).split()
    if wanted:
        return normalise_answer(text).split(), wanted
    return text.lower().split(), answer.lower().split()


def percent(hits: Sequence[bool] | Sequence[float]) -> float:
    """Mean in percent, two decimals."""
    return round(100 * sum(hits) / len(hits), 2)
