"""The section `telemetry` of the config: what a run shows beside scalars, and where. Written by `writers.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TelemetrySettings:
    """What TensorBoard gets beside scalars, and whether Weights & Biases gets the same.

    Attributes:
        captions: validation pictures that are shown after training, each with its reference captions and the model's;
            0 is none.
        wandb: project of Weights & Biases, which gets all that TensorBoard gets; "" is none. Needs `frozen_jax[wandb]`;
            its own environment variables (WANDB_MODE, WANDB_API_KEY, …) say where and as whom.
    """

    captions: int = 8
    wandb: str = ""


def check_telemetry(telemetry: TelemetrySettings, require: Callable[[bool, str, Any, str], None]) -> None:
    """Checks the section; `require` is that of `config._check`."""
    require(telemetry.captions >= 0, "telemetry.captions", telemetry.captions, "it must not be negative")
