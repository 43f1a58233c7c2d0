"""frozen_jax: images as prefixes of a frozen language model, in JAX and Flax.

`load_lm` loads a language model from a Hugging Face directory, a hub or a GGUF file. Training and evaluation start at
`python -m frozen_jax.main`; `docs/architecture.md` walks through the package.
"""

from frozen_jax.language_model import LanguageModel, load_lm

__all__ = ["LanguageModel", "load_lm"]
