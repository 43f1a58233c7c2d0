"""Two processes with one checkpoint directory: one dies in the middle of a save, one cannot read what the other can.

No model: each process joins the other, saves and restores as a run does. What a whole run of two does when one dies
between saves: `test_preemption.py`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import jax
import pytest

from frozen_jax.errors import UserError
from frozen_jax.processes import LOST, LOST_AFTER_S, leaving_on_error
from tests.faults.runs import ROOT


class Pairs:
    """Runs the jobs below, each in two forks that are one run; of a process that has started nothing of JAX."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, job: str) -> list[dict]:
        """Returns the exit status, the errors and the seconds of both, counted from the first one's end."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{probe.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
        ranks = {self._start(job, rank): rank for rank in range(2)}
        ends: list[dict] = [{}, {}]
        first = None
        while ranks:
            process, status = os.wait()
            first = first or time.monotonic()
            rank = ranks.pop(process)
            errors = (self.root / f"{job}.{rank}").read_text()
            ends[rank] = {
                "status": os.waitstatus_to_exitcode(status),
                "errors": errors,
                "later_s": time.monotonic() - first,
            }
        return ends

    def _start(self, job: str, rank: int) -> int:
        process = os.fork()
        if process:
            return process
        try:
            os.environ["JAX_PROCESS_ID"] = str(rank)
            with (self.root / f"{job}.{rank}").open("w") as errors:
                os.dup2(errors.fileno(), 2)
            from frozen_jax.processes import join_processes

            join_processes(wanted=True)
            with leaving_on_error():
                globals()[job](self.root, rank)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(70)


def make_state(step):
    """Two arrays of eight megabytes, each cut over the two processes."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    value = np.full((2, 10**6), step, np.float32)
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    return {name: jax.make_array_from_callback(value.shape, sharding, lambda index: value[index]) for name in "ab"}


def open_checkpoints(directory, on_damage="raise"):
    from frozen_jax.checkpoint import Checkpoints

    return Checkpoints(directory, keep=9, fingerprint="lm", config_digest="config", on_damage=on_damage)


def check(restored, step):
    import numpy as np

    state, position = restored
    assert position == {"step": step}
    assert all((np.asarray(shard.data) == step).all() for leaf in state.values() for shard in leaf.addressable_shards)


def save_twice(root, rank):
    checkpoints = open_checkpoints(root / "c")
    for step in (1, 2):
        checkpoints.save(step, make_state(step), position={"step": step})
    checkpoints.close()


def die_in_the_third_save(root, rank):
    def die_when_it_is_half_written():
        while not list((root / "c").glob("3.*")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = open_checkpoints(root / "c")
    check(checkpoints.restore_newest(make_state(0), set_aside=True), 2)
    if rank == 1:
        threading.Thread(target=die_when_it_is_half_written, daemon=True).start()
    checkpoints.save(3, make_state(3), position={"step": 3})
    checkpoints.wait()


def go_on(root, rank):
    checkpoints = open_checkpoints(root / "c")
    check(checkpoints.restore_newest(make_state(0), set_aside=True), 2)
    checkpoints.save(3, make_state(3), position={"step": 3})
    checkpoints.wait()
    check(checkpoints.restore(3, make_state(0)), 3)
    checkpoints.close()


def read_what_one_cannot(root, rank):
    open_checkpoints(root / f"c{rank}").restore_newest(make_state(0), set_aside=False)


def fall_back_from_what_one_cannot_read(root, rank):
    checkpoints = open_checkpoints(root / f"c{rank}", on_damage="fallback")
    check(checkpoints.restore_newest(make_state(0), set_aside=False), 2)
    checkpoints.close()


def main(root: Path) -> None:
    """Runs all jobs in turn; prints how they ended."""
    import frozen_jax.checkpoint  # noqa: F401  for the forks

    pairs = Pairs(root)
    ends: dict[str, list] = {}
    for job in (save_twice, die_in_the_third_save, go_on):
        ends[job.__name__] = pairs.run(job.__name__)
        ends[f"after {job.__name__}"] = sorted(os.listdir(root / "c"))
    for rank in range(2):
        shutil.copytree(root / "c", root / f"c{rank}")
    (root / "c1/3/arrays/manifest.ocdbt").write_bytes(b"\0" * 100)
    for job in (read_what_one_cannot, fall_back_from_what_one_cannot_read):
        ends[job.__name__] = pairs.run(job.__name__)
    print(json.dumps(ends))


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    command = [sys.executable, "-m", "tests.faults.test_pairs", str(tmp_path_factory.mktemp("pairs"))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # before it, what JAX says of its connections


def test_a_process_that_dies_in_a_save_ends_the_other_and_the_next_start_goes_on_exactly(ends):
    left, dead = ends["die_in_the_third_save"]
    assert dead["status"] == -signal.SIGKILL and left["later_s"] < LOST_AFTER_S + 30
    # JAX's service, where it is the first to notice, ends the process by SIGABRT.
    one_line = "another process of this run is gone" in left["errors"] and left["errors"].count("\n") == 1
    assert (left["status"] == LOST and one_line) or left["status"] == -signal.SIGABRT, left
    names = ends["after die_in_the_third_save"]
    assert names[:2] == ["1", "2"] and "3" not in names and len(names) == 3, "it did not die in the middle of the save"
    assert [end["status"] for end in ends["go_on"]] == [0, 0], ends["go_on"]
    assert ends["after go_on"] == ["1", "2", "3"]


def test_what_one_process_cannot_read_is_refused_or_passed_over_by_both(ends):
    refused = ends["read_what_one_cannot"]
    for end, reason in zip(refused, ("another process cannot read its part", "its arrays cannot be read"), strict=True):
        assert end["status"] == 1 and end["errors"].count("\n") == 1
        assert f"step 3 is damaged: {reason}" in end["errors"]
    passed = ends["fall_back_from_what_one_cannot_read"]
    assert [end["status"] for end in passed] == [0, 0], passed
    assert "going on from the newest whole one" in passed[0]["errors"]


def test_a_wait_for_a_process_that_is_gone_is_no_disk_that_fails(tmp_path, monkeypatch, capsys):
    """Orbax ends a wait for the other processes by an error of a file system's class, without a number."""
    checkpoints = open_checkpoints(tmp_path)

    def wait_in_vain():
        with leaving_on_error(), checkpoints._reporting_write_errors(3):
            raise TimeoutError("Timed out after 60 seconds.")

    with pytest.raises(UserError, match="could not be written: Timed out after 60 seconds"):
        wait_in_vain()
    monkeypatch.setattr(os, "_exit", sys.exit)
    with monkeypatch.context() as two:
        two.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(SystemExit) as caught:
            wait_in_vain()
    assert caught.value.code == LOST and "another process of this run is gone" in capsys.readouterr().err
    checkpoints.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
