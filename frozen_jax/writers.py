"""Who a run's scalars, histograms and captions are written to: TensorBoard always, Weights & Biases on request.

Both have the same interface. `telemetry.py` and `run.py` call it, in the first process only.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from frozen_jax.captioned import Captioned
from frozen_jax.errors import UserError
from frozen_jax.events import EventWriter
from frozen_jax.telemetry_settings import TelemetrySettings
from frozen_jax.workdir import CONFIG

TENSORBOARD = "tensorboard"
RUN_ID = "run_id"


class Writer(Protocol):
    """Where figures go. Every method may raise OSError: the disk is full, read-only or failing."""

    def add_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars by their tags."""

    def add_histogram(self, step: int, tag: str, values: Float[np.ndarray, " n"]) -> None:
        """Adds the distribution of some finite values, at least one."""

    def add_captions(self, step: int, captions: Sequence[Captioned]) -> None:
        """Adds pictures with their captions."""

    def close(self) -> None:
        """Completes what was written."""


class WandbWriter:
    """Sends the same to Weights & Biases, by its own client."""

    def __init__(self, workdir: Path, *, project: str, fresh: bool) -> None:
        """Begins a run in a project, or goes on with that of this workdir.

        Args:
            workdir: gets the folder `wandb`, with the run's id.
            project: its name.
            fresh: the training starts anew, as another run.

        Raises:
            UserError: the client is not installed, or refuses to begin.
            OSError: the disk is full or read-only.
        """
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError(
                f"telemetry.wandb={project!r} needs the client of Weights & Biases: pip install 'frozen_jax[wandb]', "
                "or leave it empty"
            ) from error
        self._wandb = wandb
        folder = workdir / "wandb"
        folder.mkdir(exist_ok=True)
        path = folder / RUN_ID
        if fresh or not path.exists():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        config: dict[str, Any] = json.loads((workdir / CONFIG).read_text("utf-8"))
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text("utf-8").strip(),
                resume="allow",
                name=workdir.name,
                dir=str(workdir),
                config=config,
            )
        except wandb.Error as error:
            raise UserError(
                f"telemetry.wandb={project!r}: Weights & Biases does not begin a run ({error}); log in with `wandb "
                "login`, set WANDB_MODE=offline, or leave it empty"
            ) from error

    def add_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars by their tags."""
        self._run.log(dict(scalars), step=step)

    def add_histogram(self, step: int, tag: str, values: Float[np.ndarray, " n"]) -> None:
        """Adds a distribution."""
        self._run.log({tag: self._wandb.Histogram(values.tolist())}, step=step)

    def add_captions(self, step: int, captions: Sequence[Captioned]) -> None:
        """Adds pictures with their captions, in one panel."""
        pictures = [self._wandb.Image(one.pixels, caption="\n".join(one.lines())) for one in captions]
        self._run.log({"captions": pictures}, step=step)

    def close(self) -> None:
        """Waits until all is sent or on the disk."""
        self._run.finish()


class Writers:
    """Several writers as one."""

    def __init__(self, workdir: str | Path, settings: TelemetrySettings, *, resume_step: int | None) -> None:
        """Opens TensorBoard's files, and Weights & Biases where the settings name a project.

        Args:
            workdir: an existing directory.
            settings: of the run.
            resume_step: the step that the run resumes from; what was logged beyond it is void. None: it starts.

        Raises:
            UserError: as `WandbWriter`.
            OSError: a file cannot be written.
        """
        first_new = 0 if resume_step is None else resume_step + 1
        self._writers: list[Writer] = [EventWriter(Path(workdir) / TENSORBOARD, first_step=first_new)]
        if settings.wandb:
            fresh = resume_step is None
            self._writers.append(WandbWriter(Path(workdir), project=settings.wandb, fresh=fresh))

    def add_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """As `Writer`."""
        for writer in self._writers:
            writer.add_scalars(step, scalars)

    def add_histogram(self, step: int, tag: str, values: Float[np.ndarray, " n"]) -> None:
        """As `Writer`."""
        for writer in self._writers:
            writer.add_histogram(step, tag, values)

    def add_captions(self, step: int, captions: Sequence[Captioned]) -> None:
        """As `Writer`."""
        for writer in self._writers:
            writer.add_captions(step, captions)

    def close(self) -> None:
        """As `Writer`."""
        for writer in self._writers:
            writer.close()


@contextlib.contextmanager
def naming_disk(workdir: str | Path) -> Iterator[None]:
    """Turns what a disk refuses in the body into one line.

    Raises:
        UserError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: metrics could not be written ({error.strerror}); make space or mend the disk, then start the "
            "same command again to resume"
        ) from error
