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
    """

    weight: float = 0.0
    width: int = 128


def check_retrieval(
    settings: RetrievalSettings, require: Callable[[bool, str, Any, str], None], *, sees: bool, pairs_per_row: int
) -> None:
    """Checks the section; `require(holds, name, value, rule)` raises the UserError.

    Args:
        settings: the section.
        require: of `config._check`.
        sees: the run has an encoder.
        pairs_per_row: `Config.pairs_per_row`.
    """
    require(settings.weight >= 0, "retrieval.weight", settings.weight, "it must not be negative")
    require(settings.width >= 1, "retrieval.width", settings.width, "it must be at least 1")
    rule = "there are no pictures to find; set vision.name, or 0"
    require(sees or not settings.weight, "retrieval.weight", settings.weight, rule)
    rule = "a row's text is compared with one picture; set data.pack=1 and data.pair_probability=0, or 0"
    require(pairs_per_row == 1 or not settings.weight, "retrieval.weight", settings.weight, rule)
