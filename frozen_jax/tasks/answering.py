"""Text from prompts over a trained model: encodes images once, decodes each distinct prompt once, in batches.

Used by every task that generates. No scoring here (`tasks/easy_vqa.py`), no loop over tokens (`decode.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from frozen_jax.decode import DecodeConfig, generate, prepare_decoding
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel, input_mask
from frozen_jax.prompt import Prompt, encode_prompt, lay_out
from frozen_jax.state import Params
from frozen_jax.tokenizer import Tokenizer

LENGTH_STEP = 8
"""Prompts are padded to a multiple of this, so that few shapes are compiled."""


@functools.partial(jax.jit, static_argnums=0)
def _embed_images(model: FrozenModel, params: Params, images: UInt8[Array, "B 1 height width 3"]) -> Array:
    return model.embed_images(params, images)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _embed_prompts(
    model: FrozenModel, params: Params, tokens: Int[Array, "B S"], table: Float[Array, "R P D"], rows: Int[Array, "B I"]
) -> Float[Array, "B S D"]:
    return model.embed(params, tokens, table[rows] if rows.shape[1] else None)


def encode_images(
    model: FrozenModel, params: Params, images: UInt8[np.ndarray, "R height width 3"], *, batch_size: int
) -> Float[Array, "R P D"]:
    """Returns the table of prefixes of many images."""
    parts = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        filled = np.concatenate([chunk, np.repeat(chunk[:1], batch_size - len(chunk), axis=0)])
        parts.append(_embed_images(model, params, filled[:, None])[: len(chunk)])
    return jnp.concatenate(parts)


def complete(
    model: FrozenModel,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    prefixes: Float[Array, "R P D"] | None = None,
    bos: bool,
    decode: DecodeConfig,
    batch_size: int,
) -> list[str]:
    """Continues each prompt and returns the new text, without special tokens.

    Equal prompts are decoded once: with black images, or descriptions in words, few differ.

    Args:
        prefixes: table that the prompts' images point into; None for prompts without images.
        bos: begin each prompt with the tokenizer's beginning-of-sequence token.
        decode: method, length and stop rule.
        batch_size: prompts decoded together; the last batch is filled up.

    Raises:
        UserError: a prompt and its answer exceed the language model's positions.
    """
    distinct = list(dict.fromkeys(prompts))
    bos_id = tokenizer.bos_id if bos else None
    encode = functools.lru_cache(maxsize=65536)(tokenizer.encode)
    ids = [encode_prompt(p, encode=encode, prefix_length=model.prefix_length, bos_id=bos_id) for p in distinct]
    order = sorted(range(len(distinct)), key=lambda i: len(ids[i]))
    lm, lm_params = prepare_decoding(model.lm, params["lm"])
    texts: dict[Prompt, str] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        length = -(-len(ids[chunk[-1]]) // LENGTH_STEP) * LENGTH_STEP
        _check_length(length, decode.max_new_tokens, model)
        filled = chunk + chunk[:1] * (batch_size - len(chunk))
        rows = lay_out([ids[i] for i in filled], [distinct[i] for i in filled], length=length)
        tokens = jnp.asarray(rows.tokens)
        embeddings = _embed_prompts(model, params, tokens, prefixes, jnp.asarray(rows.images))
        made = generate(lm, lm_params, embeddings, input_mask(tokens), config=decode)
        for i, new_ids in zip(chunk, _words(made, decode), strict=False):
            texts[distinct[i]] = tokenizer.decode(new_ids)
    return [texts[prompt] for prompt in prompts]


def _words(made: Any, decode: DecodeConfig) -> Iterable[list[int]]:
    """The new ids of each row, without the stop token."""
    tokens, lengths = jax.device_get((made.tokens, made.lengths))
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        words = row[:length]
        yield words[:-1] if words and words[-1] in decode.stop_ids else words


def _check_length(length: int, new: int, model: FrozenModel) -> None:
    most = model.lm.config.max_positions
    if most and length + new > most:
        raise UserError(
            f"a prompt of {length} positions and {new} new tokens exceed the language model's {most}; give fewer "
            "shots, a shorter text or a smaller max_new_tokens"
        )
