"""What a run tells: `metrics.jsonl`, the progress bar, the start banner, tables, the non-finite guard.

Does not live here: what is measured (steps.py, metrics/), the report's content (train.py), other files of the workdir.
Next in the data flow: writers.py, which gives the same scalars to TensorBoard and its like.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from frozen_jax.errors import UserError
from frozen_jax.sharding import Placement, bytes_per_device
from frozen_jax.telemetry_settings import TelemetrySettings
from frozen_jax.throughput import Throughput
from frozen_jax.workdir import write_text_atomic
from frozen_jax.writers import Writers, naming_disk

Item = TypeVar("Item")

METRICS = "metrics.jsonl"
_LINE_EVERY_S = 60.0  # in a log, where a bar would be thousands of lines: one line a minute …
_LINE_AT_LEAST_S = 5.0  # … and one at each tenth of the run, but no more often than this
_SHOWN_IDS = 100


class NonFiniteError(UserError):
    """A loss or another metric of a training step is NaN or infinite.

    Attributes:
      step: the step that gave it.
      sample_ids: all samples of that step's batch.
    """

    def __init__(self, message: str, *, step: int, sample_ids: Sequence[Any]) -> None:
        super().__init__(message)
        self.step = step
        self.sample_ids = tuple(sample_ids)


class Telemetry:
    """Writes every scalar of a run once per step, also over resumptions, and shows how far the run has come.

    With several processes only the first one writes and shows; the others may call the same methods.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        examples_per_step: int,
        resume_step: int | None = None,
        settings: TelemetrySettings = TelemetrySettings(),  # noqa: B008 (immutable)
        flops_per_example: float | None = None,
        peak_flops_per_s: float | None = None,
    ) -> None:
        """Opens the files, and drops what a killed run logged beyond the checkpoint that it resumes from.

        Args:
          workdir: an existing directory.
          total_steps: the step at which training ends, for the bar and the time left.
          examples_per_step: examples of one step over all devices.
          resume_step: the restored step, or None in a run that starts: then nothing logged before is kept.
          settings: where scalars go beside `metrics.jsonl`.
          flops_per_example: for MFU, see `throughput.Throughput`.
          peak_flops_per_s: likewise, of all devices.

        Raises:
          UserError: the files cannot be written, or `metrics.jsonl` is damaged.
        """
        self._total_steps = total_steps
        self._examples_per_step = examples_per_step
        self._first_step = resume_step or 0
        self._throughput = Throughput(
            examples_per_step=examples_per_step,
            flops_per_example=flops_per_example,
            peak_flops_per_s=peak_flops_per_s,
        )
        self._line_time = -math.inf
        self._line_step = self._first_step
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = Path(workdir) / METRICS
        with naming_disk(workdir):
            _truncate(self._path, resume_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._writers = Writers(workdir, settings, resume_step=resume_step)
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps * examples_per_step,
                initial=self._first_step * examples_per_step,
                unit="examples",
                unit_scale=True,
                dynamic_ncols=True,
            )

    @property
    def examples_per_s(self) -> float:
        """Training throughput since the first log, less the pauses that other kinds end; NaN before the second."""
        return self._throughput.examples_per_s

    def time_input(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches, and counts the time that each was waited for into `input_wait_s`."""
        return self._throughput.time_input(batches)

    def log(self, step: int, scalars: Mapping[str, SupportsFloat], *, kind: str = "train") -> None:
        """Appends one line to `metrics.jsonl`, adds the scalars to TensorBoard as `kind/name`, moves the bar.

        A line of kind "train" gets the figures of `Throughput.measure` over the steps since the log before it; the
        first one, which covers the compilation, does not. A log of another kind ends a pause of the training, which
        counts for nothing.

        Args:
          step: the number of training steps done.
          scalars: values by name; what is not finite is written as a string, since JSON has no number for it.
          kind: "train", "validation", …

        Raises:
          UserError: the disk is full, read-only or failing.
        """
        now = time.monotonic()
        values = {name: float(value) for name, value in scalars.items()}
        values |= self._throughput.measure(step, training=kind == "train")
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with naming_disk(self._path.parent):
            self._file.write(json.dumps({"step": step, "kind": kind, **finite}) + "\n")
            self._file.flush()
            self._writers.add_scalars(step, {f"{kind}/{name}": value for name, value in values.items()})
        if kind == "train":
            self._show_progress(step, values, now)
        else:
            self._print(f"{kind} at step {step}: {_format_scalars(values)}")

    def log_prefix_norms(self, step: int, norms: Float32[np.ndarray, " n"]) -> None:
        """Adds a histogram of the lengths of prefix vectors, unless there are none.

        Raises:
          UserError: the disk is full, read-only or failing.
        """
        if self._active and norms.size:
            with naming_disk(self._path.parent):
                self._writers.add_histogram(step, "prefix/norm", norms)

    def close(self) -> None:
        """Ends the bar and completes the files.

        Raises:
          UserError: the disk is full, read-only or failing.
        """
        if not self._active:
            return
        if self._bar is not None:
            self._bar.close()
        with naming_disk(self._path.parent):
            self._writers.close()
            self._file.close()

    def _show_progress(self, step: int, values: Mapping[str, float], now: float) -> None:
        if self._bar is not None:
            shown = {name: value for name, value in values.items() if name != "examples_per_s"}
            self._bar.set_postfix_str(_format_scalars(shown), refresh=False)
            self._bar.update(step * self._examples_per_step - self._bar.n)
            return
        tenth = step * 10 // self._total_steps > self._line_step * 10 // self._total_steps
        pause = now - self._line_time
        if pause >= _LINE_EVERY_S or (tenth and pause >= _LINE_AT_LEAST_S) or step == self._total_steps:
            left = ""
            if math.isfinite(self.examples_per_s):
                seconds = (self._total_steps - step) * self._examples_per_step / self.examples_per_s
                left = f", {tqdm.format_interval(seconds)} left"
            percent = 100 * step // self._total_steps
            self._print(f"step {step}/{self._total_steps} ({percent} %): {_format_scalars(values)}{left}")
            self._line_time, self._line_step = now, step

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def check_finite(step: int, metrics: Mapping[str, SupportsFloat], sample_ids: Iterable[Any]) -> None:
    """Stops a run at the first value that is not finite, before it spreads into a checkpoint.

    Raises:
      NonFiniteError: with the step, the values, and the samples of the batch.
    """
    bad = {name: float(value) for name, value in metrics.items() if not math.isfinite(float(value))}
    if bad:
        ids = [sample.item() if hasattr(sample, "item") else sample for sample in sample_ids]
        more = f" and {len(ids) - _SHOWN_IDS} more" if ids[_SHOWN_IDS:] else ""
        values = ", ".join(f"{name} = {value}" for name, value in bad.items())
        raise NonFiniteError(
            f"step {step}: {values}: training cannot go on from a value that is not finite; samples of the batch: "
            f"{', '.join(map(str, ids[:_SHOWN_IDS]))}{more}; look at them, lower the learning rate or clip gradients",
            step=step,
            sample_ids=ids,
        )


def format_banner(title: str, *, placement: Placement) -> str:
    """Formats what a run starts with: devices, mesh, the parameters on either side of the freeze, and where they lie.

    Args:
      title: the run in words, such as its config file.
      placement: of its parameters.
    """
    devices = jax.devices()
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    rows = [
        ("devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){processes}"),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in placement.mesh.shape.items())),
        ("trainable", _format_side(placement.trainable)),
        ("frozen", _format_side(placement.frozen)),
    ]
    if placement.mesh.shape["fsdp"] > 1:
        rows[-1] = ("frozen", f"{rows[-1][1]}, {'cut' if placement.frozen_is_cut else 'whole'} along fsdp")
    return "\n".join([title, *(f"  {name:<9}  {value}" for name, value in rows)])


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Formats a Markdown table whose columns also line up on a terminal: the first to the left, others to the right.

    Args:
      header: one title per column.
      rows: cells; floats are shown with four significant digits, all else by `str`.
    """
    cells = [list(header)]
    cells += [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _truncate(path: Path, resume_step: int | None) -> None:
    """Keeps the lines up to `resume_step`; a last line without its end is what a kill while writing leaves."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = []
    for number, line in enumerate(whole, start=1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({error}); mend or remove it, then start again"
            ) from error
        if resume_step is not None and step <= resume_step:
            kept.append(line)
    if kept != lines:
        write_text_atomic(path, "".join(kept))


def _format_scalars(values: Mapping[str, float]) -> str:
    return ", ".join(_format_scalar(name, value) for name, value in values.items())


def _format_scalar(name: str, value: float) -> str:
    """Formats one figure for the progress line: the name's unit goes behind the value."""
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes')} {format_bytes(value)}"
    if name.endswith("_per_s"):
        return f"{name.removesuffix('_per_s')}/s {value:.4g}"
    if name.endswith("_s"):
        return f"{name.removesuffix('_s')} {value:.3g} s"
    return f"{name} {value:.4g}"


def _format_side(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    on_device = sum(map(bytes_per_device, leaves))
    share = f", {format_bytes(on_device)} on each device" if on_device < size else ""
    return f"{count:,} parameters, {format_bytes(size)}{share}"


def format_bytes(size: int | float) -> str:
    """Formats a size with four significant digits: 77.19 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
