"""What users get wrong: one clear line that names the value and the way out, exit status 1, nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frozen_jax.config import from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.run import run
from frozen_jax.sums import SUMS
from frozen_jax.tools.caption import caption

ROOT = Path(__file__).parent.parent


def start_main(*arguments):
    """The real command, without the harness's run-time checks."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "frozen_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.setps=3"], '"steps" instead of "setps"'),
        (["--config.train.steps=many"], "--config.train.steps=many"),
        (["--confg=x"], "'confg'. Did you mean: config"),
        (["--config=configs/nope.py"], "configs/nope.py"),
        (["--config=configs/quickstart.py:mxed"], "no variant 'mxed'; use mixed or retrieval"),
        (["--mode=predict"], "--mode=predict"),
        (["--config.lm.mode=frosen"], "config.lm.mode is 'frosen'; it must be one of"),
        (["steps=3"], "unknown argument 'steps=3'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_makes_no_workdir(tmp_path, flags, message):
    given = ["--config=configs/debug_tiny.py", f"--workdir={tmp_path / 'w'}"]
    done = start_main(*given, *flags)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("missing", ["config", "workdir"])
def test_a_missing_flag_shows_a_whole_command(tmp_path, missing):
    given = {"config": "configs/debug_tiny.py", "workdir": str(tmp_path / "w")}
    del given[missing]
    done = start_main(*[f"--{name}={value}" for name, value in given.items()])
    assert done.returncode == 1 and done.stderr.startswith(f"error: --{missing} is missing; for example: python -m")


@pytest.fixture
def lm_copy(tiny_lm, tmp_path, tiny_config):
    """A copy of the language model that a test may damage; `tiny_config` points to it."""
    copy = tmp_path / "lm"
    shutil.copytree(tiny_lm, copy)
    (copy / SUMS).unlink()  # which would tell of any change before the readers see it
    tiny_config.lm.path = str(copy)
    return copy


def refused(config, directory):
    """Runs, and returns the error's message, which must be one line; no checkpoint or report may be there."""
    with pytest.raises(UserError) as error:
        run(from_config_dict(config), directory, mode="train")
    assert "\n" not in str(error.value)
    assert not list(directory.glob("checkpoints/*")) and not (directory / "report.json").exists()
    return str(error.value)


def test_a_language_model_without_a_weight(lm_copy, tiny_config, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(lm_copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("attn.c_attn.weight"))
    del tensors[name]
    save_file(tensors, lm_copy / "model.safetensors")
    assert name.removeprefix("transformer.") in refused(tiny_config, tmp_path / "w")


def test_a_truncated_file_of_weights(lm_copy, tiny_config, tmp_path):
    path = lm_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused(tiny_config, tmp_path / "w")


def test_a_tokenizer_of_another_model(lm_copy, tiny_config, tmp_path):
    from frozen_jax.tokenizer import train_bpe

    train_bpe([f"word{n}" for n in range(500)], vocab_size=400, special_tokens=["<s>"]).save(lm_copy)
    message = refused(tiny_config, tmp_path / "w")
    assert "tokenizer" in message and "300" in message


def test_a_tokenizer_without_a_token_that_begins_a_text(lm_copy, tiny_config, tmp_path):
    stated = json.loads((lm_copy / "tokenizer_config.json").read_text()) | {"bos_token": None}
    (lm_copy / "tokenizer_config.json").write_text(json.dumps(stated))
    tiny_config.data.bos = True
    message = refused(tiny_config, tmp_path / "w")
    assert "config.data.bos is True" in message and str(lm_copy) in message and "set it to False" in message


def test_no_such_language_model(tiny_config, tmp_path):
    tiny_config.lm.path = str(tmp_path / "nowhere")
    assert "nowhere" in refused(tiny_config, tmp_path / "w")
    tiny_config.lm.path = "package:gpt5"
    assert "package:gpt5" in refused(tiny_config, tmp_path / "v") and "scene_gpt2" in refused(
        tiny_config, tmp_path / "v"
    )


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("data", "train", "easyvqa:train", "easyvqa:train"),
        ("data", "train", "easy_vqa:tran", "tran"),
        ("vision", "name", "resnet5", "resnet5"),
        ("vision", "options", {"width": 3}, "width"),
        ("train", "batch_size", 12, "config.train.batch_size"),
    ],
)
def test_names_and_sizes_that_do_not_fit(tiny_config, tmp_path, section, name, value, message):
    given = tiny_config.to_dict()
    given[section][name] = value
    assert message in refused(given, tmp_path / "w")


@pytest.fixture(scope="module")
def workdir(tiny_lm, tmp_path_factory):
    """A short finished run, with its config as the user gave it."""
    from frozen_jax.config import default_config

    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size, config.data.max_tokens = 16, 40
    config.train.steps, config.train.batch_size = 1, 8
    directory = tmp_path_factory.mktemp("run") / "w"
    run(from_config_dict(config), directory, mode="train")
    return config, directory


def test_a_workdir_of_another_config_names_the_difference(workdir):
    config, directory = workdir
    given = config.to_dict()
    given["optim"]["learning_rate"] = 0.5
    with pytest.raises(UserError, match=r"optim\.learning_rate = 0\.0003 there, 0\.5 here"):
        run(from_config_dict(given), directory, mode="train")


def test_a_read_only_workdir(workdir, tmp_path, monkeypatch):
    """By a failing system call: file modes do not stop the superuser, who runs many containers."""
    config, _ = workdir

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        run(from_config_dict(config), tmp_path / "w", mode="train")


def test_a_workdir_that_is_a_file(workdir, tmp_path):
    config, _ = workdir
    (tmp_path / "w").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(from_config_dict(config), tmp_path / "w", mode="train")


def test_a_language_model_that_changed_since_training(workdir, tiny_lm, tmp_path):
    """The checkpoint holds a fingerprint, not the model: another model is refused, not silently used."""
    from safetensors.numpy import load_file, save_file

    config, directory = workdir
    saved = {name: (tiny_lm / name).read_bytes() for name in ("model.safetensors", SUMS)}
    tensors = load_file(tiny_lm / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + np.float32(1e-3)
    try:
        (tiny_lm / SUMS).unlink()
        save_file(tensors, tiny_lm / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"trained through language model /\S+ in float32 \(.*this run loads /"):
            run(from_config_dict(config), directory, mode="train")
    finally:
        for name, content in saved.items():
            (tiny_lm / name).write_bytes(content)


def test_the_same_language_model_in_another_dtype(workdir):
    config, directory = workdir
    given = config.to_dict()
    given["lm"]["dtype"] = "bfloat16"
    with pytest.raises(UserError, match=r'lm\.dtype = "float32" there, "bfloat16" here'):
        run(from_config_dict(given), directory, mode="train")


def test_pictures_that_are_none(workdir, tmp_path):
    _, directory = workdir
    text, huge, tiny = tmp_path / "text.png", tmp_path / "huge.png", tmp_path / "tiny.png"
    text.write_text("not a picture")
    Image.new("1", (20000, 20000)).save(huge)
    Image.new("RGB", (1, 1), "red").save(tiny)
    with pytest.raises(UserError, match=r"text\.png"):
        caption(directory, [text], question=None)
    with pytest.raises(UserError, match=r"huge\.png.*400000000 pixels"):
        caption(directory, [huge], question=None)
    with pytest.raises(UserError, match="missing"):
        caption(directory, [tmp_path / "missing.png"], question=None)
    assert len(caption(directory, [tiny], question=None)) == 1


def test_a_directory_that_holds_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no run \(no config\.json\)"):
        caption(tmp_path, [tmp_path / "a.png"], question=None)
