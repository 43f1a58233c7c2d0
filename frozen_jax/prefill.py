"""Prompts into the cache: whole, or what follows a beginning that several of them share and that is run once.

Two prompts of one beginning and a third of another, S1 = 4, S = 3; i is an image slot, . is masked out:

    cache index    0    1    2    3  |  4    5    6
    row 0          i    i    a    dax   .    i    i      owners 0: the columns 0 to 3 are copied from beginning 0
    row 1          i    i    a    dax   i    i    is            0
    row 2          .    .    a    wug   i    i    is            1

Next in the data flow: `decode.py` and `scoring.py`, which go on from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from frozen_jax.models.layers import Cache
from frozen_jax.models.lm import init_cache
from frozen_jax.models.masks import cache_mask, causal_mask, positions_from_mask


class Beginning(NamedTuple):
    """What prompts of a batch begin with, several of them with the same: run once for all that do.

    Attributes:
        embeddings: of the G different beginnings, left-padded.
        mask: True at their positions; a beginning may be empty.
        owners: which beginning each prompt continues.
    """

    embeddings: Float[Array, "G S1 D"]
    mask: Bool[Array, "G S1"] | Bool[np.ndarray, "G S1"]
    owners: Int32[Array, " B"] | Int32[np.ndarray, " B"]


def prefill(
    params: Mapping[str, Any],
    embeddings: Float[Array, "B S D"],
    input_mask: Bool[Array, "B S"],
    beginning: Beginning | None,
    *,
    module: Any,
    room: int,
) -> tuple[Float[Array, "B V"], Cache, Bool[Array, "B K"]]:
    """Runs left-padded prompts once.

    Args:
        params: of the language model.
        embeddings: prompts, or what follows their beginnings, words and image prefixes alike.
        input_mask: True at prompt positions.
        beginning: what stands before them, or None.
        module: language model.
        room: positions that the cache has behind those of the prompts.

    Returns:
        Logits behind the prompts' last positions, the filled cache, and which of its columns, without `room`, hold a
        position.
    """

    def run(
        embeddings: Array, positions: Array, mask: Array, cache: Cache, start: int
    ) -> tuple[Float[Array, "rows S D"], Cache]:
        ran: tuple[Array, Cache] = module.apply(
            {"params": params},
            embeddings,
            positions=positions,
            mask=mask,
            cache=cache,
            cache_index=jnp.int32(start),
            method="stack",
        )
        return ran

    def make_cache(rows: int, length: int) -> Cache:
        return init_cache(module.config, batch=rows, length=length, dtype=module.dtype)

    batch, length = input_mask.shape
    before = 0
    if beginning is None:
        held = input_mask
        cache = make_cache(batch, length + room)
        mask = jnp.pad(causal_mask(input_mask), ((0, 0), (0, 0), (0, room)))
    else:
        rows, before = beginning.mask.shape
        first = jnp.asarray(beginning.mask)
        _, shared = run(
            beginning.embeddings, positions_from_mask(first), causal_mask(first), make_cache(rows, before), 0
        )
        held = jnp.concatenate([first[beginning.owners], input_mask], axis=1)
        behind = ((0, 0), (0, 0), (0, 0), (0, length + room), (0, 0))
        cache = jax.tree.map(lambda x: jnp.pad(x[:, beginning.owners], behind), shared)
        mask = cache_mask(jnp.pad(held, ((0, 0), (0, room))), cache_index=before, queries=length)
    hidden, cache = run(embeddings, positions_from_mask(held)[:, before:], mask, cache, before)
    return module.apply({"params": params}, hidden[:, -1:], method="logits")[:, 0], cache, held
