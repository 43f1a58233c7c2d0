"""Who may attend to whom, and at which position: masks and positions from padding, segments and caches.

Lives here: pure functions on booleans and integers. The language models that use them: `gpt2.py`, `opt.py`, `llama.py`.

    input_mask (1 = a token or an image slot, 0 = padding), left-padded: 0 0 1 1 1
    positions_from_mask                                                : 0 0 0 1 2
    causal_mask, one row per query    q0  . . . . .     a padding query attends to nothing; the softmax over an
                                      q1  . . . . .     entirely masked row is uniform, hence finite, and its result
                                      q2  . . x . .     is never read
                                      q3  . . x x .
                                      q4  . . x x x
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal_mask(input_mask: Bool[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Returns which key each query may see: itself and what stands before it, padding never.

    Args:
        input_mask: true where there is a token or an image slot; padding may stand on either side.
    """
    steps = jnp.arange(input_mask.shape[1])
    earlier = steps[:, None] >= steps[None, :]
    return earlier[None, :, :] & input_mask[:, None, :] & input_mask[:, :, None]


def segment_mask(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Returns a causal mask for rows that hold several independent texts.

    Args:
        segments: number of the text that each position belongs to, from 1; 0 is padding.

    Example: segments 1 1 2 2 0

        q0  x . . . .
        q1  x x . . .
        q2  . . x . .
        q3  . . x x .
        q4  . . . . .
    """
    same = segments[:, :, None] == segments[:, None, :]
    return causal_mask(segments > 0) & same


def cache_mask(
    cache_input_mask: Bool[Array, "B K"], *, cache_index: Int[Array, ""] | int, queries: int
) -> Bool[Array, "B S K"]:
    """Returns which cache entries the `queries` new positions may see.

    Args:
        cache_input_mask: true where the cache holds, or is about to be given, a real token.
        cache_index: cache entry of the first new position, in [0, K - S].
        queries: S, number of new positions.

    Example: K = 5, cache_index = 3, queries = 2, left-padded by one

        cache_input_mask   0 1 1 1 1
        query at 3         . x x x .
        query at 4         . x x x x
    """
    keys = jnp.arange(cache_input_mask.shape[1])
    steps = jnp.arange(queries) + cache_index
    earlier = steps[:, None] >= keys[None, :]
    return earlier[None, :, :] & cache_input_mask[:, None, :]


def positions_from_mask(input_mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Returns each token's position within its own text: real tokens count from 0, padding does not count.

    Padding before the text gets position 0; padding behind it repeats the last position. Both are masked.
    """
    return jnp.maximum(jnp.cumsum(input_mask.astype(jnp.int32), axis=1) - 1, 0)


def positions_from_segments(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Returns each token's position within its own text, for rows that hold several texts.

    Example: segments 1 1 1 2 2 0 0 → positions 0 1 2 0 1 0 0 (padding is masked; a row may be longer than the model)
    """
    steps = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    changed = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    own = steps - jax.lax.cummax(jnp.where(changed, steps, 0), axis=1)
    return jnp.where(segments > 0, own, 0)
