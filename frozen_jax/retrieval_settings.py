"""Settings of training for retrieval (`config.retrieval`). Part of `config.py`; read by `build.py` and `steps.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RetrievalSettings:
    """A token `[RET]` whose state in the language model finds pictures, trained beside the captions' loss.

    Attributes:
        weight: of the contrastive loss beside that of the captions, in nats; 0 trains no retrieval.
        width: of the space in which texts and pictures are compared.
        turns: rows that ask (`data.question_fraction`) hold up to so many answered questions about their picture, and
            `[RET]` is trained behind them, too; with 0 they hold one, and train no retrieval.
    """

    weight: float = 0.0
    width: int = 128
    turns: int = 0


def check_retrieval(
    settings: RetrievalSettings,
    require: Callable[[bool, str, Any, str], None],
    *,
    sees: bool,
    pairs_per_row: int,
    micro_batch_rows: int,
    asks: bool,
) -> None:
    """Checks the section; `require(holds, name, value, rule)` raises the UserError.

    Args:
        settings: the section.
        require: of `config._check`.
        sees: the run has an encoder.
        pairs_per_row: `Config.pairs_per_row`.
        micro_batch_rows: `Config.micro_batch_rows`.
        asks: some rows of the run hold questions.
    """
    require(settings.weight >= 0, "retrieval.weight", settings.weight, "it must not be negative")
    require(settings.width >= 1, "retrieval.width", settings.width, "it must be at least 1")
    require(settings.turns >= 0, "retrieval.turns", settings.turns, "it must not be negative")
    rule = "no row asks or no retrieval is trained; set data.question_fraction and retrieval.weight above 0, or this 0"
    require(not settings.turns or (asks and settings.weight > 0), "retrieval.turns", settings.turns, rule)
    rule = "there are no pictures to find; set vision.name, or 0"
    require(sees or not settings.weight, "retrieval.weight", settings.weight, rule)
    rule = "a row's text is compared with one picture; set data.pack=1 and data.pair_probability=0, or 0"
    require(pairs_per_row == 1 or not settings.weight, "retrieval.weight", settings.weight, rule)
    rule = "a text is compared with the pictures of its micro-batch, which has but its own; raise train.batch_size or "
    rule += "lower optim.accumulate, so that there are two or more, or set 0"
    require(micro_batch_rows > 1 or not settings.weight, "retrieval.weight", settings.weight, rule)
