"""The section `faults` of the config: what a run does at a numerical fault. What it means: `faults.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class FaultSettings:
    """What a run does at a loss or gradient that is not finite, or at a loss that leaps.

    Attributes:
        action: "raise" stops, "skip" leaves out the step's update, "rollback" goes back to the newest checkpoint and
            leaves out the batches from there to the faulty one.
        limit: so many faults are borne; one more stops the run.
        spike: a loss above so many times its running average is a fault; 0 is off.
    """

    action: Literal["raise", "skip", "rollback"] = "raise"
    limit: int = 10
    spike: float = 0.0


def check_faults(faults: FaultSettings, require: Callable[[bool, str, Any, str], None]) -> None:
    """Checks the section; `require` is that of `config._check`."""
    require(faults.limit >= 0, "faults.limit", faults.limit, "it must not be negative")
    rule = "a loss is a fault above so many times its running average; give more than 1, or 0 to turn it off"
    require(faults.spike == 0 or faults.spike > 1, "faults.spike", faults.spike, rule)
