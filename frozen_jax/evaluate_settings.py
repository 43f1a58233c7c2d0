"""Settings of `--mode=eval`: which task, its prompts, its stop rule. Part of `config.py`; read by `tasks/`.

Prompts are templates (`prompt.fill`): `[img]` is where the image stands, `{name}` is filled in, all else is taken as it
stands, white space and line ends included. Reports print them verbatim.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from frozen_jax.prompt import EOS, IMAGE_MARK

TaskName = Literal[
    "none",
    "easy_vqa",
    "scene_text",
    "caption",
    "vqa",
    "fewshot",
    "fewshot_text",
    "classify",
    "fusion",
    "generate",
    "retrieval",
    "tag",
]

BLIND_TASKS = ("none", "fewshot_text", "generate", "scene_text")
"""Tasks that show the model no pictures: none, those of the text stage, and of generators."""


@dataclass(frozen=True)
class CaptionSettings:
    """Captions of a source's pictures, by BLEU-1 to 4, ROUGE-L, CIDEr-D and exact match.

    Attributes:
        source: pictures with reference captions, one line as in `data.train`; "" takes `data.validation`.
        prompt: template.
        stop: a caption ends before the first of these; `[eos]` is the end-of-text token.
        wordnet: directory of WordNet's noun files, by which captions are searched for the reference's head noun, its
            synonyms and direct hypernyms; "" does not look for them.
    """

    source: str = ""
    prompt: str = "[img]"
    stop: tuple[str, ...] = (EOS, "\n")
    wordnet: str = ""


@dataclass(frozen=True)
class VQASettings:
    """Open-ended answers to questions, after 0 or more answered ones about other pictures.

    Attributes:
        source: pictures with questions and answers, one line as in `data.train`; "" takes `data.validation`.
        shot_source: where shots come from; "" takes `data.train`.
        shots: numbers of shots, each a row of the report.
        shot_choice: `sampled`: any of the pool, others for each question; `fixed`: one draw for all questions of a
            seed, which costs little more than no shots; `similar`: the pictures of the pool that are nearest to the
            question's own, by the cosine of what the seeing model makes of them, the nearest last.
        shot_pool: at most so many records of `shot_source`, drawn once.
        induction: text before everything.
        shot_format: template with `{question}` and `{answer}`.
        query_format: template with `{question}`.
        stop: an answer ends before the first of these; `[eos]` is the end-of-text token.
    """

    source: str = ""
    shot_source: str = ""
    shots: tuple[int, ...] = (0,)
    shot_choice: Literal["sampled", "fixed", "similar"] = "sampled"
    shot_pool: int = 2048
    induction: str = "Please answer the question."
    shot_format: str = "[img] Question: {question} Answer: {answer}\n"
    query_format: str = "[img] Question: {question} Answer:"
    stop: tuple[str, ...] = (EOS, "\n", "Question:")


@dataclass(frozen=True)
class FewShotSettings:
    """Episodes in the paper's released format: a grid over ways, inner-shots, repeats and task induction.

    Attributes:
        episodes: folder or tar.gz of `{task}_shots_{n}_ways_{m}_all_questions.json` and its pictures.
        ways: numbers of classes; each with each of the other lists is a row of the report.
        inner_shots: numbers of distinct pictures per class.
        repeats: how many times the whole support set comes again, in the same order.
        induction: with and without the text that says what the task is.
        induction_format: that text; `{names}` becomes "dax or blicket".
        name_format: how a support caption names its class; `{names}` is taken from there.
        support_format: template with `{caption}`.
        query_format: template with `{question}`.
        stop: an answer ends before the first of these; `[eos]` is the end-of-text token.
    """

    episodes: str = ""
    ways: tuple[int, ...] = (2,)
    inner_shots: tuple[int, ...] = (1,)
    repeats: tuple[int, ...] = (0,)
    induction: tuple[bool, ...] = (False, True)
    induction_format: str = "Answer with {names}."
    name_format: str = "This is a {name}."
    support_format: str = "[img] {caption}"
    query_format: str = "[img] {question}"
    stop: tuple[str, ...] = (EOS, ".", "\n", "Q:")


@dataclass(frozen=True)
class ClassifySettings:
    """Which of a closed set of class names is the most probable, by log-probability per token.

    Attributes:
        source: pictures with tags, one line as in `data.train`; "" takes `data.validation`.
        tag: place of the class among a record's tags; -1 joins all of them by spaces.
        prompts: templates; a class's score is the mean over them.
        name_format: what follows the prompt, with `{name}`.
        shots: numbers of answered pictures before the one in question, the same for all, each a section of the report.
        shot_source: where they come from, and what heads learn from; "" takes `data.train`.
        shot_pool: shots are drawn from so many of its pictures.
        heads: fit a linear probe and a head with a hidden layer to the encoder's features of `shot_source`, too.
    """

    source: str = ""
    tag: int = -1
    prompts: tuple[str, ...] = ("[img] This is a",)
    name_format: str = " {name}"
    shots: tuple[int, ...] = (0,)
    shot_source: str = ""
    shot_pool: int = 256
    heads: bool = False


@dataclass(frozen=True)
class FusionTaskSettings:
    """Classes of items with a picture and a text, by a model of `config.fusion`.

    Attributes:
        source: records that give items, one line as in `data.train`; "" takes `data.validation`.
    """

    source: str = ""


@dataclass(frozen=True)
class GenerateSettings:
    """Pictures that a generator draws of a source's captions, by what others read in them.

    Attributes:
        source: pictures with captions, and tags that say what a picture shows, one line as in `data.train`; "" takes
            `data.validation`. One picture is drawn for each record, from one of its captions.
        tags: names of the first places of the records' tags: what the reader, a network trained on the training
            pictures, has to read; () asks for nothing and has no Fréchet distance.
        reader_steps: training steps of the reader.
        captioner: workdir of a trained captioner, which captions what was drawn; "" asks none.
        steps: along the flow; also of `tools.generate_image`, as is `guidance`.
        guidance: 1 follows the text alone, more exaggerates it.
    """

    source: str = ""
    tags: tuple[str, ...] = ()
    reader_steps: int = 400
    captioner: str = ""
    steps: int = 20
    guidance: float = 2.0


@dataclass(frozen=True)
class RetrievalTaskSettings:
    """Pictures found by captions, captions by pictures, pictures by pictures. Captions are worded as in training.

    Attributes:
        source: pictures with captions, one line as in `data.train`; "" takes `data.validation`.
        prompt: template, what stands before a caption whose log-probability is taken.
        turns: numbers of answered questions about a picture, worded as in training, by which it is to be found, each a
            row of the report; () asks none. By a model trained for retrieval alone.
    """

    source: str = ""
    prompt: str = "[img]"
    turns: tuple[int, ...] = ()


@dataclass(frozen=True)
class TagSettings:
    """Which tags of a vocabulary belong to a picture, by log-probability and by what the model writes.

    Attributes:
        source: pictures with tags, one line as in `data.train`; "" takes `data.validation`.
        calibration: other pictures with tags: thresholds, frequencies and a linear probe are made on them; "" takes
            `data.train`.
        calibrated_on: at most so many of these, from end to end of the source.
        least: a tag is in the vocabulary if it occurs so often where the probe learns, and at all in `source`.
        prompt: template, what stands before a tag whose log-probability is taken.
        tag_format: the tag, with `{tag}`.
        list_prompt: template that the model continues; the tags in what it writes are those that it gives.
        stop: that text ends before the first of these; `[eos]` is the end-of-text token.
    """

    source: str = ""
    calibration: str = ""
    calibrated_on: int = 1000
    least: int = 5
    prompt: str = "[img] a"
    tag_format: str = " {tag}"
    list_prompt: str = "[img]"
    stop: tuple[str, ...] = (EOS, "\n")


@dataclass(frozen=True)
class EvaluateSettings:
    """What the report measures after training, and what `--mode=eval` measures of a trained model.

    This section may differ from one start of a run to the next: it changes no training.

    Attributes:
        task: `none`; `easy_vqa` (zero-shot questions, caption exact match); `scene_text` (the text stage's oracle);
            `fewshot_text` (the few-shot grid by the text oracle alone); `caption`, `vqa`, `fewshot`, `classify`,
            `generate`, `retrieval`, `tag`, `fusion` as their sections below.
        blind_control: train the same model on black images too and report it beside the seeing one.
        report: name of the report's files, so that several evaluations of a run stand side by side.
        examples: at most so many test questions, pictures or episodes, the first; 0 is all.
        seeds: runs with other shots where shots are drawn, for mean and spread.
        max_new_tokens: of a decoded answer or caption.
        batch_size: prompts, or pictures, computed together.
    """

    task: TaskName = "none"
    blind_control: bool = False
    report: str = "report"
    examples: int = 0
    seeds: int = 3
    max_new_tokens: int = 20
    batch_size: int = 256
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    vqa: VQASettings = field(default_factory=VQASettings)
    fewshot: FewShotSettings = field(default_factory=FewShotSettings)
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    fusion: FusionTaskSettings = field(default_factory=FusionTaskSettings)
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    retrieval: RetrievalTaskSettings = field(default_factory=RetrievalTaskSettings)
    tag: TagSettings = field(default_factory=TagSettings)


_TEMPLATES: Mapping[str, tuple[tuple[str, ...], int]] = {
    "caption.prompt": ((), 1),
    "vqa.induction": ((), 0),
    "vqa.shot_format": (("question", "answer"), 1),
    "vqa.query_format": (("question",), 1),
    "fewshot.name_format": (("name",), 0),
    "fewshot.support_format": (("caption",), 1),
    "fewshot.query_format": (("question",), 1),
    "classify.name_format": (("name",), 0),
    "retrieval.prompt": ((), 1),
    "tag.prompt": ((), 1),
    "tag.tag_format": (("tag",), 0),
    "tag.list_prompt": ((), 1),
}
"""Each template's blanks, which it must have, and how many images."""


def check_evaluate(settings: EvaluateSettings, require: Callable[[bool, str, Any, str], None]) -> None:
    """Checks the section; `require(holds, name, value, rule)` refuses."""
    for name, value in (
        ("max_new_tokens", settings.max_new_tokens),
        ("batch_size", settings.batch_size),
        ("seeds", settings.seeds),
        ("vqa.shot_pool", settings.vqa.shot_pool),
        ("classify.shot_pool", settings.classify.shot_pool),
        ("tag.least", settings.tag.least),
        ("generate.steps", settings.generate.steps),
        ("generate.reader_steps", settings.generate.reader_steps),
    ):
        require(value >= 1, f"evaluate.{name}", value, "it must be at least 1")
    calibrated_on = settings.tag.calibrated_on
    require(
        calibrated_on >= 2, "evaluate.tag.calibrated_on", calibrated_on, "it must be at least 2: half of them teach"
    )
    require(settings.examples >= 0, "evaluate.examples", settings.examples, "it must not be negative")
    require(
        settings.classify.tag >= -1, "evaluate.classify.tag", settings.classify.tag, "it is a place, 0 or more, or -1"
    )
    guidance = settings.generate.guidance
    require(guidance >= 0, "evaluate.generate.guidance", guidance, "it must not be negative; 1 is none")
    plain = bool(settings.report) and not set(settings.report) - set(string.ascii_letters + string.digits + "_-")
    require(plain, "evaluate.report", settings.report, "it is part of a file name: use letters, digits, _ and -")
    fewshot = settings.fewshot
    require(bool(settings.classify.prompts), "evaluate.classify.prompts", (), "give at least one template")
    turns = settings.retrieval.turns
    rule = "give different numbers of at least 1, or ()"
    require(len(set(turns)) == len(turns) and min(turns, default=1) >= 1, "evaluate.retrieval.turns", turns, rule)
    for name, numbers, least in (
        ("vqa.shots", settings.vqa.shots, 0),
        ("classify.shots", settings.classify.shots, 0),
        ("fewshot.ways", fewshot.ways, 2),
        ("fewshot.inner_shots", fewshot.inner_shots, 1),
        ("fewshot.repeats", fewshot.repeats, 0),
    ):
        holds = bool(numbers) and min(numbers) >= least and len(set(numbers)) == len(numbers)
        require(holds, f"evaluate.{name}", numbers, f"give one or more different numbers of at least {least}")
    require(
        0 < len(set(fewshot.induction)) == len(fewshot.induction),
        "evaluate.fewshot.induction",
        fewshot.induction,
        "give (False,), (True,) or (False, True)",
    )
    wanted = settings.task in ("fewshot", "fewshot_text")
    rule = "give the folder or tar.gz of episodes; tools.make_episodes writes one"
    require(not wanted or fewshot.episodes != "", "evaluate.fewshot.episodes", "", rule)
    for name, (blanks, images) in _TEMPLATES.items():
        section, _, key = name.partition(".")
        template = getattr(getattr(settings, section), key)
        marks = f"exactly one {IMAGE_MARK}" if images else f"no {IMAGE_MARK}"
        fields = ", ".join(f"{{{blank}}}" for blank in blanks) or "nothing"
        rule = f"it needs {marks}, and {fields} to be filled in, alone (write {{{{ and }}}} for braces)"
        require(_fits(template, blanks, images), f"evaluate.{name}", template, rule)
    for template in settings.classify.prompts:
        rule = f"each needs exactly one {IMAGE_MARK}, and nothing to be filled in"
        require(_fits(template, (), 1), "evaluate.classify.prompts", template, rule)
    rule = "only {names} may stand in braces, and no [img] in it"
    holds = any(_fits(fewshot.induction_format, blanks, 0) for blanks in ((), ("names",)))
    require(holds, "evaluate.fewshot.induction_format", fewshot.induction_format, rule)


def _fits(template: str, blanks: tuple[str, ...], images: int) -> bool:
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return False
    return sorted(found) == sorted(blanks) and template.count(IMAGE_MARK) == images
