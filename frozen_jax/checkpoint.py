"""Checkpoints of a run: what is trained, the optimiser, the position, early stopping; never the frozen language model.

Lives here: atomic asynchronous saving over Orbax, retention, checks on restore.
Does not live here: the digest (digests.py), when to save and what a position means (train.py), the lock (workdir.py).
Next in the data flow: train.py puts a restored state back on the mesh and goes on with its position.

On disk, one directory per step; it appears by a single rename after everything in it is written:

    checkpoints/400/arrays/…        every array of the state, in TensorStore's own format (no pickle)
    checkpoints/400/meta/metadata   JSON: format, step, best, language model, config digest, position, arrays' digests

A step that is being written or being deleted carries another name, so a directory named by digits is always complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from frozen_jax.digests import digest_arrays
from frozen_jax.errors import UserError
from frozen_jax.orbax_noise import silencing_dropped_reads
from frozen_jax.processes import is_lost_wait

FORMAT = 3
_TEMPORARY = "*.orbax-checkpoint-tmp*"
_DELETED = ".deleted-"
_DAMAGED = "damaged-"
_ARRAYS_ROOT = "arrays/manifest.ocdbt"

Position = Mapping[str, int | float | str | bool | None]
OnDamage = Literal["raise", "fallback"]


class DamagedError(UserError):
    """A checkpoint cannot be read, or is not what was saved."""


class MissingError(UserError):
    """There is no such checkpoint."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best one besides.

    With several processes each of them makes the same calls in the same order; the directory is shared by all.
    Reading never writes, so a tool may read the checkpoints of a run that is going on.

    Attributes:
      directory: absolute; it need not exist before the first save.
      on_damage: as given.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int,
        fingerprint: str,
        config_digest: str,
        vision_fingerprint: str = "",
        lm_name: str = "",
        on_damage: OnDamage = "raise",
    ) -> None:
        """Lists the complete checkpoints in `directory`, which need not exist yet.

        Args:
          directory: holds one sub-directory per step; on a disk that all processes share.
          keep: how many of the newest steps survive, at least 1.
          fingerprint: identifies the frozen language model; a checkpoint of another one is refused.
          config_digest: identifies the part of the configuration that a resumed run must share.
          vision_fingerprint: identifies what is frozen of the vision encoder, likewise; "" where nothing is.
          lm_name: the language model for messages: where it is from, and its dtype.
          on_damage: "raise" stops at a damaged checkpoint; "fallback" warns and takes the newest good one.

        Raises:
          UserError: `keep` is below 1, or `directory` cannot be listed.
        """
        if keep < 1:
            raise UserError(f"checkpoint.keep = {keep}: a run resumes from the newest one; set it to 1 or more")
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._fingerprint, self._vision_fingerprint = fingerprint, vision_fingerprint
        self._config_digest = config_digest
        self._lm_name = lm_name
        self.on_damage = on_damage
        # Directories made in the background would turn a read-only disk into a wait of five minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler("arrays", "meta"), async_options=options)
        # Each process reads for itself: waiting for the others, it would wait for ever for one that cannot read.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read{me}"
        )
        items = ocp.CompositeCheckpointHandler(
            "arrays", "meta", composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        self._reader = ocp.Checkpointer(items, multiprocessing_options=alone)
        self._steps = self._list_steps()
        self._best: dict[int, bool | None] = {}  # None: damaged, so that nobody can say
        self._pending: int | None = None
        self._may_write = False

    def steps(self) -> list[int]:
        """Lists the complete checkpoints, ascending; one still being written counts from `wait` on."""
        return list(self._steps)

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self._steps[-1] if self._steps else None

    def best_step(self) -> int | None:
        """Returns the newest step that was saved as the best, or None.

        Raises:
          DamagedError: a checkpoint is damaged, so that nobody can say whether it was the best; with
            `on_damage="fallback"` it is taken for one that was not.
        """
        return next((step for step in reversed(self._steps) if self._is_best(step)), None)

    def save(self, step: int, state: Any, *, position: Position, best: bool = False) -> None:
        """Saves in the background; the caller may donate or overwrite the arrays of `state` as soon as this returns.

        It first waits for the save before this one, and reports that one's failure, if any.

        Args:
          step: larger than every step saved so far.
          state: a tree of `jax.Array` leaves (plain dicts, tuples, optax states); no leaf of the frozen model.
          position: small JSON values beside the arrays: epoch, index, early-stopping state.
          best: this is the best step so far; it is kept until another one is.

        Raises:
          UserError: the disk is full, read-only or failing; the earlier checkpoints are intact.
          ValueError: `step` is not larger than the newest one.
        """
        self.wait()
        if self._steps and step <= self._steps[-1]:
            raise ValueError(f"step {step} is not after the newest checkpoint, step {self._steps[-1]}")
        arrays = _flatten(state)
        not_arrays = [name for name, leaf in arrays.items() if not isinstance(leaf, jax.Array)]
        if not_arrays:
            raise TypeError(f"a checkpoint holds jax.Array leaves only; these are something else: {not_arrays}")
        digests = digest_arrays(arrays)
        meta: dict[str, Any] = {
            "format": FORMAT,
            "step": step,
            "best": best,
            "fingerprint": self._fingerprint,
            "vision_fingerprint": self._vision_fingerprint,
            "lm_name": self._lm_name,
            "config_digest": self._config_digest,
            "position": dict(position),
            "arrays": {name: [*_describe(leaf), *digests[name]] for name, leaf in arrays.items()},
        }
        meta["digest"] = _meta_digest(meta)
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        with self._reporting_write_errors(step):
            self._prepare_to_write()
            self._orbax.save(self.directory / str(step), args=items)
        self._pending = step
        self._best[step] = best

    def wait(self) -> None:
        """Returns when the save in progress is complete on disk, and removes the steps that it outdates.

        Raises:
          UserError: that save failed: the disk is full, read-only or failing.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        with self._reporting_write_errors(step):
            self._orbax.wait_until_finished()
            self._check_written(step)
        self._steps.append(step)
        self._prune()

    def close(self) -> None:
        """Waits for the save in progress, as `wait`, and ends the background threads."""
        try:
            self.wait()
        finally:
            with suppress(OSError):  # another thread of Orbax's tells again what was told
                self._orbax.close()
            self._reader.close()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Reads one step and verifies every array.

        Args:
          step: one of `steps()`.
          abstract_state: the tree to fill: `jax.ShapeDtypeStruct` leaves (arrays serve too) with shape, dtype and the
            sharding that the restored array gets; a leaf without a sharding goes to the first local device.

        Returns:
          The state, shaped as `abstract_state`, and the position as it was saved.

        Raises:
          UserError: a checkpoint of another language model or configuration, or of other arrays.
          MissingError: no such step.
          DamagedError: it is damaged.
        """
        if step not in self._steps:
            have = ", ".join(map(str, self._steps)) or "none"
            raise MissingError(f"{self.directory}: no checkpoint of step {step}; there are: {have}; choose one of them")
        wanted = _flatten(abstract_state)
        home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or home)
            for name, leaf in wanted.items()
        }
        with self._failing_together(step):
            meta = self._read_meta(step)
            self._refuse_other_run(step, meta)
            self._refuse_other_arrays(step, meta["arrays"], wanted)
            restored = self._read(step, "arrays", ocp.args.StandardRestore(abstract))
        blocks = {name: tuple(meta["arrays"][name][2]) for name in wanted}
        for name, found in digest_arrays({name: restored[name] for name in wanted}, blocks=blocks).items():
            stored = meta["arrays"][name][3]
            if stored != found.sum:
                raise self._damaged(step, f"array {name!r} has digest {found.sum}, saved with {stored}")
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [restored[name] for name in wanted])
        return state, meta["position"]

    def restore_newest(self, abstract_state: Any, *, set_aside: bool) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest step, or with `on_damage="fallback"` the newest that is whole; None where there is none.

        Args:
          abstract_state: as for `restore`.
          set_aside: rename damaged steps, so that they can be saved anew; for the run that writes here.

        Raises:
          UserError: as `restore`; all checkpoints are damaged.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, abstract_state)
            except DamagedError as error:
                if self.on_damage == "raise" or step == self._steps[0]:
                    raise
                if jax.process_index() == 0:
                    print(f"warning: {error}; going on from the newest whole one", file=sys.stderr, flush=True)
                    if set_aside:
                        (self.directory / str(step)).rename(_find_free(self.directory / f"{_DAMAGED}{step}"))
                self._steps.remove(step)
        return None

    @contextmanager
    def _failing_together(self, step: int) -> Iterator[None]:
        """Lets all processes fail if one of them cannot read its parts: they have to go the same way."""
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        if jax.process_count() > 1:
            failures = multihost_utils.process_allgather(np.array(failure is not None))
            if failure is None and failures.any():
                failure = self._damaged(step, "another process cannot read its part")
        if failure is not None:
            raise failure

    def _list_steps(self) -> list[int]:
        try:
            return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.directory}: not a readable directory ({error.strerror}); choose another") from error

    def _prepare_to_write(self) -> None:
        """Clears what a killed run left half-written or half-deleted: once, and only in a run that writes."""
        if self._may_write:
            return
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            for pattern in (_TEMPORARY, f"{_DELETED}*"):
                for leftover in self.directory.glob(pattern):
                    shutil.rmtree(leftover)
        self._may_write = True

    def _prune(self) -> None:
        """Deletes what is neither among the newest nor the best, each by a rename first: a kill leaves no half step.

        What is damaged is set aside.
        """
        best = self.best_step()
        for step in self._steps[: -self._keep]:
            if step == best:
                continue
            if jax.process_index() == 0:
                whole = self._best.get(step, False) is not None
                aside = self.directory / f"{_DAMAGED}{step}"
                doomed = self.directory / f"{_DELETED}{step}" if whole else _find_free(aside)
                try:
                    (self.directory / str(step)).rename(doomed)
                except OSError as error:
                    raise UserError(
                        f"{self.directory / str(step)}: this outdated checkpoint could not be removed "
                        f"({error.strerror}); all are intact: mend the disk, then start the command again"
                    ) from error
                if whole:
                    shutil.rmtree(doomed, ignore_errors=True)
            self._steps.remove(step)

    def _check_written(self, step: int) -> None:
        """Refuses a step that Orbax completed without its content, before an older one is removed for it.

        Orbax takes a directory that cannot be listed for an empty one, and then has no arrays to put together.
        """
        directory = self.directory / str(step)
        if jax.process_index() == 0 and not (directory / _ARRAYS_ROOT).is_file():
            directory.rename(_find_free(self.directory / f"{_DAMAGED}{step}"))
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(directory / _ARRAYS_ROOT))

    def _is_best(self, step: int) -> bool:
        if step not in self._best:
            try:
                self._best[step] = bool(self._read_meta(step)["best"])
            except DamagedError as error:
                if self.on_damage == "raise":
                    raise
                self._best[step] = None
                if jax.process_index() == 0:
                    print(f"warning: {error}; taking it for one that was not the best", file=sys.stderr, flush=True)
        return bool(self._best[step])

    def _read(self, step: int, item: str, args: Any) -> Any:
        try:
            with silencing_dropped_reads():
                return self._reader.restore(self.directory / str(step), args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # Orbax and TensorStore raise of many kinds, and bad bytes may meet any of them.
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = (str(cause).splitlines() or [""])[0][:300]
            raise self._damaged(step, f"its {item} cannot be read: {type(cause).__name__}: {reason}") from error

    def _read_meta(self, step: int) -> dict[str, Any]:
        meta = self._read(step, "meta", ocp.args.JsonRestore())
        if not isinstance(meta, dict) or meta.get("digest") != _meta_digest(meta):
            raise self._damaged(step, "meta/metadata does not match its own digest")
        if meta["format"] != FORMAT:
            raise UserError(
                f"{self.directory / str(step)}: checkpoint format {meta['format']}, this version reads {FORMAT}: "
                "use the version of frozen_jax that wrote it, or start in a new --workdir"
            )
        if meta["step"] != step:
            raise self._damaged(step, f"it was written as step {meta['step']}")
        return meta

    def _refuse_other_run(self, step: int, meta: Mapping[str, Any]) -> None:
        if meta["fingerprint"] != self._fingerprint:
            raise UserError(
                f"{self.directory / str(step)}: trained through language model {meta['lm_name']} "
                f"({meta['fingerprint']}), this run loads {self._lm_name} ({self._fingerprint}): a prefix fits only "
                "its own model, in the same dtype; give that model and config.lm.dtype, or start in a new --workdir"
            )
        saved = meta.get("vision_fingerprint", "")
        if saved != self._vision_fingerprint:
            raise UserError(
                f"{self.directory / str(step)}: trained on the features of frozen vision encoder {saved or 'unknown'}, "
                f"this run loads {self._vision_fingerprint or 'none'}: a prefix reads only its own encoder; give that "
                "encoder as vision.path, or start in a new --workdir"
            )
        if meta["config_digest"] != self._config_digest:
            raise UserError(
                f"{self.directory / str(step)}: saved under configuration {meta['config_digest']}, this run has "
                f"{self._config_digest}: the run would not continue as it began; restore the configuration in "
                "config.json beside it, or start in a new --workdir"
            )

    def _refuse_other_arrays(self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in sorted({*saved, *wanted}):
            have = f"{saved[name][0]}{saved[name][1]}" if name in saved else "absent"
            want = "{}{}".format(*_describe(wanted[name])) if name in wanted else "absent"
            if have != want:
                raise UserError(
                    f"{self.directory / str(step)}: array {name!r} is {have} in the checkpoint, {want} in this run: "
                    "they must agree; use the code and configuration that wrote it, or start in a new --workdir"
                )

    def _damaged(self, step: int, what: str) -> DamagedError:
        others = ", ".join(str(other) for other in self._steps if other != step) or "none"
        return DamagedError(
            f"{self.directory / str(step)}: the checkpoint of step {step} is damaged: {what}; "
            f"to go on from another step (there: {others}) remove that directory or set checkpoint.on_damage=fallback"
        )

    @contextmanager
    def _reporting_write_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            # TensorStore reports the system's errors as ValueErrors with their number; anything else is our defect.
            number = re.search(r"os_error_code='(\d+)'", str(error))
            if is_lost_wait(error) or (not isinstance(error, OSError) and number is None):
                raise
            if jax.process_index() == 0:
                for leftover in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)
            have = ", ".join(map(str, self._steps)) or "none"
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be written: {reason}; complete "
                f"checkpoints ({have}) are intact: make space or mend the disk, then start the command again"
            ) from error


def _find_free(path: Path) -> Path:
    """Returns the path, or one like it with a number, that does not exist yet."""
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.split('.')[0]}.{number}")
    return path


def _flatten(tree: Any) -> dict[str, Any]:
    """Names every leaf by its path; optax's tuples and empty states need no types of their own on disk."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(leaf: Any) -> tuple[str, list[int]]:
    return str(np.dtype(leaf.dtype)), list(leaf.shape)


def _meta_digest(meta: Mapping[str, Any]) -> str:
    content = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
