"""The section `data` of a run's config: settings and their rules. Part of `config.py`; what they mean is in `data/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from frozen_jax.data.augment import AugmentOptions
from frozen_jax.data.cleaning import CleanOptions
from frozen_jax.data.images import ImageOptions


@dataclass(frozen=True)
class DataSettings:
    """What is trained on and how it becomes rows of tokens.

    Attributes:
        train: source, one line (see `data/sources.py`): "folder:/data/stamps", "0.7 * tar:… + 0.3 * jsonl:…".
        validation: likewise; "" holds `train.validation_examples` records of `train` out, at most a tenth of them and
            always the same ones.
        image: how a picture becomes an array: in training, in evaluation and in the tools alike.
        clean: what is done to captions before anything else.
        on_bad: an item that cannot be used stops the run ("raise"), or another one, always the same, stands in for it
            and the report lists it by reason ("replace").
        processes: that decode pictures; 0 decodes in threads, which about four cores' worth of decoding saturates.
        max_tokens: S, positions in a row, image slots and marks included; longer captions are cut.
        pack: pairs of a picture and its text in each row, with walls between them and own positions: less padding. A
            step then has batch_size / pack rows of max_tokens positions.
        pair_probability: share of the steps whose rows hold two pairs in one text and twice max_tokens positions, so
            that models with absolute positions learn to read interleaved prompts.
        buckets: lengths, rising, to which the padding that all rows of a step share is cut; the step compiles once for
            each. On one host alone; () never cuts.
        captions_per_example: at most so many different captions of a picture are joined in one training row.
        question_fraction: share of rows that hold a question and answer of the picture in place of a caption.
        caption_prompt: stands before a caption and carries no loss; not with retrieval or a generator, which are asked
            with captions alone.
        caption_format, question_format, answer_format: text of a row after the image slots; `{caption}`, `{question}`
            and `{answer}` are filled in. Caption and answer carry loss, the question does not.
        bos: begin each row with the language model's beginning-of-sequence token, which it must have.
        augment: random changes of training pictures, all off by default, as in the paper.
    """

    train: str = ""
    validation: str = ""
    image: ImageOptions = field(default_factory=lambda: ImageOptions(size=224))
    clean: CleanOptions = field(default_factory=CleanOptions)
    on_bad: Literal["raise", "replace"] = "raise"
    processes: int = 0
    max_tokens: int = 34
    pack: int = 1
    pair_probability: float = 0.0
    buckets: tuple[int, ...] = ()
    captions_per_example: int = 1
    question_fraction: float = 0.0
    caption_format: str = "{caption}"
    caption_prompt: str = ""
    question_format: str = "Question: {question} Answer:"
    answer_format: str = " {answer}"
    bos: bool = False
    augment: AugmentOptions = field(default_factory=AugmentOptions)


def check_data(settings: DataSettings, require: Callable[[bool, str, Any, str], None]) -> None:
    """Checks the section; `require(holds, name, value, rule)` refuses."""
    for name, value in (("captions_per_example", settings.captions_per_example), ("pack", settings.pack)):
        require(value >= 1, f"data.{name}", value, "it must be at least 1")
    for name, share in (
        ("question_fraction", settings.question_fraction),
        ("pair_probability", settings.pair_probability),
    ):
        require(0 <= share <= 1, f"data.{name}", share, "it is a share and must lie in 0..1")
    require(settings.processes >= 0, "data.processes", settings.processes, "it must not be negative")
    require(settings.train != "", "data.train", "", "name what to train on, for example 'easy_vqa:train'")
    buckets = settings.buckets
    rule = f"lengths must rise, and the last be data.max_tokens={settings.max_tokens}, which every text fits"
    rising = list(buckets) == sorted(set(buckets)) and buckets[-1:] in ((), (settings.max_tokens,))
    require(rising, "data.buckets", buckets, rule)
    rule = f"data.pack={settings.pack} puts walls between pairs and this takes them away; use one of the two"
    require(settings.pack == 1 or not settings.pair_probability, "data.pair_probability", "above 0", rule)
    for name, text, blank in (
        ("caption_format", settings.caption_format, "{caption}"),
        ("question_format", settings.question_format, "{question}"),
        ("answer_format", settings.answer_format, "{answer}"),
    ):
        require(blank in text, f"data.{name}", text, f"it must contain {blank}, which is filled in")
