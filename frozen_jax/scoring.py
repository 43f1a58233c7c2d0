"""Log-probabilities of given texts, and embeddings of texts, without generating anything. Beside `decode.py`.

Not here: batching and ids (`api.py`), what is asked and how it is counted (`tasks/`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from frozen_jax.batch import PAD
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.masks import cache_mask
from frozen_jax.prefill import Beginning, prefill


@functools.partial(jax.jit, static_argnames=("module",))
def score_continuations(
    module: Any,
    params: Mapping[str, Any],
    embeddings: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    continuations: Sequence[Int32[Array, "_ B _"]],
    beginning: Beginning | None,
) -> Float32[Array, "B C"]:
    """Sums the log-probabilities (nats) of each continuation's tokens after its prompt.

    A prompt is run once; its continuations read the same cache, each as if it were the only one. What a first token is
    worth the prompt's run has said, so that continuations of one token cost nothing more.

    Args:
        module: language model from `models.lm.build_lm`.
        params: its parameters.
        embeddings: left-padded prompts, words and image prefixes alike.
        mask: True at prompt positions.
        continuations: ids, padded on the right with PAD, at least one each, in groups that differ in T; those of the
            result stand in the groups' order.
        beginning: what stands before `embeddings` in each prompt, or None.
    """
    room = max(1, max(group.shape[2] for group in continuations) - 1)  # the last token is never fed
    first, cache, held = prefill(params, embeddings, mask, beginning, module=module, room=room)
    length = held.shape[1]
    filled = jnp.pad(held, ((0, 0), (0, room)), constant_values=True)
    opening = jax.nn.log_softmax(first.astype(jnp.float32), axis=1)
    unrolled = module.clone(unroll=module.config.layers)  # as in decoding: no copies of each layer's weights

    def score(tokens: Int32[Array, "B T"]) -> Float32[Array, " B"]:
        begun = jnp.take_along_axis(opening, tokens[:, :1], axis=1)[:, 0]
        queries = tokens.shape[1] - 1
        if not queries:
            return begun
        count = (tokens != PAD).sum(axis=1, dtype=jnp.int32)
        # Positions of padding stay within the text, hence within the model's table; nothing reads what stands there.
        places = jnp.minimum(jnp.arange(queries, dtype=jnp.int32)[None, :], count[:, None] - 1)
        hidden, _ = unrolled.apply(
            {"params": params},
            unrolled.apply({"params": params}, jnp.maximum(tokens[:, :-1], 0), method="embed"),
            positions=held.sum(axis=1, dtype=jnp.int32)[:, None] + places,
            mask=cache_mask(filled, cache_index=length, queries=queries),
            cache=cache,
            cache_index=jnp.int32(length),
            method="stack",
        )
        logits = unrolled.apply({"params": params}, hidden, method="logits").astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, jnp.maximum(tokens[:, 1:], 0)[:, :, None], axis=2)[:, :, 0]
        worth = jnp.where(tokens[:, 1:] != PAD, chosen - jax.nn.logsumexp(logits, axis=2), 0.0)
        return begun + worth.sum(axis=1)

    return jnp.concatenate([lax.map(score, group) for group in continuations]).T


def score_rows(
    module: Any,
    params: Mapping[str, Any],
    embeddings: Float[Array, "B S D"],
    mask: Bool[np.ndarray, "B S"],
    rows: Sequence[Sequence[Sequence[int]]],
    beginning: Beginning | None,
    *,
    lengths: Sequence[int],
) -> list[list[float]]:
    """Scores continuations in groups of about one length, so that short ones are not run as padding of long ones.

    Args:
        module: as for `score_continuations`, as are `params`, `embeddings`, `mask` and `beginning`.
        rows: for each prompt the ids of its continuations, C of them.
        lengths: the most tokens that each of the C has in any row of any batch: shapes must not depend on the batch.

    Returns:
        log-probabilities, B rows of C.
    """
    rooms = [1 << (length - 1).bit_length() for length in lengths]
    groups: list[Int32[np.ndarray, "C B T"]] = []
    order: list[int] = []
    for room in sorted(set(rooms)):
        columns = [column for column, own in enumerate(rooms) if own == room]
        tokens = np.full((len(columns), len(rows), room), PAD, np.int32)
        for place, row in enumerate(rows):
            for number, column in enumerate(columns):
                tokens[number, place, : len(row[column])] = row[column]
        groups.append(tokens)
        order += columns
    scored = np.asarray(score_continuations(module, params, embeddings, mask, groups, beginning))
    found: list[list[float]] = scored[:, np.argsort(order)].tolist()
    return found


@functools.partial(jax.jit, static_argnames=("model",))
def pool_states(
    model: FrozenModel, params: Mapping[str, Any], embeddings: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float32[Array, "B D2"]:
    """Returns the mean, over a prompt's positions, of the language model's last hidden states."""
    hidden = model.run_lm(dict(params), embeddings, mask.astype(jnp.int32)).astype(jnp.float32)
    total = jnp.where(mask[:, :, None], hidden, 0.0).sum(axis=1)
    return total / mask.sum(axis=1, dtype=jnp.float32)[:, None]


@functools.partial(jax.jit, static_argnames=("model",))
def map_texts(
    model: FrozenModel, params: Mapping[str, Any], embeddings: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float32[Array, "B W"]:
    """Returns the unit vectors by which left-padded prompts find pictures (`FrozenModel.map_texts`)."""
    return model.map_texts(dict(params), embeddings, mask)


@functools.partial(jax.jit, static_argnames=("model",))
def pool_images(
    model: FrozenModel, params: Mapping[str, Any], images: UInt8[Array | np.ndarray, "B 1 height width 3"]
) -> Float32[Array, "B E"]:
    """Returns the encoder's pooled features of pictures."""
    return model.pool_images(dict(params), images)[:, 0].astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("model",))
def map_images(
    model: FrozenModel, params: Mapping[str, Any], images: UInt8[Array | np.ndarray, "B 1 height width 3"]
) -> Float32[Array, "B W"]:
    """Returns the unit vectors by which pictures are found (`FrozenModel.map_images`)."""
    return model.map_images(dict(params), model.pool_images(dict(params), images)[:, 0])
