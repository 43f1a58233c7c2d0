"""The data check: right counts, exit status 1 when something is bad, a manifest that tells two sets apart."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from frozen_jax.tools import data_check
from frozen_jax.tools.data_check import main


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for number in range(6):
        pixels = np.full((10 + number, 20, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text("a grey picture" if number < 4 else f"picture {number}")
    return root


def run(folder, output, *, status):
    arguments = [f"--source=folder:{folder}", f"--output={output}", "--size=16"]
    if status:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
    else:
        main(arguments)
    return json.loads((output / "source.json").read_text())


def test_a_good_set(folder, tmp_path, capsys):
    figures = run(folder, tmp_path / "out", status=0)
    assert (figures["records"], figures["with_picture"], figures["captions"], figures["bad"]) == (6, 6, 6, {})
    assert figures["repeated"] == {"ids": 0, "pictures": 0, "captions": 3}
    assert figures["caption_words"]["histogram"] == {"2": 2, "3": 4}
    assert figures["image_height"]["0%"] == 10 and figures["image_height"]["100%"] == 15
    assert figures["image_forms"] == {"PNG RGB": 6}
    assert Image.open(tmp_path / "out/source.png").width > 400
    assert "6 records" in capsys.readouterr().out


def test_the_manifest_tells_what_changed(folder, tmp_path):
    first = run(folder, tmp_path / "a", status=0)
    assert run(folder, tmp_path / "b", status=0)["sha256"] == first["sha256"]
    (folder / "3.txt").write_text("another caption")
    assert run(folder, tmp_path / "b", status=0)["sha256"] != first["sha256"]
    lines = [(tmp_path / name / "source.manifest").read_text().splitlines() for name in "ab"]
    assert [a == b for a, b in zip(*lines, strict=True)] == [True, True, True, False, True, True]


def test_bad_items_are_listed_and_the_status_is_1(folder, tmp_path, capsys):
    (folder / "1.png").write_bytes(b"no picture at all")
    (folder / "2.txt").unlink()
    (folder / "5.png").unlink()
    figures = run(folder, tmp_path / "out", status=1)
    assert {reason: entry["ids"] for reason, entry in figures["bad"].items()} == {
        "no picture": ["5"], "no text": ["2.png"], "not a picture": ["1.png"],
    }  # fmt: skip
    assert "BAD not a picture: 1, such as 1.png" in capsys.readouterr().out


def test_names_that_are_not_utf8_are_shown_escaped(folder, tmp_path, capsys):
    root = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    for suffix in (b".png", b".txt"):
        os.rename(os.fsencode(root) + b"/5" + suffix, os.fsencode(root) + b"/\xfe" + suffix)
    (root / "5.png").write_bytes(b"no picture")
    os.rename(root / "5.png", os.fsencode(root) + b"/\xfd.png")
    figures = run(root, tmp_path / "out", status=1)
    assert (figures["records"], figures["source"]) == (7, f"folder:{tmp_path}/\\udcff")
    assert figures["bad"]["not a picture"]["ids"] == ["\\udcfd.png"]
    assert (tmp_path / "out/source.manifest").read_text().count(" \\udcf") == 2
    assert "such as \\udcfd.png" in capsys.readouterr().out.encode("utf-8").decode()


def test_the_output_is_made_before_the_work(folder, monkeypatch, capsys):
    monkeypatch.setattr(data_check, "inspect_source", None)
    for output in (f"{folder}/0.png", f"{folder}/0.png/x", "/proc/x", f"{folder}/{'x' * 300}"):
        with pytest.raises(SystemExit):
            main([f"--source=folder:{folder}", f"--output={output}"])
        assert f"--output={output}: cannot be written" in capsys.readouterr().err


def test_a_config_is_checked_whole(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from frozen_jax.config import default_config\n"
        "def get_config(size='4'):\n"
        "    config = default_config()\n"
        "    config.lm.path, config.vision.name = 'package:scene_gpt2', 'nf_resnet_small'\n"
        "    config.data.train, config.data.validation, config.data.image.size = 'fake:' + size, 'fake:2', 16\n"
        "    return config\n"
    )
    main([f"--config={config}:6", f"--output={tmp_path / 'out'}"])
    written = [json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("train", "validation")]
    assert [figures["records"] for figures in written] == [6, 2]
    for arguments, message in (
        ([], "nothing to check"),
        (["--config=/none.py"], "/none.py"),
        (["--source=folder:/none"], "not a folder"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, f"--output={tmp_path / 'out'}"])
        assert message in capsys.readouterr().err
