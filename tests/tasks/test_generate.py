"""The figures of drawn pictures by hand, and a reader that reads and can be wrong."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from frozen_jax.config import Config
from frozen_jax.data.fake import FakeSource
from frozen_jax.data.records import Record
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import EvaluateSettings, GenerateSettings
from frozen_jax.metrics.frechet import frechet_distance
from frozen_jax.tasks import generate
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.generate import find_nearest, score_tags, share_captioned
from frozen_jax.tasks.reader import train_reader
from tests.tasks.seers import Seer, paint, red_of


def test_frechet_distance_by_hand():
    """Of normal distributions on axes of their own: squared distance of means plus that of standard deviations."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3))
    features = (features - features.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(features, rowvar=False))).T
    other = features * np.array([2.0, 1.0, 3.0]) + np.array([1.0, 0.0, -2.0])
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, other) == pytest.approx(1 + 4 + 1 + 4, rel=1e-6)
    assert frechet_distance(other, features) == pytest.approx(10, rel=1e-6)


def test_tags_are_scored_each_and_all_together():
    read = [("red", "top"), ("red", "left"), ("blue", "top"), ("blue", "left")]
    asked = [("red", "top"), ("red", "top"), ("red", "top"), ("red", "top")]
    assert score_tags(read, asked, ("colour", "place")) == {"colour": 50.0, "place": 50.0, "accuracy": 25.0}


def test_nearest_pictures_by_root_mean_square():
    training = np.stack([np.full((2, 2, 3), grey, np.uint8) for grey in (0, 100, 200, 250)])
    nearest = find_nearest(training[[2]] - np.uint8(10), training)
    assert nearest.numbers.tolist() == [[2, 3, 1]] and not nearest.mirrored.any()
    np.testing.assert_allclose(nearest.distances, [[10, 60, 90]])


def test_neighbours_are_found_in_every_block_and_a_copy_is_no_distance_away(monkeypatch):
    monkeypatch.setattr(generate, "COMPARED", 3)
    training = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    whole = np.sqrt(np.square(training[:, None].astype(float) - training[None]).mean(axis=(2, 3, 4)))
    nearest = find_nearest(training, training)
    assert nearest.numbers.tolist() == whole.argsort(axis=1)[:, :3].tolist()
    np.testing.assert_allclose(nearest.distances, np.sort(whole, axis=1)[:, :3])
    assert (nearest.distances[:, 0] == 0).all()


def test_a_mirrored_copy_is_a_copy_where_training_mirrors(monkeypatch):
    """And it is shown as it was found, beside those that were found as they are."""
    training = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    pictures = np.stack([training[3, :, ::-1], training[1]])
    assert find_nearest(pictures, training).distances[0, 0] > 30
    nearest = find_nearest(pictures, training, flip=True)
    assert nearest.numbers[:, 0].tolist() == [3, 1] and nearest.mirrored[:, 0].tolist() == [True, False]
    np.testing.assert_allclose(nearest.distances[:, 0], 0, atol=0.1)
    shown = []
    monkeypatch.setattr(generate, "_draw_grid", lambda path, grid: shown.extend(grid))
    generate.draw_neighbours(Path("n.png"), ["one", "other"], pictures, training, nearest)
    (one, words), (other, plain) = shown[1]
    assert np.array_equal(one, pictures[0]) and np.array_equal(other, pictures[1])
    assert (words, plain) == ("training, mirrored, 0.0", "training, 0.0")


class Copyist:
    """Draws the pictures of a synthetic source from `start` on, mirrored."""

    def __init__(self, start=0):
        self.start = start

    def draw(self, texts, **options):
        return np.stack([FakeSource(12).record(self.start + row).image[:, ::-1] for row in range(len(texts))])


def test_what_is_tested_teaches_neither_the_judge_nor_counts_as_a_neighbour(tmp_path, monkeypatch):
    """Where both sources are one: the judge would know the answers, and every real picture would be a copy."""
    default = Config().data
    image = dataclasses.replace(default.image, size=FakeSource(12).record(0).image.shape[0])
    data = dataclasses.replace(default, train="fake:12", validation="fake:6", image=image)
    drawn = GenerateSettings(tags=("colour", "place"), reader_steps=2)
    config = Config(data=data, evaluate=EvaluateSettings(generate=drawn))
    taught = []

    def train(pictures, tags, **options):
        taught.extend(pictures)
        return train_reader(pictures, tags, **options)

    monkeypatch.setattr(generate, "train_reader", train)
    figures = generate.evaluate(config, Models(Copyist()), tmp_path).figures["generate"]
    assert np.array_equal(taught, [FakeSource(12).record(row).image for row in range(6, 12)])
    assert figures["real"]["nearest_train_rms"] > 1
    with pytest.raises(UserError, match="'fake:6' has no picture to learn from but those that are tested"):
        generate.evaluate(Config(data=dataclasses.replace(data, train="fake:6")), Models(Copyist()), tmp_path)


@pytest.mark.parametrize("flip", [False, True])
def test_the_report_knows_mirrored_copies_where_training_mirrors(flip, tmp_path):
    default = Config().data
    image = dataclasses.replace(default.image, size=FakeSource(6).record(0).image.shape[0])
    augment = dataclasses.replace(default.augment, flip=flip)
    data = dataclasses.replace(default, train="fake:12", validation="fake:6", image=image, augment=augment)
    figures = generate.evaluate(Config(data=data), Models(Copyist(start=6)), tmp_path).figures["generate"]
    assert (figures["seeing"]["nearest_train_rms"] == 0) == flip
    assert (tmp_path / "neighbours.png").stat().st_size > 1000


def test_a_reader_reads_pictures_that_it_has_not_seen_and_is_the_same_twice():
    records = [FakeSource(256).record(index) for index in range(256)]
    pictures, tags = np.stack([record.image for record in records]), [record.tags for record in records]
    readers = [train_reader(pictures[:192], tags[:192], steps=60, seed=0) for _ in range(2)]
    one, two = (reader.read(pictures[192:], batch_size=64) for reader in readers)
    assert one.tags == two.tags and np.array_equal(one.features, two.features)
    assert score_tags(one.tags, tags[192:], ("colour", "place"))["accuracy"] > 80
    black = readers[0].read(np.zeros_like(pictures[192:]), batch_size=64)
    assert score_tags(black.tags, tags[192:], ("colour", "place"))["accuracy"] < 30


SAID = {0: " A red square.", 80: " a red square. red", 160: " a red square. blue", 240: " a blue square"}


class Captioner(Seer):
    """Sees how red a picture is, and says what it is told to say of that."""

    def generate(self, prompts, *, max_new_tokens, stop):
        assert (max_new_tokens, stop) == (Config().evaluate.max_new_tokens, Config().evaluate.caption.stop)
        return [SAID[int(red_of(picture))] for (picture,) in prompts]


def test_captions_count_where_every_sentence_is_the_records_own():
    """One caption, two joined, one right and one wrong, a wrong one."""
    pictures = np.stack([paint(red) for red in SAID])
    for colour, share in (("red", 50.0), ("blue", 25.0), ("green", 0.0)):
        records = [Record(str(red), None, captions=(f"a {colour} square", colour)) for red in SAID]
        assert share_captioned(Captioner(), pictures, records, Config()) == share


def test_the_floor_is_of_the_kinds_that_are_tested(tmp_path, monkeypatch):
    """Pictures of other kinds, of which training has more, would make it a wall."""
    default = Config().data
    image = dataclasses.replace(default.image, size=FakeSource(12).record(0).image.shape[0])
    data = dataclasses.replace(default, train="fake:48", validation="fake:6", image=image)
    settings = EvaluateSettings(generate=GenerateSettings(tags=("colour",), reader_steps=2))
    compared = []
    monkeypatch.setattr(generate, "compare_features", lambda readings, training: compared.append(len(training)) or {})
    generate.evaluate(Config(data=data, evaluate=settings), Models(Copyist()), tmp_path)
    colours = {FakeSource(48).record(row).tags[0] for row in range(6)}
    alike = [row for row in range(6, 48) if FakeSource(48).record(row).tags[0] in colours]
    assert compared == [len(alike)] and len(alike) < 42
