"""What to do with items that cannot be used, and the account of them. Recognising them is up to `images.py` and others.

Next in the data flow: `pipeline.py`, which asks `replacement` for another sample and lists the bad one here.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from frozen_jax.data.order import sample_rng
from frozen_jax.errors import UserError

POLICIES = ("raise", "replace")
LISTED = 1000
"""Ids kept per reason; beyond it only the count grows, so that memory stays bounded."""


class Bad(NamedTuple):
    """Why one item cannot be used.

    Attributes:
        reason: short and countable ("damaged", "no caption", …).
        message: the whole line for the user.
    """

    reason: str
    message: str


class BadItems:
    """Counts and lists bad items; each is counted once, however often it comes up. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, str] = {}
        self._ids: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def __contains__(self, sample: int) -> bool:
        return sample in self._seen

    def add(self, sample: int, *, item_id: str, reason: str) -> bool:
        """Enters one item; returns False if it was entered before."""
        with self._lock:
            if sample in self._seen:
                return False
            self._seen[sample] = reason
            self._counts[reason] = self._counts.get(reason, 0) + 1
            ids = self._ids.setdefault(reason, [])
            if len(ids) < LISTED:
                ids.append(item_id)
            return True

    @property
    def count(self) -> int:
        """Number of distinct bad items met so far."""
        return len(self._seen)

    def report(self) -> dict[str, dict[str, object]]:
        """Returns {reason: {"count": n, "ids": sorted first 1000}}, for the run's report."""
        with self._lock:
            return {
                reason: {"count": count, "ids": sorted(self._ids[reason])}
                for reason, count in sorted(self._counts.items())
            }


def replacement(sample: int, *, seed: int, epoch: int, attempt: int, size: int) -> int:
    """Returns the sample that stands in for a bad one: a pure function, so that every host chooses the same.

    Raises:
        UserError: the 32nd attempt: nearly everything is bad.
    """
    if attempt >= 32 or size < 2:
        raise UserError(
            f"data: no usable sample found in {attempt} attempts to replace sample {sample}; nearly all of this source "
            "is bad: run frozen_jax.tools.data_check on it"
        )
    return int(sample_rng(seed, epoch, sample * 32 + attempt, stream="replacement").integers(size))
