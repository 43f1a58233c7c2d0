"""A digest of an array's bits that each process makes of its own shards, and that is verified on any other sharding.

Does not live here: what is digested and what a difference means. Next in the data flow: checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import xxhash

from frozen_jax.processes import fetch_whole, gather_bytes

_BYTES = 16


class Digest(NamedTuple):
    """What is recorded of an array.

    Attributes:
      block: shape of the blocks that were digested, the shards of the array at that time.
      sum: over the blocks, 32 hexadecimal digits.
    """

    block: tuple[int, ...]
    sum: str


def digest_arrays(
    arrays: Mapping[str, jax.Array], *, blocks: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Digest]:
    """Digests the bits of every array: the sum over its blocks of XXH3-128(bytes of the block, seed = its number).

    The sum does not depend on who holds which block. So every process digests its own shards, without a copy; only
    where an array is to be digested in other blocks than its shards is it put together first.

    Args:
      arrays: by name.
      blocks: of each array, from a `Digest`; its shards by default.

    Returns:
      By name, the same on all processes.

    Source: XXH3, https://github.com/Cyan4973/xxHash; damage is missed with probability 2^-128 (no defence against
    somebody who wants to be missed).
    """
    cuts = {name: array.sharding.shard_shape(array.shape) for name, array in arrays.items()}
    wanted = cuts if blocks is None else {name: tuple(blocks[name]) for name in arrays}
    sums = []
    for name, array in arrays.items():
        total = 0
        if wanted[name] == cuts[name]:
            for shard in array.addressable_shards:
                if shard.replica_id == 0:
                    starts = [part.indices(size)[0] for part, size in zip(shard.index, array.shape, strict=True)]
                    total += _digest_block(np.asarray(shard.data), starts, shape=array.shape)
        else:
            whole = np.asarray(array if array.is_fully_addressable else fetch_whole(array))
            if jax.process_index() == 0:
                total = _digest_whole(whole, wanted[name])
        sums.append(total % 2 ** (8 * _BYTES))
    own = b"".join(total.to_bytes(_BYTES, "big") for total in sums)
    everybodys = gather_bytes(own)
    return {
        name: Digest(wanted[name], _add([part[start : start + _BYTES] for part in everybodys]))
        for name, start in zip(arrays, range(0, len(own), _BYTES), strict=True)
    }


def _digest_whole(array: np.ndarray, block: tuple[int, ...]) -> int:
    """Digests an array block by block."""
    counts = [-(-size // max(part, 1)) for size, part in zip(array.shape, block, strict=True)]
    total = 0
    for corner in np.ndindex(*counts):
        starts = [place * part for place, part in zip(corner, block, strict=True)]
        piece = array[tuple(slice(start, start + part) for start, part in zip(starts, block, strict=True))]
        total += _digest_block(piece, starts, shape=array.shape)
    return total


def _digest_block(block: np.ndarray, starts: list[int], *, shape: tuple[int, ...]) -> int:
    """Digests the block that begins at `starts` in an array of `shape`."""
    number = 0
    for start, part, size in zip(starts, block.shape, shape, strict=True):
        number = number * -(-size // max(part, 1)) + start // max(part, 1)
    content = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
    return xxhash.xxh3_128_intdigest(content, seed=number)


def _add(parts: list[bytes]) -> str:
    return f"{sum(int.from_bytes(part, 'big') for part in parts) % 2 ** (8 * _BYTES):0{2 * _BYTES}x}"
