"""Telemetry: each step once over resumptions, events that TensorBoard reads, lines in a log, guard, banner, tables."""

import json
import math
import os
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from frozen_jax import telemetry
from frozen_jax.config import MeshSettings
from frozen_jax.errors import UserError
from frozen_jax.sharding import make_abstract_mesh, place
from frozen_jax.telemetry import NonFiniteError, Telemetry, check_finite, format_banner, format_table


class Clock:
    """Stands for `time.monotonic` in the module."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(telemetry.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def open_telemetry(directory, *, resume_step=None, total_steps=100):
    return Telemetry(directory, total_steps=total_steps, examples_per_step=8, resume_step=resume_step)


def read_lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_exact_values_and_throughput(tmp_path, clock):
    run = open_telemetry(tmp_path)
    run.log(10, {"loss": jnp.float32(0.1)})
    clock.now += 4.0
    run.log(20, {"loss": 0.1})
    assert read_lines(tmp_path) == [  # on disk before `close`
        {"step": 10, "kind": "train", "loss": float(np.float32(0.1))},
        {"step": 20, "kind": "train", "loss": 0.1, "examples_per_s": 20.0, "step_time_s": 0.4, "input_wait_s": 0.0},
    ]
    clock.now += 50.0
    run.log(20, {"perplexity": math.inf, "other": math.nan}, kind="validation")
    clock.now += 1.0
    run.log(30, {"loss": 0.3})
    assert read_lines(tmp_path)[2:] == [
        {"step": 20, "kind": "validation", "perplexity": "inf", "other": "nan"},
        {"step": 30, "kind": "train", "loss": 0.3, "examples_per_s": 80.0, "step_time_s": 0.1, "input_wait_s": 0.0},
    ]
    assert run.examples_per_s == 160 / 5.0  # the pause of the validation does not count
    run.close()


def test_resuming_keeps_each_step_once(tmp_path):
    run = open_telemetry(tmp_path)
    for step in (10, 20, 30):
        run.log(step, {"loss": step / 10})
    run.log(20, {"perplexity": 2.0}, kind="validation")
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "ki')  # killed while writing
    run = open_telemetry(tmp_path, resume_step=20)
    assert [(line["step"], line["kind"]) for line in read_lines(tmp_path)] == [
        (10, "train"),
        (20, "train"),
        (20, "validation"),
    ]
    run.log(30, {"loss": 3.5})
    run.close()
    assert [line["step"] for line in read_lines(tmp_path)] == [10, 20, 20, 30]
    assert read_lines(tmp_path)[-1]["loss"] == 3.5
    open_telemetry(tmp_path).close()  # a run without a checkpoint starts anew
    assert read_lines(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]


def test_a_damaged_line_is_named_and_the_file_left_alone(tmp_path):
    content = '{"step": 1, "kind": "train"}\n{"stXp": 2}\n{"step": 3, "kind": "train"}\n'
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        open_telemetry(tmp_path, resume_step=3)
    assert (tmp_path / "metrics.jsonl").read_text() == content


def test_tensorboard_reads_the_events_and_forgets_what_a_resumption_repeats(tmp_path):
    for resume_step, steps in ((None, (1, 2, 300)), (2, (3,))):
        run = open_telemetry(tmp_path, resume_step=resume_step)
        for step in steps:
            run.log(step, {"loss": step / 4, "huge": 1e40, "nan": math.nan})
        run.close()
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    tf = pytest.importorskip("tensorflow")
    first, second = (list(tf.compat.v1.train.summary_iterator(str(path))) for path in files)
    assert first[0].file_version == second[0].file_version == "brain.Event:2"
    start = second[1].session_log
    assert (second[1].step, start.status) == (3, start.START)  # what follows step 2 in earlier files is void
    values = {(event.step, value.tag): value.simple_value for event in first[2:] for value in event.summary.value}
    assert [values[step, "train/loss"] for step in (1, 2, 300)] == [0.25, 0.5, 75.0]
    assert values[1, "train/huge"] == math.inf and math.isnan(values[1, "train/nan"])
    assert [event.step for event in second[2:]] == [3]
    assert abs(first[2].wall_time - files[0].stat().st_mtime) < 60


def test_a_log_gets_sparse_lines(tmp_path, clock, capsys):
    run = open_telemetry(tmp_path, total_steps=1000)
    for step in range(1, 1001):
        clock.now += 0.125
        run.log(step, {"loss": 2.0})
    run.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/1000 (0 %): loss 2"
    assert lines[1] == "step 100/1000 (10 %): loss 2, examples/s 64, step_time 0.125 s, input_wait 0 s, 01:52 left"
    assert lines[-1] == "step 1000/1000 (100 %): loss 2, examples/s 64, step_time 0.125 s, input_wait 0 s, 00:00 left"
    assert len(lines) == 11


def test_a_slow_run_logs_once_a_minute(tmp_path, clock, capsys):
    run = open_telemetry(tmp_path, total_steps=10**6)
    for step in range(1, 31):
        clock.now += 10.0
        run.log(step, {"loss": 2.0})
    run.log(30, {"perplexity": 7.5}, kind="validation")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines[:-1]] == ["step 1", "step 7", "step 13", "step 19", "step 25"]
    assert lines[-1] == "validation at step 30: perplexity 7.5"


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = open_telemetry(tmp_path, resume_step=50)
    run.log(60, {"loss": 2.0})
    run.log(100, {"loss": 1.5})
    run.close()
    shown = capsys.readouterr().err
    assert " 50%" in shown and "100%" in shown and "800/800" in shown and "loss 1.5" in shown and "\r" in shown


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = open_telemetry(tmp_path)
    run.log(1, {"loss": 1.0})
    run.close()
    assert os.listdir(tmp_path) == [] and capsys.readouterr().err == ""


def test_a_file_that_cannot_grow_is_one_line(tmp_path):
    run = open_telemetry(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(UserError, match=r"metrics could not be written \(File too large\)"):
            for step in range(1, 20):
                run.log(step, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The guard, the banner, tables


def test_the_guard_names_step_value_and_samples():
    check_finite(3, {"loss": 1.0, "norm": np.float32(2.0)}, [1, 2])
    for bad in (math.nan, math.inf, -math.inf, jnp.float32(jnp.nan)):
        with pytest.raises(NonFiniteError, match=rf"step 7: norm = {float(bad)}: .*: 11, 12; ") as caught:
            check_finite(7, {"loss": 1.0, "norm": bad}, jnp.array([11, 12]))
        assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
        assert (caught.value.step, caught.value.sample_ids) == (7, (11, 12))
    with pytest.raises(NonFiniteError, match="and 412 more") as caught:
        check_finite(7, {"loss": math.nan}, range(512))
    assert caught.value.sample_ids == tuple(range(512))


def test_banner_counts_parameters_and_bytes():
    trainable = {"a": jax.ShapeDtypeStruct((1000, 1000), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.float32)}
    frozen = {"lm": jax.ShapeDtypeStruct((50257, 768), jnp.bfloat16)}
    rules = [("a", PartitionSpec("fsdp")), ("b", PartitionSpec()), ("lm", PartitionSpec(None, "fsdp"))]

    def banner(fsdp, choice="auto", frozen=frozen):
        mesh = make_abstract_mesh(MeshSettings(fsdp=fsdp), devices=8, batch_size=8)
        return format_banner("t", placement=place(trainable, frozen, rules, mesh, frozen_choice=choice)).splitlines()

    assert banner(1) == [
        "t",
        "  devices    8 x cpu (cpu)",
        "  mesh       data 8 x fsdp 1 x tensor 1",
        "  trainable  1,000,001 parameters, 4 MB",
        "  frozen     38,597,376 parameters, 77.19 MB",
    ]
    assert banner(2)[2:] == [
        "  mesh       data 4 x fsdp 2 x tensor 1",
        "  trainable  1,000,001 parameters, 4 MB, 2 MB on each device",
        "  frozen     38,597,376 parameters, 77.19 MB, whole along fsdp",
    ]
    assert banner(8, "sharded")[-1].endswith("77.19 MB, 9.649 MB on each device, cut along fsdp")
    huge = {"lm": jax.ShapeDtypeStruct((10**6, 10**6), jnp.int8)}
    assert banner(1, frozen=huge)[-1] == "  frozen     1,000,000,000,000 parameters, 1 TB"


def test_table_is_markdown_that_lines_up():
    table = format_table(["what", "value", "n"], [["seeing", 0.91234, 9673], ["blind", 0.5, "-"]])
    assert table.splitlines() == [
        "| what   |  value |    n |",
        "| ------ | -----: | ---: |",
        "| seeing | 0.9123 | 9673 |",
        "| blind  |    0.5 |    - |",
    ]
    assert format_table(["a", "b"], []).splitlines() == ["| a   |   b |", "| --- | --: |"]
