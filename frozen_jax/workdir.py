"""The directory of one run: its lock, `config.json`, `versions.json`; atomic JSON writing for all who put files there.

Lives here: creating or recognising a workdir, refusing one of another run, holding it against a second process.
Does not live here: what else goes into it (checkpoint.py, telemetry.py), or which config keys exist (config.py).
Next in the data flow: train.py, which puts checkpoints, metrics and the report under `Workdir.path`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from absl import logging

from frozen_jax.errors import UserError

CONFIG, VERSIONS, LOCK = "config.json", "versions.json", "lock"
LOGS = "logs"
"""A directory that a launcher may have filled before the run looks: the output of the processes but the first."""
_ABSENT = "(absent)"
_SHOWN = 5  # differing keys, foreign files: enough to recognise the mistake, short enough for one line


class Workdir:
    """A workdir that this process holds; use it as a context manager, or call `close`.

    Attributes:
      path: the directory, absolute.
      resuming: it already held this same run when it was opened.
    """

    def __init__(self, directory: str | Path, config: Mapping[str, Any], *, free: Sequence[str] = ()) -> None:
        """Creates the workdir of a new run or recognises that of the same run, and takes its lock.

        With several processes only the first one looks and writes: the directory is shared.

        Args:
          directory: absent, empty, or the workdir of a run with the same `config`.
          config: the resolved configuration: nested dicts of JSON values.
          free: its sections that may differ from one start of a run to the next; `config.json` keeps the first. And
            settings, as `prefix.scale`, that may be missing there: the run is from before there were any.

        Raises:
          UserError: no name given, not a directory, not writable, of other content, of another configuration (with the
            keys that differ), or held by another process.
        """
        if not str(directory).strip():
            raise UserError("--workdir is empty: a run keeps its checkpoints and figures in a directory; name one")
        self.path = Path(directory).absolute()
        self.resuming = False
        self._lock: int | None = None
        if jax.process_index() != 0:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign_files()  # before a lock is put among them
            self._lock = _take_lock(self.path / LOCK)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--workdir={directory}: is a file, or lies below one; name a directory") from error
        except OSError as error:
            raise UserError(
                f"--workdir={directory}: cannot be written ({error.strerror}); name a directory on a writable disk"
            ) from error
        try:
            self.resuming = self._recognise(config, free)
            if not self.resuming:
                write_json_atomic(self.path / CONFIG, config)
            write_json_atomic(self.path / VERSIONS, collect_versions())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back; the system does the same when a process dies."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Workdir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recognise(self, config: Mapping[str, Any], free: Sequence[str]) -> bool:
        found = self.path / CONFIG
        if not found.exists():
            return False
        there, here = (
            {key: value for key, value in side.items() if key not in free} for side in (read_json(found), config)
        )
        for section, _, key in (name.partition(".") for name in free):
            if key and isinstance(there.get(section), dict):
                there[section].setdefault(key, here[section][key])
        differing = compare_configs(there, here)
        if differing and not self._has_results():
            return False  # the last start ended before its first step, most likely by the mistake now mended
        if differing:
            raise UserError(
                f"{self.path}: belongs to a run of another configuration: {'; '.join(differing[:_SHOWN])}"
                f"{f'; and {len(differing) - _SHOWN} more' if differing[_SHOWN:] else ''}: "
                "set these back to resume that run, or name a new --workdir"
            )
        return True

    def _refuse_foreign_files(self) -> None:
        if (self.path / CONFIG).exists():
            return
        foreign = sorted(
            entry.name for entry in self.path.iterdir() if entry.name not in (LOCK, LOGS) and not _is_temporary(entry)
        )
        if foreign:
            raise UserError(
                f"{self.path}: holds other files ({', '.join(foreign[:_SHOWN])}{', …' if foreign[_SHOWN:] else ''})"
                f" and no {CONFIG}: it is not the workdir of a run; name an empty or a new directory"
            )

    def _has_results(self) -> bool:
        """Whether a step was logged or saved, or anything was measured."""
        written = [*self.path.glob("checkpoints/*"), *self.path.glob("*.jsonl"), *self.path.glob("report*.json")]
        return any(entry.stat().st_size for entry in written)


def compare_configs(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lists the keys in which a saved configuration and a given one differ, as `a.b = 1 there, 2 here`."""
    one, other = _flatten(there), _flatten(here)
    pairs = {key: (one.get(key, _ABSENT), other.get(key, _ABSENT)) for key in sorted({*one, *other})}
    return [f"{key} = {old} there, {new} here" for key, (old, new) in pairs.items() if old != new]


def digest_config(config: Mapping[str, Any]) -> str:
    """Digests a configuration to 16 hexadecimal digits that do not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Writes JSON as `write_text_atomic` does; tuples become lists, NaN and infinity are refused.

    Raises:
      UserError: as `write_text_atomic`.
      ValueError: a number that JSON does not have.
    """
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes text in UTF-8 as `write_bytes_atomic` does.

    Raises:
      UserError: as there.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def check_out_file(path: Path, *, option: str = "--out") -> None:
    """Refuses what cannot become a file before the work for it, which may take hours.

    Args:
      path: to be written later; an existing file is left to the caller.
      option: by which it was given, for the message.

    Raises:
      UserError: a folder or a device, or in a folder that is missing or cannot be written.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{option}={path}: is a folder or a device; name a file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.tmp-"):
            pass
    except OSError as error:
        raise UserError(
            f"{option}={path}: cannot be written ({error.strerror}); name a file in a folder that is there and writable"
        ) from error


def write_bytes_atomic(path: str | Path, content: bytes, *, overwrite: bool = True) -> None:
    """Writes a file so that, after a kill or a power cut at any instant, it is whole: the old one or the new one.

    Args:
      path: the file to create or replace.
      content: of the file.
      overwrite: off, a file that is there stays, be it made a moment ago.

    Raises:
      UserError: the disk is full, read-only or failing, or a file may not be replaced; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _move_to_new(temporary, path)
        _sync_directory(path.parent)
    except FileExistsError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: is there already and is not replaced; name another file, or remove it") from error
    except OSError as error:
        with contextlib.suppress(OSError):  # a name that is impossible is so here, too
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: could not be written ({error.strerror}); make space or mend the disk, then start again"
        ) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file is absent, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore the file, or remove it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not an object; restore the file, or remove it")
    return value


def collect_versions() -> dict[str, Any]:
    """Collects what a run depends on besides its configuration: packages, Python, git revision, devices."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _package_names() if (version := _version(name)) is not None},
        "git": _git_revision(Path(__file__).parent.parent),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
    }


def _take_lock(path: Path) -> int | None:
    """Locks the file for as long as the process lives, and writes the owner into it for the message to others.

    The system's lock dies with its owner, so a dead owner's is free at once; a process id alone could have been given
    to another process meanwhile, and a time-out would need clocks that agree.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"{path.parent}: in use by another process ({owner}): two runs would overwrite each other's checkpoints; "
            "wait for it, end it, or name another --workdir"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            os.close(descriptor)
            raise
        logging.warning("%s: this filesystem has no locks; take care that only one run uses it", path.parent)
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    return descriptor


def _package_names() -> list[str]:
    """Names the packages that our metadata requires outside extras, and the compiled part of JAX."""
    try:
        required = importlib.metadata.requires("frozen_jax") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    names = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line}
    return sorted({"frozen_jax", "jaxlib", *names})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision(checkout: Path) -> dict[str, Any] | None:
    """Returns the revision of the checkout that the package runs from, or None where it runs from elsewhere."""
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": head.stdout.strip(), "modified": bool(status.stdout.strip())}


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Maps `a.b` to the value as JSON text, in which 1, 1.0 and true differ, a tuple and a list do not."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, child in value.items():
        flat |= _flatten(child, f"{prefix}.{key}" if prefix else key)
    return flat


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and ".tmp-" in path.name


def _move_to_new(temporary: Path, path: Path) -> None:
    """Gives a file a name that must be free; raises FileExistsError where it is not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file takes the name, and only then gives way
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        temporary.replace(path)
    else:
        temporary.unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
