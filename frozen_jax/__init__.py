"""frozen_jax: images as prefixes of a frozen language model, in JAX and Flax.

`load` opens a trained run, an export of one, or by its name the model that ships, to generate and score text with
(`api.Model`); `load_lm` loads a language model alone, from a Hugging Face directory, a hub or a GGUF file.
`docs/api.md` shows both. Training and evaluation start at `python -m frozen_jax.main`; `docs/architecture.md` walks
through the package.

Names are imported when they are first used: processes that only read data need no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frozen_jax.api import Model
    from frozen_jax.errors import UserError
    from frozen_jax.language_model import LanguageModel, load_lm
    from frozen_jax.prompt import EOS, Image
    from frozen_jax.restore import load
    from frozen_jax.stopping import Completion

__all__ = ["EOS", "Completion", "Image", "LanguageModel", "Model", "UserError", "load", "load_lm"]

_HOMES = {
    "Completion": "frozen_jax.stopping",
    "EOS": "frozen_jax.prompt",
    "Image": "frozen_jax.prompt",
    "LanguageModel": "frozen_jax.language_model",
    "Model": "frozen_jax.api",
    "UserError": "frozen_jax.errors",
    "load": "frozen_jax.restore",
    "load_lm": "frozen_jax.language_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'frozen_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
