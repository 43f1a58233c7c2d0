"""Whole runs on synthetic pictures: files, resuming bitwise, early stopping, controls, data parallelism."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from frozen_jax.build import build_towers
from frozen_jax.chips import find_chip
from frozen_jax.config import MeshSettings, ProfileSettings, from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.language_model import fingerprint_params
from frozen_jax.report import describe_training
from frozen_jax.restore import load
from frozen_jax.run import count_work, run
from frozen_jax.sharding import make_mesh
from frozen_jax.state import flatten
from frozen_jax.train import Progress, Trained, judge


def read_metrics(directory, kind="train"):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == kind}


def trained_fingerprint(directory):
    params = load(directory).params
    return fingerprint_params({key: params[key] for key in ("vision", "prefix")})


@pytest.fixture(scope="module")
def finished(tiny_lm, tmp_path_factory):
    """A finished run of `tiny_config` on one device, and its config."""
    config = dataclasses.replace(make_config(tiny_lm), mesh=dataclasses.replace(make_config(tiny_lm).mesh, data=1))
    directory = tmp_path_factory.mktemp("run") / "w"
    return config, directory, run(config, directory, mode="train")


def make_config(tiny_lm, **train):
    from frozen_jax.config import default_config

    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8, 8), "depths": (1, 1), "stem_width": 8}
    config.data.train, config.data.validation = "fake:48", "fake:10"
    config.data.image.size, config.data.max_tokens = 16, 40
    config.optim.learning_rate = 1e-2
    config.train.steps, config.train.batch_size = 6, 8
    config.train.log_every, config.train.evaluate_every = 2, 3
    config.checkpoint.every, config.checkpoint.keep = 2, 3
    config.telemetry.captions = 0  # a program more to compile
    config.train.update(train)
    return from_config_dict(config)


def test_a_run_writes_everything(finished):
    _, directory, report = finished
    there = {path.name for path in directory.iterdir()}
    assert {"config.json", "versions.json", "metrics.jsonl", "checkpoints", "report.json", "report.md"} <= there
    assert json.loads((directory / "report.json").read_text()) == report
    # What "auto" was, so that another kind of device loads the model as it was trained.
    assert json.loads((directory / "config.json").read_text())["lm"]["dtype"] == "float32"
    assert list(read_metrics(directory)) == [2, 3, 4, 6]
    measured = {"examples_per_s", "step_time_s", "input_wait_s"}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if measured <= set(line)] == [3, 4, 6]
    assert not any("mfu" in line for line in lines)
    assert list(read_metrics(directory, "validation")) == [3, 6]
    assert report["frozen"]["lm_sha256_before"] == report["frozen"]["lm_sha256_after"]
    assert report["train"]["steps"] == 6 and report["train"]["examples_per_s"] > 0


def test_training_lowers_the_loss(tiny_lm, tmp_path):
    run(make_config(tiny_lm, steps=40, evaluate_every=20), tmp_path / "w", mode="train")
    losses = read_metrics(tmp_path / "w", "validation")
    assert losses[40] < losses[20] < read_metrics(tmp_path / "w")[2]


@contextlib.contextmanager
def dying_at(monkeypatch, *, step):
    """A run in the body dies before it has done with this step."""

    def observe(health, reached, *_, **__):
        if reached == step:
            raise KeyboardInterrupt
        return health

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("frozen_jax.train.observe", observe)
        yield


def test_resuming_continues_bitwise(finished, tiny_lm, tmp_path, monkeypatch):
    """A run that dies after step 4 and starts again ends with the same bits and the same log as one that did not."""
    config, directory, _ = finished
    with dying_at(monkeypatch, step=5):
        run(config, tmp_path / "w", mode="train")
    assert max(read_metrics(tmp_path / "w")) == 4
    run(config, tmp_path / "w", mode="train")
    assert read_metrics(tmp_path / "w") == read_metrics(directory)
    assert read_metrics(tmp_path / "w", "validation") == read_metrics(directory, "validation")
    assert trained_fingerprint(tmp_path / "w") == trained_fingerprint(directory)


def test_a_finished_run_only_evaluates(finished, monkeypatch, capsys):
    config, directory, report = finished

    def refuse(*_, **__):
        raise AssertionError("a finished run took a step")

    monkeypatch.setattr("frozen_jax.train.compile_train_step", lambda *_: refuse)
    again = run(config, directory, mode="train")
    assert again["train"]["best_step"] == report["train"]["best_step"]
    assert "finished" in capsys.readouterr().out


def test_before_its_first_validation_a_run_has_no_best_loss(finished):
    """As of a run that was interrupted early and is asked all the same; its report is JSON, which has no infinity."""
    config, _, report = finished
    assert describe_training(config, Trained({}, Progress(step=2)))["best_validation_loss"] is None
    assert report["train"]["best_validation_loss"] > 0


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(finished, tmp_path):
    config, directory, _ = finished
    run(config, tmp_path / "same", mode="train")
    other = dataclasses.replace(config, seed=1)
    run(other, tmp_path / "other", mode="train")
    assert trained_fingerprint(tmp_path / "same") == trained_fingerprint(directory)
    assert trained_fingerprint(tmp_path / "other") != trained_fingerprint(directory)


def test_eight_devices_train_like_one(finished, tmp_path):
    """Data parallelism over the 8 devices of the harness: the same losses to rounding."""
    config, directory, _ = finished
    assert jax.device_count() == 8
    spread = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=-1))
    run(spread, tmp_path / "w", mode="train")
    one, eight = read_metrics(directory), read_metrics(tmp_path / "w")
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)


def test_a_run_goes_on_on_another_mesh_and_profiles_there(finished, tmp_path):
    """Begun on one device, resumed at step 4 on 2 x 4, everything cut along fsdp: the same losses to rounding."""
    config, directory, _ = finished
    shutil.copytree(directory, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "6")
    elsewhere = dataclasses.replace(
        config, mesh=MeshSettings(data=-1, fsdp=4, frozen="sharded"), profile=ProfileSettings(start=5, steps=1)
    )
    run(elsewhere, tmp_path / "w", mode="train")
    one, eight = read_metrics(directory), read_metrics(tmp_path / "w")
    assert list(one) == list(eight)
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


def test_blind_sees_no_picture(tiny_lm, tmp_path):
    config = dataclasses.replace(make_config(tiny_lm), blind=True)
    run(config, tmp_path / "w", mode="train")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    prefixes = load(tmp_path / "w").embed_image(pictures)
    assert prefixes.shape == (3, 2, 16) and (prefixes == prefixes[:1]).all()


@pytest.mark.parametrize("mode", ["finetuned", "scratch"])
def test_the_lm_trains_in_its_controls(tiny_lm, tmp_path, mode):
    config = make_config(tiny_lm)
    config = dataclasses.replace(config, lm=dataclasses.replace(config.lm, mode=mode))
    report = run(config, tmp_path / "w", mode="train")
    assert report["frozen"]["lm_sha256_before"] != report["frozen"]["lm_sha256_after"]


@pytest.mark.parametrize("length", [1, 4])
def test_prefix_length_is_a_switch(tiny_lm, tmp_path, length):
    config = make_config(tiny_lm, steps=2, evaluate_every=2)
    config = dataclasses.replace(config, prefix=dataclasses.replace(config.prefix, length=length))
    run(config, tmp_path / "w", mode="train")
    kernel = flatten(load(tmp_path / "w").params)["prefix/projection/kernel"]
    assert kernel.shape == (8, length * 16)


def test_early_stopping_by_hand():
    progress = Progress()
    for step, loss, stale, finished in [(1, 3.0, 0, False), (2, 2.0, 0, False), (3, 2.5, 1, False), (4, 2.0, 2, True)]:
        progress = judge(progress._replace(step=step), loss, patience=2)
        assert (progress.stale, progress.finished) == (stale, finished)
    assert (progress.best_step, progress.best_loss) == (2, 2.0)
    assert not judge(progress._replace(finished=False), 9.0, patience=0).finished


def test_early_stopping_ends_the_run_and_keeps_the_best(tiny_lm, tmp_path, monkeypatch):
    losses = iter([2.0, 1.0, 1.5, 1.5, 1.5])
    scores = lambda *_, **__: ({"loss": next(losses)}, np.zeros(0, np.float32))  # noqa: E731
    monkeypatch.setattr("frozen_jax.train.evaluate", scores)
    config = make_config(tiny_lm, steps=20, evaluate_every=2, patience=2)
    report = run(config, tmp_path / "w", mode="train")
    assert report["train"] | {"steps": 8, "best_step": 4, "stopped_early": True} == report["train"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_examples(tiny_lm, tmp_path):
    config = make_config(tiny_lm)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1e30))
    with pytest.raises(UserError, match=r"step \d+.*sample"):
        run(config, tmp_path / "w", mode="train")


def test_eval_mode_needs_a_checkpoint(tiny_lm, tmp_path):
    with pytest.raises(UserError, match="train first"):
        run(make_config(tiny_lm), tmp_path / "w", mode="eval")


def test_mfu_is_the_rate_times_the_work_over_the_peak(tiny_lm, tmp_path, monkeypatch):
    chip = dataclasses.replace(find_chip("TPU v5e"), kinds=("cpu",), flops_per_s=1e9)
    monkeypatch.setattr("frozen_jax.run.find_chip", lambda kind: chip if kind == "cpu" else None)
    config = dataclasses.replace(make_config(tiny_lm, log_every=1), mesh=MeshSettings(data=2))
    towers = build_towers(config)
    work = count_work(config, towers, make_mesh(config.mesh, batch_size=8))
    assert work["peak_flops_per_s"] == 2e9 and work["flops_per_example"] > 1e5
    run(config, tmp_path / "w", mode="train")
    lines = [json.loads(line) for line in (tmp_path / "w/metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "mfu" in line]
    assert measured
    for line in measured:
        assert line["mfu"] == pytest.approx(
            line["examples_per_s"] * work["flops_per_example"] / 2e9, abs=1e-4, rel=1e-2
        )
