"""What trains of a language model whose own weights stay as they are: low-rank factors, adapters, a learned prompt.

    lm.lora_rank                 blocks/…/lora_down, lora_up          see `lora.py`
    adaptation.adapter_width     blocks/(out|down)/adapter_down, up   f32 [L, D, A], [L, A, D]
    adaptation.prompt_length     prompt/vectors                       f32 [T, D]

An adapter is a bottleneck MLP behind attention and behind the MLP of each layer, before the residual sum
(`models/layers.Projection`): y + relu(y @ adapter_down) @ adapter_up. `adapter_up` starts at zero, so that training
begins at the language model itself. The prompt's vectors stand in front of every text like words, behind its bos
(`batch.open_row`); they start as embeddings of words, so that a prompt, unlike the others, changes what the language
model says from the first step on.

Source: MAGMA, Eichenberg et al. 2021, arXiv 2112.05253 (adapters beside a prefix that sees); Lester et al. 2021, arXiv
2104.08691 (prompt tuning).
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from frozen_jax.adaptation_settings import AdaptationSettings
from frozen_jax.errors import UserError
from frozen_jax.lora import FACTORS, draw_lora, merge_lora
from frozen_jax.quantise import dequantise_lm
from frozen_jax.state import Params, flatten, unflatten

ADAPTERS = r"blocks/(out|down)/adapter_(down|up)"
"""Paths of the adapters within a language model."""

PROMPT = "prompt/vectors"
"""Path of the learned prompt within a language model."""

ADDED = f"({FACTORS}|{ADAPTERS}|{PROMPT})"
"""Paths of all that is added to a language model."""

COMMON_WORDS = 5000
"""A prompt's first vectors are those of words among so many first ids, which byte-pair merges order by frequency."""


def adapt_lm(rng: Key[Array, ""], params: Params, *, lora_rank: int, settings: AdaptationSettings) -> Params:
    """Returns a language model's parameters with what is added to them, freshly drawn.

    Args:
        rng: of all that is drawn.
        params: {"embed": …, "blocks": …}, arrays of any dtype or int8 kernels.
        lora_rank: R of low-rank factors; 0 is none.
        settings: sizes of the others.
    """
    if lora_rank:
        params = draw_lora(rng, params, rank=lora_rank)
    flat = flatten(params)
    added: dict[str, Any] = {}
    if settings.adapter_width:
        kernels = [path for path in flat if re.fullmatch("blocks/(out|down)/kernel", path)]
        for key, path in zip(jax.random.split(jax.random.fold_in(rng, 1), len(kernels)), kernels, strict=True):
            layers, width, place = flat[path].shape[0], flat[path].shape[-1], path.removesuffix("kernel")
            down = jax.random.normal(key, (layers, width, settings.adapter_width), jnp.float32)
            added[f"{place}adapter_down"] = down / math.sqrt(width)
            added[f"{place}adapter_up"] = jnp.zeros((layers, settings.adapter_width, width), jnp.float32)
    if settings.prompt_length:
        table = params["embed"]["embedding"]
        key, words = jax.random.fold_in(rng, 2), min(COMMON_WORDS, table.shape[0])
        chosen = jax.random.randint(key, (settings.prompt_length,), 0, words)
        added[PROMPT] = jnp.take(jnp.asarray(table), chosen, axis=0).astype(jnp.float32)
    return unflatten(flat | added)


def split_added(params: Params) -> tuple[Params, Params]:
    """Splits a language model into its own parameters and what was added to them, {} where nothing was."""
    flat = flatten(params)
    added = {path: leaf for path, leaf in flat.items() if re.fullmatch(ADDED, path)}
    return unflatten({path: leaf for path, leaf in flat.items() if path not in added}), unflatten(added)


def widen_lm(params: Params) -> Params:
    """Returns a language model's parameters as any program reads them: float32, on the host, with int8 kernels and
    low-rank factors multiplied out.

    Raises:
        UserError: it has adapters or a learned prompt, for which its layers have no place.
    """
    if any(re.fullmatch(f"{ADAPTERS}|{PROMPT}", path) for path in flatten(params)):
        raise UserError(
            "this run has config.adaptation: adapters and learned prompts have no place among a published language "
            "model's weights; adapt by lm.lora_rank, which is multiplied out, to export"
        )
    # Widened first: what was learnt is small beside a kernel, and bfloat16 would round much of it away.
    host = dequantise_lm(jax.device_get(params))
    return merge_lora(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), host))


def count_prompt(params: Params) -> int:
    """Returns T, the learned vectors in front of texts, of a whole tree of parameters; 0 where there are none."""
    prompt = params["lm"].get("prompt")
    return len(prompt["vectors"]) if prompt else 0
