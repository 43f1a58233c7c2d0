"""Which records of the training data are kept for validation: by picture, so that none is on both sides.

A table may have a line for each caption of a picture, a mixture repeats the records of a part, and two parts may hold
the same picture. So parts are split before they are mixed, and what else shows a held-out picture is not trained on.
Next in the data flow: `sources.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from frozen_jax.data.order import sample_indices
from frozen_jax.data.records import RecordError, Source, Subset
from frozen_jax.errors import UserError

SEED = 0
"""Not the run's: what is held out is the same in every run."""


def hold_out(sources: Sequence[Source], weights: Sequence[float], *, count: int) -> tuple[list[Subset], list[Subset]]:
    """Splits each source at random into (the rest, records held out), the same way in every run.

    Args:
        sources: the parts of a mixture, or one.
        weights: what share of the held-out records is of each, of any sum.
        count: records held out of all together; of each source at least one and at most a tenth, rounded up.

    Returns:
        rests and held-out records, by source. Further lines about the last pictures that were held out, where `count`
        cuts them off, are on neither side.

    Raises:
        UserError: a source of which nothing would be left.
    """
    pictures = [_number_pictures(source, number) for number, source in enumerate(sources)]
    held = []
    for numbers, weight in zip(pictures, weights, strict=True):
        most = max(1, min(round(count * weight / sum(weights)), -(-len(numbers) // 10)))
        held.append(_choose(numbers, most))
    shown = np.concatenate([numbers[chosen] for numbers, chosen in zip(pictures, held, strict=True)])
    rests = []
    for source, numbers in zip(sources, pictures, strict=True):
        left = np.flatnonzero(~np.isin(numbers, shown))
        if not len(left):
            raise UserError(
                f"data: records held out of {len(source)} for validation would leave none to train on; give more "
                "records, or name data.validation"
            )
        rests.append(Subset(source, left))
    return rests, [Subset(source, chosen) for source, chosen in zip(sources, held, strict=True)]


def _choose(pictures: Int64[np.ndarray, " N"], most: int) -> Int64[np.ndarray, " held"]:
    """Returns the records of as many pictures, drawn at random, as give `most` records."""
    order = sample_indices(SEED, 0, 0, len(pictures), len(pictures))
    drawn, first, counts = np.unique(pictures[order], return_index=True, return_counts=True)
    turns = np.argsort(first)  # the pictures as they come up
    enough = int(np.searchsorted(np.cumsum(counts[turns]), most)) + 1
    return np.flatnonzero(np.isin(pictures, drawn[turns[:enough]]))[:most]


def _number_pictures(source: Source, number: int) -> Int64[np.ndarray, " N"]:
    """Returns a number for each record, equal where two show the same file, here or in another source."""
    own = [hash((number, index)) for index in range(len(source))]
    for index in range(len(source)):
        try:
            image = source.record(index).image
        except RecordError:  # shows nothing
            continue
        if not isinstance(image, Path):  # each record of such a source has a picture of its own, or none
            break
        own[index] = hash(image)
    return np.array(own, np.int64)
