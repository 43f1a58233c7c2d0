"""How fast a run goes: examples a second, time of a step, wait for input, memory, MFU; and the profile window.

Next in the data flow: `telemetry.py`, which writes these beside the losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

Item = TypeVar("Item")


class Throughput:
    """Measures training between two logs; what happens between other logs (evaluation, saving) counts for nothing.

    Attributes:
        examples_per_s: over all that was measured; NaN before the second log of training.
    """

    def __init__(
        self, *, examples_per_step: int, flops_per_example: float | None = None, peak_flops_per_s: float | None = None
    ) -> None:
        """Starts at nothing.

        Args:
            examples_per_step: of all devices.
            flops_per_example: that a training step must do for one example; None leaves MFU out.
            peak_flops_per_s: of all devices together; None, as for a CPU, leaves MFU out.
        """
        self._examples_per_step = examples_per_step
        self._flops_per_example, self._peak = flops_per_example, peak_flops_per_s
        self._mark: tuple[int, float] | None = None
        self._examples = 0
        self._seconds = 0.0
        self._waited = 0.0

    @property
    def examples_per_s(self) -> float:  # noqa: D102 (see the class)
        return self._examples / self._seconds if self._seconds else math.nan

    def time_input(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, and counts the time that each was waited for."""
        iterator = iter(items)
        while True:
            start = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - start
            yield item

    def measure(self, step: int, *, training: bool) -> dict[str, float]:
        """Returns the figures since the log before this one, none where there are none, and marks this moment.

        Args:
            step: training steps done.
            training: the time since the last log went into training steps.

        Returns:
            `examples_per_s`; `step_time_s` and, of it, `input_wait_s`, both the mean of a step; `mfu`, the share of the
            devices' peak that the necessary FLOPs are (0..1); `device_memory_bytes`, the largest use so far of any
            device here.
        """
        now = time.monotonic()
        figures: dict[str, float] = {}
        if training and self._mark is not None and step > self._mark[0]:
            steps, seconds = step - self._mark[0], now - self._mark[1]
            examples = steps * self._examples_per_step
            self._examples, self._seconds = self._examples + examples, self._seconds + seconds
            rate = examples / max(seconds, 1e-9)
            figures["examples_per_s"] = round(rate, 2)
            figures["step_time_s"] = round(seconds / steps, 6)
            figures["input_wait_s"] = round(self._waited / steps, 6)
            if self._flops_per_example and self._peak:
                figures["mfu"] = round(rate * self._flops_per_example / self._peak, 4)
            memory = read_peak_memory()
            if memory:
                figures["device_memory_bytes"] = memory
        self._mark = (step, now)
        self._waited = 0.0
        return figures


def read_peak_memory() -> int:
    """Returns the largest number of bytes that any device here has had in use; 0 where it does not say, as on a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(int(entry.get("peak_bytes_in_use", 0)) for entry in stats)


class ProfileWindow:
    """Traces a window of training steps into a directory, for TensorBoard's profile tab, XProf and Perfetto."""

    def __init__(self, directory: str | Path, *, start: int, steps: int) -> None:
        """Plans the window.

        Args:
            directory: gets the trace.
            start: the first step in the window, counted from 1; 0 is no window.
            steps: how many steps.
        """
        self._directory, self._start, self._end = Path(directory), start, start + steps
        self._tracing = False

    def before(self, step: int) -> None:
        """Starts the trace if this step is the first one of the window (or of a resumed run inside it)."""
        if self._start and self._start <= step < self._end and not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace if this step is the last one of the window, once its results are there."""
        if self._tracing and step + 1 >= self._end:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace, also of a run that ends inside the window."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
