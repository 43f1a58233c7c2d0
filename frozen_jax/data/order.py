"""The order of samples as a pure function of (seed, epoch, index), and the random draws that belong to one sample.

Nothing here has state: any host can ask for any place of any epoch, so a run resumes at every step at no cost and the
same global batch comes out on any number of hosts. No images and no text here; next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from frozen_jax.errors import UserError

_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


@dataclass(frozen=True, order=True)
class Position:
    """A place in the endless stream of samples: what a checkpoint keeps.

    Attributes:
        epoch: passes over the source that are complete.
        index: samples of the current pass that are already used, 0 <= index < size.
    """

    epoch: int
    index: int

    def advance(self, count: int, *, size: int) -> Position:
        """Returns the position after `count` more samples of a source of `size`."""
        epoch, index = divmod(self.epoch * size + self.index + count, size)
        return Position(epoch, index)


def sample_indices(seed: int, epoch: int, start: int, count: int, size: int) -> Int64[np.ndarray, " count"]:
    """Returns which samples stand at places start .. start+count-1 of an epoch's shuffled order.

    A keyed bijection of range(size) ("swap or not"): in each round every number x has one partner, K - x modulo size,
    and a coin that belongs to the pair and the round says whether the two change places. No table of `size` entries
    is made: cost and memory are O(count).

    Args:
        seed: any integer; another seed is another order.
        epoch: passes complete; another epoch is another order.
        start: first place, 0 <= start.
        count: number of places; start + count <= size.
        size: samples in the source, 1 .. 2**62.

    Raises:
        UserError: the places do not lie inside the epoch.

    Source: Hoang, Morris, Rogaway, "An enciphering scheme based on a card shuffle" (2012), arXiv 1208.1176.
    """
    if not (start >= 0 and count >= 0 and start + count <= size and 1 <= size <= 1 << 62):
        raise UserError(
            f"order: places {start}..{start + count} are outside an epoch of {size} samples; "
            "ask for places inside one epoch, or use stream_indices"
        )
    rounds = 24 + 3 * size.bit_length()
    keys = hash_keys(seed, epoch, count=2 * rounds)
    places = np.arange(start, start + count, dtype=np.int64)
    for pivot, coin_key in zip((keys[:rounds] % np.uint64(size)).astype(np.int64), keys[rounds:], strict=True):
        partner = pivot - places
        partner += (partner < 0) * np.int64(size)
        coin = np.maximum(places, partner).astype(np.uint64)
        coin ^= coin_key
        coin *= _MIX_1
        coin ^= coin >> np.uint64(32)
        coin *= _MIX_2
        places = np.where(coin >> np.uint64(63), partner, places)
    return places


def sample_index(seed: int, epoch: int, index: int, size: int) -> int:
    """Returns the one sample at place `index` of an epoch: `sample_indices` for a single place."""
    return int(sample_indices(seed, epoch, index, 1, size)[0])


def stream_indices(
    seed: int, position: Position, count: int, size: int, *, shuffle: bool = True
) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
    """Returns (samples, their epochs) for the next `count` samples after a position, running on into later epochs.

    Args:
        seed: of the order.
        position: where to start.
        count: number of samples; may be larger than `size`.
        size: samples in the source.
        shuffle: False keeps the source's own order in every epoch.
    """
    if size < 1:
        raise UserError("order: the source holds no samples; check the data path and the split")
    samples, epochs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    while count > 0:
        taken = min(count, size - position.index)
        if shuffle:
            samples.append(sample_indices(seed, position.epoch, position.index, taken, size))
        else:
            samples.append(np.arange(position.index, position.index + taken, dtype=np.int64))
        epochs.append(np.full(taken, position.epoch, np.int64))
        position, count = position.advance(taken, size=size), count - taken
    return np.concatenate(samples), np.concatenate(epochs)


def hash_keys(*words: int, count: int) -> UInt64[np.ndarray, " count"]:
    """Returns `count` pseudo-random 64-bit words that depend on every one of the given integers and on their order."""
    state = 0
    for word in words:
        state = _mix_int((state + _STEP) ^ (word & _WORD))
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(state)
    return _mix(counters)


def uniforms(
    seed: int, epochs: Int64[np.ndarray, " B"], samples: Int64[np.ndarray, " B"], *, stream: str, count: int
) -> Float64[np.ndarray, "B count"]:
    """Returns `count` uniform numbers in [0, 1) for each sample, a pure function of (seed, epoch, sample, stream).

    Args:
        seed: of the run.
        epochs: the epoch in which each sample is drawn.
        samples: the samples' numbers in their source.
        stream: what the numbers are for ("augment", …); different streams are independent.
        count: numbers per sample.
    """
    key = np.uint64(_stream_key(seed, stream))
    rows = _mix(_mix(epochs.astype(np.uint64) + key) ^ samples.astype(np.uint64))
    words = _mix(rows[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None, :] * np.uint64(_STEP))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_rng(seed: int, epoch: int, sample: int, *, stream: str) -> np.random.Generator:
    """Returns the random generator that belongs to one sample in one epoch (for the choice and wording of its text)."""
    # seeded with words of our own: default_rng takes seven times as long for its seeding alone
    word = _mix_int(_mix_int(_stream_key(seed, stream) + epoch) ^ sample)
    return np.random.Generator(np.random.PCG64(cast(Any, _Words(word))))


class _Words(np.random.bit_generator.ISeedSequence):
    """Seeds a bit generator with hashed words."""

    def __init__(self, word: int):
        self._word = word

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """Returns `n_words` words; numpy's generators ask for 64-bit ones."""
        words = [_mix_int(self._word + i * _STEP) for i in range(1, n_words + 1)]
        return np.asarray(np.array(words, np.uint64).astype(dtype))


@functools.lru_cache(maxsize=256)
def _stream_key(seed: int, stream: str) -> int:
    return int(hash_keys(seed, *stream.encode(), count=1)[0])


def _mix(words: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """Scrambles 64-bit words (the finaliser of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed


def _mix_int(word: int) -> int:
    word &= _WORD
    word = ((word ^ (word >> 30)) * int(_MIX_1)) & _WORD
    word = ((word ^ (word >> 27)) * int(_MIX_2)) & _WORD
    return word ^ (word >> 31)
