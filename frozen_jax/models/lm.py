"""Language models of all families behind one interface: config, module, cache.

Lives here: the choice of a family by `model_type`. Its config and module are in `gpt2.py`, `opt.py`, `llama.py` and
`bert.py`; loading weights in `frozen_jax/language_model.py`. Every module has, all usable through
`module.apply(..., method="…")`:

    embed(tokens)                                          [B, S]    → [B, S, D]   what a prefix stands beside
    stack(embeddings, *, positions, mask, cache, …)        [B, S, D] → [B, S, D]   layers and final norm; OPT's
                                                                                   projections are inside
    logits(hidden)                                         [B, S, D] → [B, S, V]   the head alone, f32
    __call__(tokens)                                       [B, S]    → [B, S, V]   unpadded texts; used by `init`

D is the width of the token embeddings (`config.embed_width`), which OPT-350m's layers (`config.width`) do not have.
`bert.py` has no `logits` and no cache: it reads texts for a fusion (`fusion.py`).
With a cache, S new positions are written at `cache_index`, for all rows alike (prompts are left-padded), and `mask` has
the cache's K columns; without, K = S.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp

from frozen_jax.errors import UserError
from frozen_jax.models.bert import BERT, BERTConfig
from frozen_jax.models.gpt2 import GPT2, GPT2Config
from frozen_jax.models.layers import REMAT_POLICIES, Cache, DType
from frozen_jax.models.llama import Llama, LlamaConfig
from frozen_jax.models.opt import OPT, OPTConfig

LMConfig: TypeAlias = GPT2Config | OPTConfig | LlamaConfig | BERTConfig
"""Hyperparameters of one language model. All have vocab_size, embed_width, width, layers, kv_heads, head_width,
max_positions, bos_token_id, eos_token_id (a tuple) and to_hf()."""

_READERS: Mapping[str, Callable[[Mapping[str, Any]], LMConfig]] = {
    "gpt2": GPT2Config.from_hf,
    "opt": OPTConfig.from_hf,
    "llama": LlamaConfig.from_hf,
    "mistral": LlamaConfig.from_hf,
    "qwen2": LlamaConfig.from_hf,
    "smollm3": LlamaConfig.from_hf,
    "bert": BERTConfig.from_hf,
}

_MODULES: Mapping[type, type[nn.Module]] = {GPT2Config: GPT2, OPTConfig: OPT, LlamaConfig: Llama, BERTConfig: BERT}


def lm_config_from_hf(config: Mapping[str, Any]) -> LMConfig:
    """Reads the content of a config.json.

    Raises:
        UserError: `model_type` is missing or not one of ours, or a field is not supported.
    """
    family = str(config.get("model_type"))
    if family not in _READERS:
        raise UserError(
            f"config.json: model_type = {family!r} is not supported; this project has {', '.join(sorted(_READERS))}"
        )
    return _READERS[family](config)


def build_lm(config: LMConfig, *, dtype: DType = jnp.float32, remat: str = "none", unroll: int = 1) -> nn.Module:
    """Builds the module of a language model.

    Args:
        config: hyperparameters.
        dtype: compute dtype; weights may be stored in another.
        remat: what the backward pass recomputes: "none", "full" or "dots" (see `layers.stack_layers`).
        unroll: layers per step of the scan; `config.layers` removes the loop (decoding).

    Raises:
        UserError: `remat` or `unroll` is out of range.
    """
    if remat not in ("none", *REMAT_POLICIES):
        raise UserError(f"remat = {remat!r} must be one of none, {', '.join(REMAT_POLICIES)}")
    if not 1 <= unroll <= config.layers:
        raise UserError(f"unroll = {unroll} must lie in [1, {config.layers}], the number of layers")
    return _MODULES[type(config)](config, dtype=dtype, remat=remat, unroll=unroll)


def init_cache(config: LMConfig, *, batch: int, length: int, dtype: DType) -> Cache:
    """Returns an empty cache for `batch` rows and `length` positions.

    Args:
        config: hyperparameters.
        batch: B.
        length: K, prompt and generated tokens together.
        dtype: dtype of the stored keys and values.
    """
    shape = (config.layers, batch, config.kv_heads, length, config.head_width)
    return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
