"""What is tested is not learnt from, whatever a picture is called and wherever it comes from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from frozen_jax.data.records import FileSlice, Record
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.tasks.controls import leave_out_pictures
from tests.tasks.seers import paint


def learn(*images):
    return [Record(str(number), image) for number, image in enumerate(images)]


def test_a_file_is_the_same_by_any_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    Pillow.fromarray(paint(10)).save(tmp_path / "a" / "x.png")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    tested = learn(tmp_path / "a" / "x.png")
    for name in ("a/x.png", "a/../a/x.png", "linked/x.png"):
        with pytest.raises(UserError, match="no picture to learn from but those that are tested"):
            leave_out_pictures(learn(Path(name)), tested, line="other")
    slices = [FileSlice(tmp_path / "a" / "x.png", 0, 9), FileSlice(Path("linked/x.png"), 0, 9)]
    assert not [record for record in leave_out_pictures(learn(*slices, Path("b")), learn(slices[0]), line="") if
                isinstance(record.image, FileSlice)]  # fmt: skip


def test_pictures_without_a_file_are_told_apart_by_what_they_show():
    """Not by their ids, which a mixture changes and two sources may have in common."""
    tested = [open_source("fake:6").record(row) for row in range(6)]
    mixture = open_source("fake:6 + fake:8")
    left = leave_out_pictures([mixture.record(row) for row in range(len(mixture))], tested, line="")
    assert len(left) == 2
    others = [Record(record.id, 255 - record.image) for record in tested]
    assert leave_out_pictures(others, tested, line="") == others
    encoded = [b"one", b"two"]
    assert [record.image for record in leave_out_pictures(learn(*encoded), learn(b"one"), line="")] == [b"two"]
    turned = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    assert leave_out_pictures(learn(turned.reshape(2, 1, 3)), learn(turned), line="")
