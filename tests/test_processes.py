"""Several processes as one run, by the launcher that users have: equal numbers, one writer, resumption on other counts.

Each start of a process costs seconds, so one chain of runs serves all checks: two processes train until early stopping
ends them; four go on from the middle of it; one evaluates the result.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frozen_jax.config import from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.processes import join_processes
from frozen_jax.run import run

ROOT = Path(__file__).parent.parent
CONFIG = """
from frozen_jax.config import default_config


def get_config():
    config = default_config()
    config.lm.path = {lm!r}
    config.vision.name = "nf_resnet_small"
    config.vision.options = {{"widths": (8,), "depths": (1,), "stem_width": 8}}
    config.data.train, config.data.validation = "fake:48", "fake:10"  # 10 fills one batch of 8 and a part of another
    config.data.image.size, config.data.max_tokens = 16, 40
    # Training towards even probabilities: the validation loss soon rises, and early stopping ends the run at step 8.
    config.optim.learning_rate, config.optim.label_smoothing = 0.1, 0.99
    config.train.steps, config.train.batch_size, config.train.log_every = 12, 8, 1
    config.train.evaluate_every, config.train.patience = 2, 1
    config.checkpoint.every, config.checkpoint.keep = 2, 6
    config.evaluate.task, config.evaluate.max_new_tokens, config.evaluate.batch_size = "caption", 3, 4
    return config
"""


def launch(count, config, workdir, *more, devices=1):
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "DEVICES": str(devices),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    command = ["launch/local_multihost.sh", str(count), f"--config={config}", f"--workdir={workdir}", *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def read_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["kind"], line["step"]): line["loss"] for line in lines}


@pytest.fixture(scope="module")
def config_file(tiny_lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(lm=str(tiny_lm)))
    return path


@pytest.fixture(scope="module")
def two(config_file, tmp_path_factory):
    """The workdir of two processes with two devices each, and what they printed."""
    workdir = tmp_path_factory.mktemp("two") / "w"
    done = launch(2, config_file, workdir, devices=2)
    assert done.returncode == 0, done.stderr
    return workdir, done


def load_config(path):
    scope = {"__name__": "config"}
    exec(path.read_text(), scope)
    return scope["get_config"]()


def test_two_processes_train_and_evaluate_as_one_does(two, config_file, tmp_path):
    """Also the validation loss: each of the ten examples counts once, though batches of eight are cut in four."""
    workdir, _ = two
    config = load_config(config_file)
    config.mesh.data = 1
    report = run(from_config_dict(config), tmp_path / "one", mode="train")
    one, many = read_losses(tmp_path / "one"), read_losses(workdir)
    assert list(one) == list(many)
    np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-5)
    assert report["train"]["stopped_early"] and report["train"]["best_step"] < report["train"]["steps"] < 12
    there = json.loads((workdir / "report.json").read_text())
    for name in ("steps", "best_step", "stopped_early", "best_validation_loss"):
        assert there["train"][name] == report["train"][name]
    assert there["frozen"] == report["frozen"]
    # Captions of ten pictures, their references' losses, and both on shuffled pictures, in batches of four: each
    # process makes some of the twelve. Losses are sums in another order.
    for name in ("seeing", "shuffled"):
        nats = (measured["caption"][name].pop("nats_per_token") for measured in (there, report))
        np.testing.assert_allclose(*nats, rtol=1e-4)
    assert there["caption"] == report["caption"] and report["caption"]["n"] == 10
    answers, alone = read_answers(workdir), read_answers(tmp_path / "one")
    assert list(map(len, answers)) == [4, 4, 2] * 4
    for batch, same in enumerate(zip(answers, alone, strict=True)):
        assert same[0] == same[1] if batch // 3 % 2 == 0 else np.allclose(*same, rtol=1e-5)


def read_answers(workdir):
    lines = (workdir / "answers" / "report.jsonl").read_text().splitlines()
    return [json.loads(line)["answers"] for line in lines[1:]]


def test_the_first_process_alone_writes_and_speaks(two):
    workdir, done = two
    assert done.stdout.count("training\n") == 1 and "in 2 processes" in done.stdout
    log = (workdir / "logs" / "process_1.log").read_text()
    assert "training" not in log and "report" not in log
    assert len(list((workdir / "tensorboard").iterdir())) == 2, "of the training, and of the captions after it"


def test_four_processes_resume_what_two_began_and_one_reads_it(two, config_file, tmp_path):
    before, _ = two
    workdir = tmp_path / "w"
    shutil.copytree(before, workdir)
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    shutil.rmtree(workdir / "checkpoints" / str(last))
    done = launch(4, config_file, workdir, "--config.evaluate.task=none", "--config.telemetry.captions=0")
    assert done.returncode == 0, done.stderr
    assert "in 4 processes" in done.stdout
    want, found = read_losses(before), read_losses(workdir)
    assert list(found) == list(want)
    np.testing.assert_allclose(list(found.values()), list(want.values()), rtol=1e-5)
    assert (workdir / "checkpoints" / str(last)).is_dir()
    config = load_config(config_file)
    config.evaluate.task = "none"
    report = run(from_config_dict(config), workdir, mode="eval")
    assert report["train"]["steps"] == last


def test_an_error_of_one_ends_all(config_file, tmp_path):
    (tmp_path / "foreign").touch()
    done = launch(2, config_file, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 2 and "Traceback" not in done.stderr
    assert "holds other files (foreign)" in done.stderr and "the others are ended" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["two"], "first argument is two"), ([], "missing"), (["2", "--config=a.py"], "--workdir is missing")],
)
def test_the_launcher_refuses_wrong_arguments(arguments, message):
    done = subprocess.run(["launch/local_multihost.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


def test_a_number_of_processes_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        join_processes(wanted=True)
