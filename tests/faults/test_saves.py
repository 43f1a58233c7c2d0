"""A save that dies, or is told that the disk failed, at each of its calls to the file system, one after the other.

Python announces every such call as an audit event before it is made. What TensorStore writes in its own threads is not
announced; `test_checkpoint.py` stops a writer at random instants for that.
"""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from frozen_jax.checkpoint import Checkpoints
from frozen_jax.errors import UserError
from tests.faults.runs import ROOT

# Forks of a process that has imported everything and started nothing of JAX; child n dies at its n-th call.
DYING_SAVES = """
import os, shutil, sys
import jax, jax.numpy as jnp
from frozen_jax.checkpoint import Checkpoints
from tests.faults.test_saves import CALLS

def save(directory, step):
    checkpoints = Checkpoints(directory, keep=1, fingerprint="lm", config_digest="config")
    checkpoints.save(step, {"a": jnp.full((64, 64), step, jnp.float32)}, position={"step": step})
    checkpoints.close()

def start(directory, last=None):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if last is None:
        save(directory, 1)
        os._exit(0)
    jnp.zeros(1).block_until_ready()  # JAX's own start reads files too
    calls = 0
    def count(event, arguments):
        nonlocal calls
        if event in CALLS and str(directory) in str(arguments[0]):
            calls += 1
            if calls > last:
                os._exit(77)
    sys.addaudithook(count)
    save(directory, 2)
    os._exit(0)

root = sys.argv[1]
start(f"{root}/first")
for number in range(1000):
    shutil.copytree(f"{root}/first", f"{root}/{number}")
    status = start(f"{root}/{number}", number)
    print(number, status, flush=True)
    if status != 77:
        break
"""
CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


def open_checkpoints(directory):
    return Checkpoints(directory, keep=1, fingerprint="lm", config_digest="config")


def check_whole(directory: Path) -> int:
    """Asserts that each listed step is what was saved, and that the next save works; returns the newest step."""
    checkpoints = open_checkpoints(directory)
    target = {"a": jnp.zeros((64, 64), jnp.float32)}
    for step in checkpoints.steps():
        state, position = checkpoints.restore(step, target)
        assert position == {"step": step} and bool((state["a"] == step).all())
    newest = checkpoints.latest_step()
    checkpoints.save(9, target, position={"step": 9})
    checkpoints.close()
    assert [name for name in os.listdir(directory) if not name.startswith("damaged-")] == ["9"]
    return newest


def test_a_save_that_dies_at_any_call_leaves_the_old_step_or_the_new_one(tmp_path):
    command = [sys.executable, "-c", DYING_SAVES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert set(statuses[:-1]) == {77} and statuses[-1] == 0, done.stdout
    newest = [check_whole(tmp_path / str(number)) for number in range(len(statuses))]
    assert newest == sorted(newest) and newest[0] == 1 and newest[-1] == 2
    assert newest.count(1) > 5 and newest.count(2) > 2, newest  # deaths before the rename, and after it


class FailingDisk:
    """While armed, each call that touches the directory is slow, or the n-th fails as the system would let it fail."""

    def __init__(self) -> None:
        self.directory = ""
        self.left = -1
        self.number = errno.EIO
        self.delay_s = 0.0
        sys.addaudithook(self._hear)  # there is no way to take it back

    def _hear(self, event, arguments):
        if self.directory and event in CALLS and self.directory in str(arguments[0]):
            self.left -= 1
            time.sleep(self.delay_s)
            if self.left == -1:
                raise OSError(self.number, os.strerror(self.number), str(arguments[0]))


@pytest.fixture(scope="module")
def disk():
    disk = FailingDisk()
    yield disk
    disk.directory = ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_a_disk_that_fails_at_any_call_is_one_line_and_harms_nothing(tmp_path, disk, number):
    refused = 0
    for calls in range(1000):
        directory = tmp_path / str(calls)
        first = open_checkpoints(directory)
        first.save(1, {"a": jnp.full((64, 64), 1, jnp.float32)}, position={"step": 1})
        first.wait()
        disk.number, disk.left, disk.directory = number, calls, str(directory)
        failed = False
        try:
            first.save(2, {"a": jnp.full((64, 64), 2, jnp.float32)}, position={"step": 2})
            first.wait()
        except UserError as error:
            failed = True
            said = str(error)
            assert "step 2 could not be written: " in said or "1: this outdated checkpoint could not be" in said
            assert "intact" in said and "\n" not in said
        finally:
            disk.directory = ""
        reached = disk.left < 0
        first.close()
        assert check_whole(directory) in ((1, 2) if failed else (2,))
        refused += failed
        if not reached:
            break
    assert refused > 5 and calls > refused / 2


def test_a_slow_disk_shows_no_half_step(tmp_path, disk):
    """Who looks while a save takes its time sees the old step alone, and then the new one, whole."""
    directory, seen = tmp_path / "c", tmp_path / "seen"
    checkpoints = open_checkpoints(directory)
    checkpoints.save(1, {"a": jnp.full((64, 64), 1, jnp.float32)}, position={"step": 1})
    checkpoints.wait()

    def copy_as_soon_as_it_is_there():
        while not (directory / "2").exists():
            time.sleep(0.0005)
        shutil.copytree(directory / "2", seen / "2")

    watcher = threading.Thread(target=copy_as_soon_as_it_is_there)
    disk.left, disk.delay_s, disk.directory = -10, 0.02, str(directory)
    try:
        watcher.start()
        start = time.monotonic()
        checkpoints.save(2, {"a": jnp.full((64, 64), 2, jnp.float32)}, position={"step": 2})
        checkpoints.wait()
        assert time.monotonic() - start > 10 * disk.delay_s  # it was slow
        watcher.join(timeout=60)
    finally:
        disk.directory, disk.delay_s = "", 0.0
    checkpoints.close()
    assert check_whole(seen) == check_whole(directory) == 2


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Order comes from the steps' numbers: a clock that runs backwards by hours is nobody's business."""
    times = iter(range(2_000_000_000, 0, -10_000))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    monkeypatch.setattr(time, "time_ns", lambda: next(times) * 10**9)
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="lm", config_digest="config")
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": jnp.full((64, 64), step, jnp.float32)}, position={"step": step})
    checkpoints.close()
    assert next(times) < 2_000_000_000 - 10_000  # somebody did look at the clock
    assert open_checkpoints(tmp_path).steps() == [2, 3]
    assert check_whole(tmp_path) == 3
