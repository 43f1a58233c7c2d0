"""The section `fusion` of the config: one vector of a picture and a text, trained to name a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

FusionKind = Literal["", "concat", "gated", "bilinear", "cross_attention", "text", "image"]


@dataclass(frozen=True)
class FusionSettings:
    """Picture and text → class, through a frozen text side (docs/applications.md).

    Attributes:
        kind: how the two are joined (`models/fusion.py`); "text" and "image" are the rows to compare with; "" trains
            words from pictures as everywhere else.
        item: what a record gives: `question`, a question as the text and its answer as the class; `caption`, a caption
            as the text and its tag at `tag` as the class; `picture`, the tag alone as the class, for the kind `image`.
        tag: place of the class among a record's tags; -1 joins all of them by spaces.
        classes: names, in the order of the logits; () takes all that the training records have, the commonest first.
        width: W, numbers of the fused vector; a multiple of 4.
        dropout: rate on the fused vector, in [0, 1).
    """

    kind: FusionKind = ""
    item: Literal["question", "caption", "picture"] = "question"
    tag: int = 0
    classes: tuple[str, ...] = ()
    width: int = 128
    dropout: float = 0.0


def check_fusion(settings: FusionSettings, require: Callable[[bool, str, Any, str], None]) -> None:
    """Checks the section; `require(holds, name, value, rule)` refuses."""
    width = settings.width
    require(width >= 4 and width % 4 == 0, "fusion.width", width, "it must be a multiple of 4, the attention heads")
    require(0 <= settings.dropout < 1, "fusion.dropout", settings.dropout, "it must be at least 0 and less than 1")
    require(settings.tag >= -1, "fusion.tag", settings.tag, "it is a place, 0 or more, or -1")
    wordless = settings.item == "picture" and settings.kind not in ("", "image")
    require(not wordless, "fusion.item", settings.item, "it has no text, which other kinds than 'image' read; name one")
    rule = "give () or two or more different names"
    holds = not settings.classes or len(set(settings.classes)) == len(settings.classes) > 1
    require(holds, "fusion.classes", settings.classes, rule)
