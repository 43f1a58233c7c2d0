"""What to do with items that cannot be used, and the account of them. Recognising them is up to `images.py` and others.

Next in the data flow: `pipeline.py`, which asks `replacement` for another sample and lists the bad one here.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
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
    """Counts and lists bad items; each is counted once, however often it comes up. Safe to use from several threads.

    With a file the account outlives the process: one JSON line per item, so that a run that was interrupted goes on
    with it, and `report_bad_items` joins those of several hosts.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Takes up the account that the file holds already.

        Args:
            path: made, with its folder, when the first bad item comes up; None keeps the account in memory alone.

        Raises:
            UserError: the file cannot be read.
        """
        self._path = path
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        self._ids: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        if path is not None and path.exists():
            self.read(path)

    def __contains__(self, sample: int) -> bool:
        return sample in self._seen

    def add(self, sample: int, *, item_id: str, reason: str) -> bool:
        """Enters one item; returns False if it was entered before."""
        with self._lock:
            if sample in self._seen:
                return False
            if self._path is not None:
                _append(self._path, {"sample": sample, "id": item_id, "reason": reason})
            self._enter(sample, item_id, reason)
            return True

    def read(self, path: Path) -> None:
        """Adds the items of a file; a last line that a kill cut short is passed over.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the list of bad items cannot be read ({error}); mend or remove it") from error
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                item = json.loads(line)
                sample, item_id, reason = int(item["sample"]), str(item["id"]), str(item["reason"])
                if sample not in self._seen:
                    self._enter(sample, item_id, reason)

    def _enter(self, sample: int, item_id: str, reason: str) -> None:
        self._seen.add(sample)
        self._counts[reason] = self._counts.get(reason, 0) + 1
        ids = self._ids.setdefault(reason, [])
        if len(ids) < LISTED:
            ids.append(item_id)

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


def _append(path: Path, item: Mapping[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(item))  # the end of line comes first: a line that a kill cut short stays alone
    except OSError as error:
        raise UserError(
            f"{path}: a bad item could not be listed ({error.strerror}); make space or mend the disk, then start the "
            "same command again to resume"
        ) from error


def report_bad_items(paths: Iterable[Path]) -> dict[str, dict[str, object]]:
    """Returns the joint account of several files, as `BadItems.report`: those of the hosts of a run."""
    joint = BadItems()
    for path in sorted(paths):
        joint.read(path)
    return joint.report()


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
