"""Asked to end: by signals, by the machine's notice; one process and two; what is saved, and how it goes on."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from frozen_jax import preemption
from frozen_jax.config import from_config_dict
from frozen_jax.preemption import Stopped, StopRequest
from frozen_jax.processes import LOST, LOST_AFTER_S
from frozen_jax.run import run
from tests.faults.runs import ROOT, fingerprint_checkpoint, list_steps, read_lines

WAITER = """
import hashlib, sys, threading, time
from frozen_jax.preemption import StopRequest
stop = StopRequest()
stop.listen()
print("listening", flush=True)
if sys.argv[1] == "computing":
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # hours, in which Python runs no handler
with stop.saving():
    stop.hold()
    print("holding", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(float(sys.argv[2]))
    print("saved", flush=True)
    raise stop.stopped()
"""


HEAR_INTERRUPTS = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Tests may themselves be started in the background, where a shell has interrupts ignored."""


def start_waiter(phase, *, save_s=0.0, before=HEAR_INTERRUPTS):
    command = [sys.executable, "-c", before + WAITER, phase, str(save_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    for line in ("listening", *(["holding"] if phase == "holding" else [])):
        assert process.stdout.readline() == f"{line}\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_with_nothing_to_save_ends_at_once_even_within_a_compilation(number, status):
    process = start_waiter("computing")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.count("\n") == 1 and f"ending with exit status {status}" in errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_the_save(number, status):
    process = start_waiter("holding")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (status, "asked\nsaved\n")
    assert errors.count("\n") == 1 and f"saving after the next step, then ending with exit status {status}" in errors


def test_a_second_interrupt_ends_at_once_and_a_second_sigterm_does_not():
    process = start_waiter("holding", save_s=600)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)  # as from a launcher that had the interrupt too
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")


def test_an_interrupt_that_the_caller_ignores_stays_ignored():
    process = start_waiter("holding", before="import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_request_after_the_last_save_still_ends_the_run():
    stop = StopRequest()
    with pytest.raises(Stopped) as stopped, stop.saving():
        stop.hold()
        stop.ask(signal.SIGTERM, why="test")
    assert stopped.value.code == 143


# The machine's notice


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server; the dict says what it answers, and 404 to all else."""
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = answers.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
            flavoured = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(404 if value is None else 200 if flavoured else 403)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(preemption.METADATA_HOST, f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(preemption, "_POLL_S", 0.01)
    yield answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "before", "notice"),
    [
        ("maintenance-event", "NONE", "TERMINATE_ON_HOST_MAINTENANCE"),
        ("preempted", "FALSE", "TRUE"),
        ("preempted", None, "TRUE"),
    ],
)
def test_a_new_notice_asks_and_an_old_one_does_not(metadata, capsys, key, before, notice):
    metadata.update({"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "FALSE"})
    if before is not None:
        metadata[key] = before
    else:
        del metadata[key]
    stop = StopRequest()
    stop.hold()
    watcher = threading.Thread(target=stop._watch_machine)
    watcher.start()
    watcher.join(0.2)
    assert watcher.is_alive() and not stop.asked
    metadata[key] = notice
    watcher.join(30)
    assert stop.asked and stop.stopped().code == 143
    assert f"notice of this machine, {key} {notice}: saving" in capsys.readouterr().err


def test_no_metadata_server_ends_the_watch(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv(preemption.METADATA_HOST, f"127.0.0.1:{closed.getsockname()[1]}")
        stop = StopRequest()
        stop._watch_machine()  # returns
    assert not stop.asked


# The launcher of several processes, with a stand-in for Python

SAVER = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo 12345; exit; fi
trap 'sleep 0.5; touch "$SAVED/$JAX_PROCESS_ID"; exit 143' TERM
echo started
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("signals", "status", "saved"), [("TERM", 143, 2), ("INT", 130, 2), ("INT INT", 130, 0)])
def test_the_launcher_lets_all_processes_save(tmp_path, signals, status, saved):
    """An interrupt, sent to the launcher alone: processes that a shell starts ignore those from the keyboard."""
    program = tmp_path / "python"
    program.write_text(SAVER)
    program.chmod(0o755)
    (tmp_path / "saved").mkdir()
    environment = os.environ | {"PYTHON": str(program), "SAVED": str(tmp_path / "saved")}
    launch = [sys.executable, "-c", HEAR_INTERRUPTS + "os.execv(sys.argv[1], sys.argv[1:])"]
    command = [*launch, "launch/local_multihost.sh", "2", f"--workdir={tmp_path}/w"]
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    try:
        assert launcher.stdout.readline() == b"started\n"
        other = tmp_path / "w/logs/process_1.log"
        while not (other.exists() and other.read_text()):
            time.sleep(0.01)
        for name in signals.split():
            launcher.send_signal(signal.Signals[f"SIG{name}"])
            time.sleep(0.2)
        assert launcher.wait(timeout=60) == status
    finally:
        launcher.kill()
        launcher.stdout.close()
    assert len(os.listdir(tmp_path / "saved")) == saved


# Runs


def test_a_run_stopped_within_a_pass_and_in_evaluation_ends_as_one_that_was_not(tiny_config, tmp_path, monkeypatch):
    """The log has each step once, and every bit is the same."""
    tiny_config.mesh.data = 1
    config = from_config_dict(tiny_config)
    run(config, tmp_path / "whole", mode="train")
    from frozen_jax import train

    evaluate, hold = train.evaluate, StopRequest.hold
    stop = StopRequest()

    def stop_at_once(stop):
        hold(stop)
        stop.ask(signal.SIGTERM, why="test")

    def stop_in_evaluation(*arguments, **options):
        stop.ask(signal.SIGTERM, why="test")
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(StopRequest, "hold", stop_at_once)
        run(config, tmp_path / "w", mode="train", stop=StopRequest())
    assert list_steps(tmp_path / "w") == [1]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train, "evaluate", stop_in_evaluation)
        run(config, tmp_path / "w", mode="train", stop=stop)
    assert list_steps(tmp_path / "w") == [2, 3, 4]  # 3 is that of the evaluation
    run(config, tmp_path / "w", mode="train")
    assert read_lines(tmp_path / "w") == read_lines(tmp_path / "whole")
    assert fingerprint_checkpoint(tmp_path / "w", 6) == fingerprint_checkpoint(tmp_path / "whole", 6)


def start_two(workdir):
    """Starts two processes of the small run; returns them, to be ended by the caller."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "frozen_jax.main", "--config=configs/debug_tiny.py", f"--workdir={workdir}"]
    command += ["--config.train.steps=2000", "--config.train.log_every=1", "--config.train.evaluate_every=1000"]
    return [
        subprocess.Popen(
            [*command, "--config.checkpoint.every=1000"],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for index in range(2)
    ]


def end_after(processes, workdir, *, steps, victim, number):
    """Sends a signal to one of them once so many more steps are in the log; returns (errors, exit status) of each."""
    try:
        log = workdir / "metrics.jsonl"
        begun = len(log.read_bytes().splitlines()) if log.exists() else 0
        while not log.exists() or len(log.read_bytes().splitlines()) < begun + steps:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        processes[victim].send_signal(number)
        return [(process.communicate(timeout=LOST_AFTER_S + 60)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_processes_stop_together_and_survive_the_death_of_one(tmp_path):
    """SIGTERM to one: both save the same step. SIGKILL to one: the other ends by itself; the next start goes on."""
    workdir = tmp_path / "w"
    outcomes = end_after(start_two(workdir), workdir, steps=3, victim=1, number=signal.SIGTERM)
    assert [status for _, status in outcomes] == [143, 143], outcomes
    (saved,) = list_steps(workdir)
    stopped = read_lines(workdir)
    assert [line["step"] for line in stopped] == list(range(1, saved + 1))
    outcomes = end_after(start_two(workdir), workdir, steps=3, victim=1, number=signal.SIGKILL)
    assert outcomes[1][1] == -signal.SIGKILL
    errors, status = outcomes[0]
    # JAX's service, where it is the first to notice, ends the process by SIGABRT.
    assert (status == LOST and "another process of this run is gone" in errors) or status == -signal.SIGABRT, outcomes
    assert list_steps(workdir) == [saved]
    lines = read_lines(workdir)
    assert lines[:saved] == stopped and [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= saved + 3
