"""The section `lm` of the config: the language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

LMMode = Literal["frozen", "finetuned", "scratch"]

DtypeName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class LMSettings:
    """The language model.

    Attributes:
        path: a Hugging Face directory, a `.gguf` file, a hub id or `package:NAME`, a model that ships with this
            package; "" builds `architecture` from scratch and trains a tokenizer on the training texts, which is kept
            in the workdir (`tokenizer.json`).
        mode: the paper's controls. `frozen`: pre-trained, never changes. `finetuned`: pre-trained and trained along.
            `scratch`: same architecture, random weights, trained along.
        weights: `int8` stores the frozen kernels in half the memory of bfloat16, with one scale per output.
        lora_rank: R of low-rank adapters beside the frozen layers (`lora.py`), which train along; 0 is none. Others:
            `adaptation`.
        dtype: of the frozen weights and of computation; `auto` is bfloat16 on accelerators and float32 on CPU.
        architecture: a Hugging Face `config.json` as a dict, for `path=""` alone.
        remat: what the backward pass through the layers computes again instead of storing it.
    """

    path: str = ""
    mode: LMMode = "frozen"
    weights: Literal["float", "int8"] = "float"
    lora_rank: int = 0
    dtype: DtypeName = "auto"
    architecture: dict[str, Any] = field(default_factory=dict)
    remat: Literal["none", "dots", "full"] = "none"


def check_lm(settings: LMSettings, require: Callable[[bool, str, Any, str], None]) -> None:
    """Checks the section; `require(holds, name, value, rule)` refuses."""
    if settings.path:
        require(
            not settings.architecture,
            "lm.architecture",
            "a dict",
            f"lm.path={settings.path!r} brings its own architecture; give only one of the two",
        )
    else:
        require(bool(settings.architecture), "lm.path", "", "give a directory or hub id, or lm.architecture")
        rule = "a model that is not loaded from lm.path has random weights; set lm.mode='scratch' or give lm.path"
        require(settings.mode == "scratch", "lm.mode", settings.mode, rule)
    require(
        settings.weights == "float" or settings.mode == "frozen",
        "lm.weights",
        settings.weights,
        f"with lm.mode={settings.mode!r} the weights train, and steps smaller than their rounding would be lost; set "
        "lm.weights='float' or lm.mode='frozen'",
    )
