"""Losses and gradients that are not finite, losses that leap: each policy, what is recorded, and the step again."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax import steps
from frozen_jax.config import from_config_dict
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline
from frozen_jax.errors import UserError
from frozen_jax.fault_settings import FaultSettings
from frozen_jax.faults import Health, Rollback, move_limit, observe
from frozen_jax.run import run
from frozen_jax.telemetry import NonFiniteError
from frozen_jax.tools import replay
from frozen_jax.train import compile_train_step
from tests.faults.runs import fingerprint_checkpoint, list_steps, read_lines

BAD = 7  # the sample whose loss is NaN or leaps, in the first pass
LEAP = 2.0  # a weight that stands for a loss ten times as large
AT = Position(0, 0)


def look(health, loss, *, directory, norm=1.0, step=5, **settings):
    metrics = {"loss": loss, "grad_norm": norm}
    return observe(
        health, step, metrics, np.arange(3), position=AT, settings=FaultSettings(**settings), directory=directory
    )


def read_faults(directory):
    return [json.loads(line) for line in (directory / "faults.jsonl").read_text().splitlines()]


def test_the_limit_follows_the_average_of_sound_losses(tmp_path):
    health = Health()
    for loss in (4.0, 2.0, 9.0):  # nothing is a fault before the limit moves
        health = look(health, loss, directory=tmp_path, action="skip", spike=2.0)
    average = 0.98 * (0.98 * 4.0 + 0.02 * 2.0) + 0.02 * 9.0
    assert health == Health(0, pytest.approx(average), math.inf)
    health = move_limit(health, FaultSettings(spike=2.0))
    assert health.limit == 2 * health.average
    assert move_limit(Health(average=1.0), FaultSettings()).limit == math.inf
    leapt = look(health, health.limit * 1.01, directory=tmp_path, action="skip", spike=2.0)
    assert leapt == health._replace(faults=1)  # the loss of a fault moves no average
    (entry,) = read_faults(tmp_path)
    assert entry["loss_limit"] == health.limit and entry["sample_ids"] == [0, 1, 2] and entry["step"] == 5
    with pytest.raises(UserError, match=r"step 5: loss .* is above .*, 2 times its running average; faults.jsonl"):
        look(health, 99.0, directory=tmp_path, spike=2.0)
    with pytest.raises(Rollback):
        look(health, 99.0, directory=tmp_path, action="rollback", spike=2.0)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_faults_are_counted_bounded_and_written_once(tmp_path, loss, norm):
    health = Health()
    for number in range(2):
        health = look(health, loss, norm=norm, step=number, directory=tmp_path, action="skip", limit=2)
    assert health.faults == 2
    look(health._replace(faults=0), loss, norm=norm, step=1, directory=tmp_path, action="skip")  # a killed run, again
    assert [entry["step"] for entry in read_faults(tmp_path)] == [0, 1]
    with pytest.raises(NonFiniteError):
        look(health, loss, norm=norm, directory=tmp_path, action="skip", limit=2)


@pytest.fixture(autouse=True, scope="module")
def leaping():
    """The loss of a batch with a word of weight LEAP is ten times what it is, in the steps compiled for this module."""

    def leap(params, model, batch, **options):
        parts = plain(params, model, batch, **options)
        return parts._replace(loss_sum=jnp.where(jnp.max(batch.loss_mask) == LEAP, 10, 1) * parts.loss_sum)

    plain = steps.loss_fn
    compile_train_step.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "loss_fn", leap)
        yield
    compile_train_step.cache_clear()


@pytest.fixture
def weight():
    """What the words of the bad sample weigh."""
    return np.nan


@pytest.fixture
def config(tiny_config, monkeypatch, weight):
    """Six steps, each logged and saved, one of which has the bad sample."""
    tiny_config.mesh.data = 1
    tiny_config.train.log_every, tiny_config.train.evaluate_every = 1, 100
    tiny_config.checkpoint.every, tiny_config.checkpoint.keep = 1, 10
    made = Pipeline.batch

    def spoil(pipeline, position):
        batch = made(pipeline, position)
        hit = (np.asarray(batch.sample_ids) == BAD).reshape(len(batch.tokens), -1).any(axis=1)
        if position.epoch or not hit.any():
            return batch
        return batch._replace(loss_mask=np.where(hit[:, None], np.float32(weight) * batch.loss_mask, batch.loss_mask))

    monkeypatch.setattr(Pipeline, "batch", spoil)
    monkeypatch.setattr("frozen_jax.train.validate", lambda *_, **__: None)
    return from_config_dict(tiny_config)


def with_policy(config, action, **more):
    return dataclasses.replace(config, faults=FaultSettings(action=action, **more))


def test_raise_then_replay_then_skip(config, tmp_path, capsys):
    """The run stops; its faulty step can be taken again; it goes on under another policy, without that update."""
    with pytest.raises(NonFiniteError) as caught:
        run(config, tmp_path, mode="train")
    step = caught.value.step
    assert BAD in caught.value.sample_ids and list_steps(tmp_path) == list(range(1, step))
    (fault,) = read_faults(tmp_path)
    assert (fault["step"], fault["action"], fault["sample_ids"]) == (step, "raise", list(caught.value.sample_ids))
    assert fault["loss"] == "nan"

    before = read_lines(tmp_path)
    capsys.readouterr()
    for number in (step, step - 1):
        replay.main([f"--workdir={tmp_path}", f"--step={number}"])
        again = json.loads(capsys.readouterr().out)
        if number == step:
            assert again["sample_ids"] == fault["sample_ids"] and again["loss"] == "nan"
        else:
            assert again["loss"] == before[-1]["loss"] and again["grad_norm"] == before[-1]["grad_norm"]
        assert again["from_checkpoint"] == number - 1

    run(with_policy(config, "skip"), tmp_path, mode="train")
    assert list_steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    bits = {number: fingerprint_checkpoint(tmp_path, number)["arrays"] for number in range(1, 7)}
    assert [number for number in range(2, 7) if bits[number] == bits[number - 1]] == [step]
    assert fingerprint_checkpoint(tmp_path, 6)["position"]["faults"] == 1
    assert [entry["action"] for entry in read_faults(tmp_path)] == ["raise", "skip"]
    assert [line["step"] for line in read_lines(tmp_path) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("weight", [np.nan, LEAP])
def test_rollback_leaves_the_batch_out(config, tmp_path, weight):
    run(with_policy(config, "rollback", spike=3.0), tmp_path, mode="train")
    (fault,) = read_faults(tmp_path)
    last = fingerprint_checkpoint(tmp_path, 6)["position"]
    # Saved before each step: one batch is lost, and the last one comes from the second pass.
    assert (last["epoch"], last["used"], last["faults"]) == (1, 8, 1)
    lines = [line for line in read_lines(tmp_path) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(line["loss"], float) for line in lines)
    assert BAD in fault["sample_ids"] and fault["action"] == "rollback"


@pytest.mark.parametrize("weight", [LEAP])
def test_a_leap_of_the_loss_stops_the_run_or_is_skipped(config, tmp_path, weight):
    with pytest.raises(UserError, match=r"step \d: loss .* is above .*, 3 times its running average; .*faults\.spike"):
        run(with_policy(config, "raise", spike=3.0), tmp_path, mode="train")
    (fault,) = read_faults(tmp_path)
    step = fault["step"]
    assert BAD in fault["sample_ids"] and fault["loss"] > fault["loss_limit"] > 0
    assert list_steps(tmp_path) == list(range(1, step))
    run(with_policy(config, "skip", spike=3.0), tmp_path, mode="train")
    bits = {number: fingerprint_checkpoint(tmp_path, number) for number in range(1, 7)}
    assert [number for number in range(2, 7) if bits[number]["arrays"] == bits[number - 1]["arrays"]] == [step]
    assert bits[6]["position"]["faults"] == 1
    assert [entry["action"] for entry in read_faults(tmp_path)] == ["raise", "skip"]
