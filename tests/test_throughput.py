"""Throughput, waits, memory and MFU by a clock of the test; the profile window writes a trace of its steps alone."""

import jax
import jax.numpy as jnp
import pytest

from frozen_jax import throughput
from frozen_jax.throughput import ProfileWindow, Throughput


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(throughput.time, "monotonic", lambda: Clock.now)
    return Clock


def test_figures_by_hand(clock, monkeypatch):
    monkeypatch.setattr(throughput, "read_peak_memory", lambda: 5 * 10**9)
    meter = Throughput(examples_per_step=8, flops_per_example=1e9, peak_flops_per_s=4e10)

    def load(count):
        for number in range(count):
            clock.now += 0.25
            yield number

    assert meter.measure(0, training=True) == {}
    for _ in meter.time_input(load(4)):
        clock.now += 0.75
    assert meter.measure(4, training=True) == {
        "examples_per_s": 8.0,
        "step_time_s": 1.0,
        "input_wait_s": 0.25,
        "mfu": 0.2,  # 8 examples/s x 1 GFLOP of 40 GFLOP/s
        "device_memory_bytes": 5 * 10**9,
    }
    clock.now += 100.0
    assert meter.measure(4, training=False) == {}
    clock.now += 2.0
    assert meter.measure(6, training=True)["input_wait_s"] == 0.0
    assert meter.examples_per_s == 48 / 6.0


def test_without_a_peak_there_is_no_mfu_and_a_cpu_tells_no_memory(clock):
    meter = Throughput(examples_per_step=8, flops_per_example=1e9)
    meter.measure(0, training=True)
    clock.now += 1.0
    assert set(meter.measure(1, training=True)) == {"examples_per_s", "step_time_s", "input_wait_s"}


@pytest.mark.parametrize(("first", "traced"), [(1, [3, 4]), (4, [4]), (5, [])])
def test_the_window_opens_and_closes(tmp_path, monkeypatch, first, traced):
    log, on = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: on.append(directory))
    monkeypatch.setattr(jax.profiler, "stop_trace", on.clear)
    window = ProfileWindow(tmp_path, start=3, steps=2)
    for step in range(first, 8):
        window.before(step)
        log += [step] if on else []
        window.after(step, jnp.zeros(()))
    assert log == traced and not on


def test_a_run_that_ends_inside_the_window_ends_the_trace(tmp_path):
    window = ProfileWindow(tmp_path, start=1, steps=9)
    window.before(1)
    jnp.ones(3).block_until_ready()
    window.after(1, jnp.zeros(()))
    window.close()
    window.close()
    assert list(tmp_path.rglob("*.xplane.pb"))
