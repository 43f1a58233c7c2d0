"""How a model wants to be asked by the page: as it was in training and in its evaluation. Used by `answers.py`."""

from __future__ import annotations

import dataclasses

from frozen_jax.config import Config
from frozen_jax.data_settings import DataSettings
from frozen_jax.evaluate_settings import (
    CaptionSettings,
    ClassifySettings,
    EvaluateSettings,
    GenerateSettings,
    VQASettings,
)
from frozen_jax.fusion_settings import FusionSettings
from frozen_jax.prompt import IMAGE_MARK


@dataclasses.dataclass(frozen=True)
class Wording:
    """Words around pictures and texts, and where an answer ends.

    Attributes:
        question: what follows the picture, with `{question}`.
        caption_stop, answer_stop: a text ends before the first of these.
        max_new_tokens: of a text.
        naming: what stands before a name, templates with `[img]`; a name's scores after them are averaged.
        name: the name, with `{name}`.
        caption: of a picture that is to be drawn, with `{caption}`.
        steps, guidance: of drawing, see `api.Model.draw`.
        item: what a fusion reads beside the picture, as `config.fusion.item` calls it.
    """

    question: str = VQASettings().query_format.removeprefix(IMAGE_MARK)
    caption_stop: tuple[str, ...] = CaptionSettings().stop
    answer_stop: tuple[str, ...] = VQASettings().stop
    max_new_tokens: int = EvaluateSettings().max_new_tokens
    naming: tuple[str, ...] = ClassifySettings().prompts
    name: str = ClassifySettings().name_format
    caption: str = DataSettings().caption_format
    steps: int = GenerateSettings().steps
    guidance: float = GenerateSettings().guidance
    item: str = FusionSettings().item

    @classmethod
    def of(cls, config: Config) -> Wording:
        """Returns that of a run."""
        asked = config.evaluate
        return cls(
            question=config.data.question_format,
            caption_stop=asked.caption.stop,
            answer_stop=asked.vqa.stop,
            max_new_tokens=asked.max_new_tokens,
            naming=asked.classify.prompts,
            name=asked.classify.name_format,
            caption=config.data.caption_format,
            steps=asked.generate.steps,
            guidance=asked.generate.guidance,
            item=config.fusion.item,
        )
