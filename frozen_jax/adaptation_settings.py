"""The section `adaptation` of the config: what trains beside a frozen language model, besides `lm.lora_rank`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AdaptationSettings:
    """Adapters and a learned prompt (`adapters.py`); each may be alone, or beside low-rank ones (`lm.lora_rank`).

    Attributes:
        adapter_width: A, units of a bottleneck MLP behind attention and behind the MLP of each layer; 0 is none.
        prompt_length: T, learned vectors in front of every text, behind its bos; 0 is none. They take positions of
            `data.max_tokens`.
    """

    adapter_width: int = 0
    prompt_length: int = 0


def check_adaptation(
    settings: AdaptationSettings,
    require: Callable[[bool, str, Any, str], None],
    *,
    lora_rank: int,
    lm_mode: str,
    task: str,
    other_use: str,
) -> None:
    """Checks the section, and the rank beside it; `require(holds, name, value, rule)` refuses.

    Args:
        lora_rank: `lm.lora_rank`.
        lm_mode: `lm.mode`.
        task: `evaluate.task`.
        other_use: of a text, where words are not predicted from it: by a fusion or a generator; or "".
    """
    sizes = {"adaptation.adapter_width": settings.adapter_width, "adaptation.prompt_length": settings.prompt_length}
    for name, size in {**sizes, "lm.lora_rank": lora_rank}.items():
        require(size >= 0, name, size, "it must not be negative")
        require(lm_mode == "frozen" or not size, name, size, f"with lm.mode={lm_mode!r} all weights train; set it to 0")
    for name, size in sizes.items():
        rule = f"the task {task!r} saves the language model as any program reads it, which has no place for this; "
        require(not size or task not in ("scene_text", "fewshot_text"), name, size, f"{rule}set lm.lora_rank instead")
    length = settings.prompt_length
    rule = f"{other_use} reads texts without it; set it to 0, or adapt by adapter_width or lm.lora_rank"
    require(not length or not other_use, "adaptation.prompt_length", length, rule)


def describe_added(settings: AdaptationSettings, *, lora_rank: int) -> str:
    """Says what trains beside a language model, to stand behind its name; "" where nothing does."""
    parts = {
        f", adapters of rank {lora_rank}": lora_rank,
        f", adapters of width {settings.adapter_width}": settings.adapter_width,
        f", a prompt of {settings.prompt_length} vectors": settings.prompt_length,
    }
    return "".join(text for text, size in parts.items() if size)
