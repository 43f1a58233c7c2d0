"""Numerical faults: a loss or gradient that is not finite, a loss that leaps; what a run does then. Used by `train.py`.

Not here: leaving out the update of a faulty step, which is part of the compiled step (`steps.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from frozen_jax.data.order import Position
from frozen_jax.errors import UserError
from frozen_jax.fault_settings import FaultSettings
from frozen_jax.processes import is_first
from frozen_jax.telemetry import check_finite
from frozen_jax.workdir import write_text_atomic

FAULTS = "faults.jsonl"
_KEEP = 0.98  # of the running average in each step


class Health(NamedTuple):
    """What a run knows about its losses; a checkpoint keeps it.

    Attributes:
        faults: met so far.
        average: running average of the losses without a fault; 0 before the first.
        limit: a loss above is a fault; moved at the steps that are logged anyway, so that it does not depend on when
            the losses were fetched.
    """

    faults: int = 0
    average: float = 0.0
    limit: float = math.inf


class Rollback(Exception):
    """A faulty step; the run goes back to its newest checkpoint and takes up the batches behind the faulty one.

    Attributes:
        step: the faulty one.
        position: in the stream of samples, after its batch.
        faults: met so far.
    """

    def __init__(self, step: int, position: Position, faults: int) -> None:
        super().__init__(f"step {step}")
        self.step, self.position, self.faults = step, position, faults


def observe(
    health: Health,
    step: int,
    metrics: Mapping[str, float],
    sample_ids: Iterable[Any],
    *,
    position: Position,
    settings: FaultSettings,
    directory: Path,
) -> Health:
    """Takes note of one step's loss and gradient; writes a fault to `faults.jsonl`.

    Args:
        health: before the step.
        step: its number.
        metrics: of the step, "loss" among them.
        sample_ids: of its batch.
        position: in the stream of samples, after its batch.
        settings: of the run.
        directory: workdir.

    Raises:
        NonFiniteError, UserError: the policy is "raise", or there were too many faults.
        Rollback: the policy is "rollback".
    """
    loss = metrics["loss"]
    if all(map(math.isfinite, metrics.values())) and loss <= health.limit:
        return health._replace(average=_KEEP * health.average + (1 - _KEEP) * loss if health.average else loss)
    ids = [sample.item() if hasattr(sample, "item") else sample for sample in sample_ids]
    entry = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    limit = health.limit if math.isfinite(health.limit) else None
    _record(directory, {"step": step, "action": settings.action, **entry, "loss_limit": limit, "sample_ids": ids})
    health = health._replace(faults=health.faults + 1)
    if settings.action == "raise" or health.faults > settings.limit:
        check_finite(step, metrics, ids)
        raise UserError(
            f"step {step}: loss {loss:.4g} is above {health.limit:.4g}, {settings.spike:g} times its running average; "
            f"{FAULTS} lists the samples: look at them, raise faults.spike, or set faults.action to skip or rollback"
        )
    if settings.action == "rollback":
        raise Rollback(step, position, health.faults)
    return health


def move_limit(health: Health, settings: FaultSettings) -> Health:
    """Sets the loss that is a fault from now on."""
    if not settings.spike or not health.average:
        return health
    return health._replace(limit=settings.spike * health.average)


def _record(directory: Path, entry: Mapping[str, Any]) -> None:
    """Adds a line, once: a run that was killed may meet the same fault again."""
    if not is_first():
        return
    path = directory / FAULTS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    line = json.dumps(entry) + "\n"
    if line not in text.splitlines(keepends=True):
        write_text_atomic(path, text + line)
