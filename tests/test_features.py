"""A frozen encoder's features, made once: the run equals one that encodes in each step; files are made when needed."""

import dataclasses
import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from frozen_jax import features
from frozen_jax.abstract import abstract_batch, abstract_run
from frozen_jax.build import build_towers
from frozen_jax.config import MeshSettings, default_config, from_config_dict
from frozen_jax.data.class_features import write_class_features
from frozen_jax.data.fake import FakeSource
from frozen_jax.data.features import index_pictures
from frozen_jax.data.order import Position
from frozen_jax.data.records import FileSlice, MemorySource, Record
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.features import drop_encoder, open_features
from frozen_jax.flops import count_train_step
from frozen_jax.language_model import fingerprint_params
from frozen_jax.restore import load
from frozen_jax.run import make_pipeline, run
from frozen_jax.sharding import make_mesh
from tests.test_pretrained_vision import VIT, save
from tests.test_run import read_metrics

BAD = 7
"""Number of the picture that is damaged."""


@pytest.fixture(scope="module")
def config(tiny_lm, tmp_path_factory):
    """Pictures in a folder, one of them damaged, before a frozen ViT; features are not kept."""
    root = tmp_path_factory.mktemp("features")
    (root / "pictures").mkdir()
    (root / "vit").mkdir()
    save(root / "vit", "vit", VIT)
    for number in range(40):
        record = FakeSource(40).record(number)
        Image.fromarray(record.image).save(root / f"pictures/{number:02}.png")
        (root / f"pictures/{number:02}.txt").write_text(record.captions[0])
    (root / f"pictures/{BAD:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    config = default_config()
    config.telemetry.captions = 0  # a program more to compile
    config.lm.path = str(tiny_lm)
    config.vision.name, config.vision.options = "vit", VIT
    config.vision.path, config.vision.freeze = str(root / "vit"), True
    config.data.train, config.data.validation = f"folder:{root}/pictures", "fake:10"
    config.data.on_bad = "replace"
    config.data.image.size, config.data.max_tokens = 16, 40
    config.prefix.feature_norm, config.prefix.dropout = True, 0.1
    config.optim.learning_rate = 1e-2
    config.train.steps, config.train.batch_size, config.train.log_every = 6, 8, 1
    config.train.evaluate_every = 3
    config.mesh.data, config.mesh.fsdp = 1, 2
    return from_config_dict(config)


def keep(config, directory):
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, feature_cache=str(directory)))


@pytest.fixture(scope="module")
def towers(config):
    return build_towers(config)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run on kept features: its config, workdir and report."""
    root = tmp_path_factory.mktemp("finished")
    config = keep(config, root / "features")
    return config, root / "w", run(config, root / "w", mode="train")


def test_training_on_kept_features_equals_training_on_pictures(finished, config, tmp_path):
    """Also in what is said of the damaged picture, and in what the trained model makes of a new one."""
    _, directory, report = finished
    plain = run(config, tmp_path / "w", mode="train")
    assert plain["bad_items"] == report["bad_items"]
    assert report["bad_items"]["train"]["damaged"]["ids"] == [f"{BAD:02}.png"]
    for kind in ("train", "validation"):
        with_pictures, with_features = read_metrics(tmp_path / "w", kind), read_metrics(directory, kind)
        assert list(with_pictures) == list(with_features)
        np.testing.assert_allclose(list(with_features.values()), list(with_pictures.values()), rtol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    ours, theirs = load(directory).embed_image(pixels), load(tmp_path / "w").embed_image(pixels)
    assert ours.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def refuse(*_):
    raise AssertionError("a picture was encoded again")


def test_another_run_encodes_nothing_again(finished, tmp_path, monkeypatch, capsys):
    config, directory, _ = finished
    monkeypatch.setattr(features, "_encode", refuse)
    run(config, tmp_path / "w", mode="train")
    assert read_metrics(tmp_path / "w") == read_metrics(directory)
    said = capsys.readouterr().out
    assert "features of train: 40 pictures x 8 float32, 0.0 MB in" in said and "; 0 to encode" in said


def test_another_encoder_is_refused_with_both_fingerprints(finished, towers, tmp_path):
    _, directory, _ = finished
    theirs = fingerprint_params(save(tmp_path, "vit", VIT, seed=1))
    shutil.copytree(directory, tmp_path / "w")
    changed = json.loads((tmp_path / "w/config.json").read_text())
    changed["vision"]["path"] = str(tmp_path)
    (tmp_path / "w/config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=f"encoder {towers.vision_fingerprint}, this run loads {theirs}"):
        load(tmp_path / "w")


@pytest.fixture
def small_files(monkeypatch):
    """Files of 8 features, so that 40 pictures need 5."""
    monkeypatch.setattr("frozen_jax.data.features.PICTURES_PER_FILE", 8)


@pytest.fixture
def kept(config, towers, tmp_path, small_files):
    """(config, towers, source, directory) of features that are not made yet."""
    config = keep(config, tmp_path / "kept")
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, batch_size=8))
    return config, towers, open_source(config.data.train), tmp_path / "kept"


def test_features_of_classes_stand_beside_those_of_pictures(kept, tmp_path, capsys):
    """Fifteen features that are no pictures are taken as they are; with or without them, pictures are encoded once."""
    config, towers, pictures, _ = kept
    width = towers.model.vision.width
    vectors = np.random.default_rng(0).random((15, width), np.float32)
    write_class_features(tmp_path / "classes.safetensors", vectors, [f"thing {number}" for number in range(15)])
    source = open_source(f"{config.data.train} + class_features:{tmp_path}/classes.safetensors")
    numbers = np.arange(len(source))
    features, bad = open_features(source, config, towers, name="train").load(numbers)
    assert list(bad) == [BAD] and (features[40:55] == vectors).all()
    capsys.readouterr()
    alone, _ = open_features(pictures, config, towers, name="train").load(np.arange(40))
    assert np.array_equal(features[:40], alone, equal_nan=True) and "; 0 to encode" in capsys.readouterr().out
    only = open_source(f"class_features:{tmp_path}/classes.safetensors")
    assert (open_features(only, config, towers, name="train").load(np.arange(15))[0] == vectors).all()
    write_class_features(tmp_path / "classes.safetensors", vectors[:, 1:], [f"thing {number}" for number in range(15)])
    with pytest.raises(UserError, match=f"{width - 1} numbers"):
        open_features(open_source(f"class_features:{tmp_path}/classes.safetensors"), config, towers, name="train")


def list_files(directory):
    return {path.name.partition("-")[0]: path for path in directory.rglob("*.npy")}


def test_an_interrupted_run_goes_on_and_what_is_damaged_is_made_anew(kept, monkeypatch):
    config, towers, source, directory = kept
    encode, calls = features._encode, itertools.count(1)

    def die_at(call):
        def encode_or_die(*arguments):
            if next(calls) == call:
                raise KeyboardInterrupt
            return encode(*arguments)

        return encode_or_die

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "_encode", die_at(3))
        open_features(source, config, towers, name="train")
    assert sorted(list_files(directory)) == ["000000", "000001"]  # a directory has no order
    samples = np.arange(40)
    whole, bad = open_features(source, config, towers, name="train").load(samples)
    assert list(bad) == [BAD] and bad[BAD].reason == "damaged" and not whole[BAD].any()
    assert len(np.unique(whole, axis=0)) > 20

    path = list_files(directory)["000003"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    made = []
    monkeypatch.setattr(features, "_encode", lambda *arguments: made.append(1) or encode(*arguments))
    again, _ = open_features(source, config, towers, name="train").load(samples)
    assert len(made) == 1 and path.exists()
    np.testing.assert_array_equal(again, whole)


def test_a_changed_picture_encoder_or_preparation_is_never_mistaken(kept):
    config, towers, source, directory = kept
    first, _ = open_features(source, config, towers, name="train").load(np.arange(6))
    picture = source.record(5).image
    before = picture.stat().st_mtime_ns
    os.utime(picture, ns=(before + 1, before + 1))
    try:
        open_features(source, config, towers, name="train")
    finally:
        os.utime(picture, ns=(before, before))
    assert len(list(directory.iterdir())) == 2
    cropped = dataclasses.replace(config.data, image=dataclasses.replace(config.data.image, fit="crop"))
    open_features(source, dataclasses.replace(config, data=cropped), towers, name="train")
    assert len(list(directory.iterdir())) == 3
    vision = jax.tree.map(lambda leaf: leaf + 1, towers.frozen["vision"])
    other = towers._replace(frozen={**towers.frozen, "vision": vision}, vision_fingerprint="another")
    second, _ = open_features(source, config, other, name="train").load(np.arange(6))
    assert not np.allclose(first, second)


def test_processes_share_the_work(kept, monkeypatch):
    """The second of two finds that the first has not done its share; then the first does."""
    config, towers, source, directory = kept
    monkeypatch.setattr(features, "wait_for_all", lambda name: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match=r"file 0 of .* all processes must see the same directory"):
        open_features(source, config, towers, name="train")
    assert sorted(list_files(directory)) == ["000001", "000003"]
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    open_features(source, config, towers, name="train")
    assert sorted(list_files(directory)) == ["000000", "000001", "000002", "000003", "000004"]


def test_a_damaged_picture_stops_a_run_that_does_not_replace(kept):
    config, towers, source, _ = kept
    strict = dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad="raise"))
    with pytest.raises(UserError, match=f"{BAD:02}.png"):
        open_features(source, strict, towers, name="train")


def test_a_directory_that_cannot_be_used_is_named(kept, tmp_path):
    config, towers, source, directory = kept
    directory.write_text("in the way")
    with pytest.raises(UserError, match=r"config\.vision\.feature_cache: .*could not be written \(Not a dir"):
        open_features(source, config, towers, name="train")
    directory.unlink()
    open_features(source, config, towers, name="train")
    list_files(directory)["000002"].unlink()
    (next(directory.iterdir()) / f"000002-{'0' * 64}.npy").mkdir()
    with pytest.raises(UserError, match=r"config\.vision\.feature_cache: .*000002.* cannot be read \(Is a directory"):
        open_features(source, config, towers, name="train")


def test_blind_features_are_those_of_black(kept):
    config, towers, source, directory = kept
    table = open_features(source, dataclasses.replace(config, blind=True), towers, name="train")
    features_of_all, bad = table.load(np.arange(40))
    assert not bad and not directory.exists()
    vision = jax.tree.map(jnp.asarray, towers.frozen["vision"])
    black = towers.model.encode({"vision": vision}, jnp.zeros((1, 16, 16, 3), jnp.uint8))
    np.testing.assert_allclose(features_of_all, np.repeat(black, 40, axis=0), rtol=1e-5, atol=1e-6)


def test_training_holds_no_encoder_and_its_description_says_so(kept):
    config, whole, source, _ = kept
    towers = drop_encoder(whole)
    assert towers.model.vision is None and set(towers.frozen) == {"lm"} and set(whole.frozen) == {"lm", "vision"}
    mesh = make_mesh(MeshSettings(data=1), batch_size=8)
    table = open_features(source, config, whole, name="train")
    batch = make_pipeline(source, config, towers, mesh, features=table).batch(Position(0, 0))
    described = abstract_run(config, mesh)
    assert [leaf.shape for leaf in jax.tree.leaves(described.batch)] == [leaf.shape for leaf in jax.tree.leaves(batch)]
    assert set(described.frozen) == {"lm"} and described.model.vision is None
    pictures = dataclasses.replace(config, vision=dataclasses.replace(config.vision, feature_cache=""))
    costs = [
        count_train_step(model, towers.trainable, frozen, abstract_batch(settings, mesh)).vision.flops
        for model, frozen, settings in ((towers.model, towers.frozen, config), (whole.model, whole.frozen, pictures))
    ]
    # What is left is one product: forward, gradient of its kernel, and of what the feature norm before it gives.
    assert costs[0] == 3 * 2 * 8 * 8 * (2 * 16) and costs[1] > 10 * costs[0]


def test_a_picture_is_known_by_its_file_place_and_content(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"twelve bytes")
    pixels = np.zeros((2, 3, 3), np.uint8)
    images = [path, FileSlice(path, 0, 4), FileSlice(path, 4, 4), b"bytes", pixels, pixels.reshape(3, 2, 3), None]
    images += [tmp_path / "missing.jpg", b"bytes", path]
    index = index_pictures(MemorySource([Record(str(n), image) for n, image in enumerate(images)]))
    assert index.places.tolist() == [0, 1, 2, 3, 4, 5, -1, -1, 3, 0]
    assert index.samples.tolist() == [0, 1, 2, 3, 4, 5]
    other = index_pictures(MemorySource([Record("0", b"bytes")]))
    assert other.digest != index.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision.freeze": False, "vision.path": ""}, "features stay the same only where the encoder does"),
        ({"data.augment.zoom": 0.5}, "the features are those of unchanged pictures"),
    ],
)
def test_contradictions_are_refused(tiny_config, changes, message):
    tiny_config.vision.name, tiny_config.vision.options = "vit", VIT
    tiny_config.vision.path, tiny_config.vision.freeze, tiny_config.vision.feature_cache = "somewhere", True, "kept"
    tiny_config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=rf"config\.vision\.feature_cache is 'kept'; {message}"):
        from_config_dict(tiny_config)
