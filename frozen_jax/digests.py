"""A digest of an array's bits that does not depend on how the array is sharded.

Does not live here: what is digested and what a difference means. Next in the data flow: checkpoint.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

_CHUNK = 1 << 15  # elements digested at a time: the few temporaries stay in the second-level cache
_SPREAD = np.uint32(0x9E3779B1)  # spreads neighbouring places over 32 bits
_SPREAD_COLUMNS = np.arange(_CHUNK, dtype=np.uint32) * _SPREAD


def digest_arrays(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Digests the bits of every array to 32 bits each: the sum over its elements of mix(bits xor place).

    An integer sum does not depend on order, so neither does the digest on how an array is sharded or over how many
    processes: every process digests its own shards, and a checkpoint written on eight devices is verified on one. (A
    CRC needs all bytes of an array in one process, in one order, and in zlib it is hardly faster.) `mix` is a bijection
    of 32 bits, so damage to one element, whatever its bits, always shows; damage to several is missed with probability
    2^-32.

    Args:
      arrays: by name; dtypes of 1, 2 or 4 bytes.

    Returns:
      Eight hexadecimal digits for each name, the same on all processes.

    Source: the mixing steps are the finaliser of MurmurHash3, https://github.com/aappleby/smhasher (public domain).
    """
    sums = []
    for array in arrays.values():
        total = 0
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                starts = [part.indices(size)[0] for part, size in zip(shard.index, array.shape, strict=True)]
                total += _digest_block(np.asarray(shard.data), starts=starts, shape=array.shape)
        sums.append(total % 2**32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(np.array(sums, np.uint32)).sum(axis=0, dtype=np.uint32).tolist()
    return {name: f"{total:08x}" for name, total in zip(arrays, sums, strict=True)}


def _digest_block(block: np.ndarray, *, starts: Sequence[int], shape: tuple[int, ...]) -> int:
    """Digests the block that lies at `starts` in an array of `shape`; the sums of its blocks are the array's digest."""
    words = np.ascontiguousarray(block).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[block.dtype.itemsize])
    row_places = np.zeros(1, np.uint32)
    if block.shape == shape:
        words, first = words.reshape(1, -1), 0  # one row: long runs, whatever the last axis
    else:
        for axis in range(len(shape) - 1):
            places = (starts[axis] + np.arange(block.shape[axis])) * math.prod(shape[axis + 1 :])
            row_places = np.add.outer(row_places, places.astype(np.uint32)).reshape(-1)
        words, first = words.reshape(row_places.size, -1), starts[-1]
    rows, columns = words.shape
    row_step = max(1, _CHUNK // columns)
    total = 0
    for row in range(0, rows, row_step):
        for column in range(0, columns, _CHUNK):
            piece = words[row : row + row_step, column : column + _CHUNK]
            corner = np.uint32((first + column) % 2**32)
            mixed = ((row_places[row : row + row_step] + corner) * _SPREAD)[:, None] + _SPREAD_COLUMNS[
                None, : piece.shape[1]
            ]
            mixed ^= piece
            shifted = np.right_shift(mixed, 16)
            mixed ^= shifted
            mixed *= np.uint32(0x85EBCA6B)
            mixed ^= np.right_shift(mixed, 13, out=shifted)
            mixed *= np.uint32(0xC2B2AE35)
            mixed ^= np.right_shift(mixed, 16, out=shifted)
            total += int(np.add.reduce(mixed, axis=None))
    return total % 2**32
