"""The best checkpoint is damaged or gone when a run is evaluated or exported: refused, or the newest with a warning."""

import os
import shutil

import jax.numpy as jnp
import pytest

from frozen_jax.checkpoint import Checkpoints, DamagedError
from frozen_jax.errors import UserError
from frozen_jax.state import TrainState
from frozen_jax.train import Progress, restore_best


def make_state(step):
    return TrainState({"prefix": {"kernel": jnp.full(64, step, jnp.float32)}}, (jnp.float32(step),))


def open_checkpoints(directory, on_damage="raise"):
    return Checkpoints(directory, keep=2, fingerprint="lm", config_digest="config", on_damage=on_damage)


@pytest.fixture
def saved(tmp_path):
    """Steps 2, the best, and 3 and 4; each holds its own number."""
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        progress = Progress(step=step, best_step=min(step, 2), best_loss=1.0)
        checkpoints.save(step, make_state(step), position=progress._asdict(), best=step <= 2)
    checkpoints.close()
    assert checkpoints.steps() == [2, 3, 4]
    return tmp_path


def used(directory, on_damage):
    trained = restore_best(open_checkpoints(directory, on_damage), make_state(0))
    assert trained.progress.step == 4
    return trained.trainable["prefix"]["kernel"][0]


def test_where_there_is_no_checkpoint_the_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/checkpoints holds no complete checkpoint; train first"):
        used(tmp_path / "checkpoints", "raise")


@pytest.mark.parametrize("file", ["meta/metadata", "arrays/manifest.ocdbt"])
def test_a_damaged_best_is_refused_or_the_newest_serves_with_a_warning(saved, capsys, file):
    assert used(saved, "raise") == 2 and capsys.readouterr().err == ""
    path = saved / "2" / file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DamagedError, match=r"step 2 is damaged: .*checkpoint\.on_damage=fallback"):
        used(saved, "raise")
    assert used(saved, "fallback") == 4
    (warning,) = capsys.readouterr().err.splitlines()
    assert "step 2 is damaged" in warning and warning.endswith("using step 4 in place of the best")


def test_a_run_that_goes_on_beside_a_damaged_best_stops_or_sets_it_aside(saved, capsys):
    (saved / "2/meta/metadata").write_text("{}")
    with pytest.raises(DamagedError, match="step 2 is damaged"):
        go_on(open_checkpoints(saved), 5)
    assert sorted(os.listdir(saved)) == ["2", "3", "4", "5"]
    go_on(open_checkpoints(saved, "fallback"), 6)
    assert sorted(os.listdir(saved)) == ["5", "6", "damaged-2"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "step 2 is damaged" in warning and warning.endswith("taking it for one that was not the best")


def go_on(checkpoints, step):
    checkpoints.save(step, make_state(step), position={})
    checkpoints.close()


def test_a_best_that_somebody_removed_is_missed_aloud(saved, capsys):
    """The message about damage says that the directory may be removed."""
    shutil.rmtree(saved / "2")
    assert used(saved, "raise") == 4
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == "warning: the checkpoint of the best step, 2, is not there; using step 4 in place of it"
