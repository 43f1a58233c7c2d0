"""Features of classes: what a classifier knows, as captioned training data without pictures."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from frozen_jax.class_features import estimate_class_features
from frozen_jax.config import from_config_dict
from frozen_jax.data.class_features import ClassFeatures, write_class_features
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.fetch.wording import make_sentence
from frozen_jax.tools import class_features as tool
from frozen_jax.tools.class_features import find_classifier, make_class_features
from tests.test_pretrained_vision import RESNET, save


def test_class_means_are_found_again_from_the_discriminant():
    """Gaussian classes around known means: the classifier that separates them best tells where they lie."""
    rng = np.random.default_rng(0)
    classes, width = 5, 8
    means = 6 + 0.5 * rng.normal(size=(classes, width))
    spread = 0.1 * rng.normal(size=(width, width)) + np.eye(width)
    within = spread @ spread.T
    weights = np.linalg.solve(within, (means - means.mean(axis=0)).T).T
    biases = -0.5 * np.einsum("ce,ce->c", weights, means)
    labels = rng.integers(classes, size=4000)
    features = means[labels] + rng.normal(size=(4000, width)) @ spread.T
    made = estimate_class_features(features, weights, biases, per_class=3)
    assert made.shape == (15, width) and made.dtype == np.float32
    ways, truths = made[:classes] - features.mean(axis=0), means - means.mean(axis=0)
    cosines = (ways * truths).sum(axis=1) / np.linalg.norm(ways, axis=1) / np.linalg.norm(truths, axis=1)
    assert cosines.min() > 0.9
    logits = made @ weights.T + biases
    assert (logits.argmax(axis=1) == np.tile(np.arange(classes), 3)).all() and (made >= 0).all()
    again = estimate_class_features(features, weights, biases, per_class=3)
    other = estimate_class_features(features, weights, biases, per_class=3, seed=1)
    assert (made == again).all()
    assert (made[:classes] == other[:classes]).all() and (made[classes:] != other[classes:]).any()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hamster", "A hamster."),
        ("axe", "An axe."),
        ("face with monocle", "A face with monocle."),
        ("open mailbox with raised flag", "An open mailbox with raised flag."),
        ("bubbles", "Bubbles."),
        ("dress", "A dress."),
        ("men holding hands", "Men holding hands."),
        ("Mrs. Claus", "Mrs. Claus."),
    ],
)
def test_names_become_captions(name, sentence):
    assert make_sentence(name) == sentence


def test_the_file_gives_back_what_was_written_and_is_checked(tmp_path):
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_class_features(tmp_path / "f.safetensors", features, ["A cat.", "A dog."])
    source = open_source(f"class_features:{tmp_path}/f.safetensors")
    assert len(source) == 2 and source.ids() == ["0", "1"]
    record = source.record(1)
    assert record.captions == ("A dog.",) and (record.image == features[1]).all()
    with pytest.raises(UserError, match="vision.feature_cache"):
        load_image(record.image, options=ImageOptions(size=8))
    save_file({"features": features}, tmp_path / "g.safetensors", metadata={"captions": json.dumps(["one"])})
    (tmp_path / "h.safetensors").write_bytes(b"nothing")
    for name in ("g", "h", "missing"):
        with pytest.raises(UserError, match=r"tools\.class_features"):
            ClassFeatures(tmp_path / f"{name}.safetensors")


def test_a_classifier_is_known_by_its_shape():
    tensors = {"_fc.weight": np.ones((4, 3), np.float32), "_fc.bias": np.ones(4, np.float32), "x": np.ones((3, 3))}
    weights, biases = find_classifier(tensors, classes=4, width=3)
    assert weights.shape == (4, 3) and biases.shape == (4,)
    for wrong in ({**tensors, "b.weight": np.ones((4, 3))}, {"x": np.ones((3, 3))}, {"a.weight": np.ones((4, 3))}):
        with pytest.raises(UserError, match="names of the classes"):
            find_classifier(wrong, classes=4, width=3)


@pytest.fixture
def config(tiny_config, tmp_path):
    """A frozen ResNet whose file has a classifier of three classes, too; damaged pictures are replaced."""
    save(tmp_path, "resnet50", RESNET)
    weights = np.random.default_rng(0).normal(size=(3, RESNET["widths"][-1])).astype(np.float32)
    file = tmp_path / "model.safetensors"
    encoder = {name: abs(tensor) for name, tensor in load_file(file).items()}  # variances among them
    save_file({**encoder, "fc.weight": weights, "fc.bias": np.zeros(3, np.float32)}, file)
    tiny_config.vision.name, tiny_config.vision.options = "resnet50", RESNET
    tiny_config.vision.path, tiny_config.vision.freeze = str(tmp_path), True
    tiny_config.vision.feature_cache = str(tmp_path / "kept")
    tiny_config.data.image.size, tiny_config.data.on_bad = 16, "replace"
    return from_config_dict(tiny_config)


def write_names(tmp_path, *classes):
    (tmp_path / "names.json").write_text(json.dumps(classes))
    return tmp_path / "names.json"


def test_what_can_be_known_is_told_before_pictures_are_encoded(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "open_features", lambda *_, **__: pytest.fail("encoded"))
    whole, out = ("cat", "dog", "hen"), tmp_path / "out.safetensors"
    (tmp_path / "held.jsonl").write_text("".join(f'{{"image": "a.png", "caption": "A {name}."}}\n' for name in whole))
    for classes, given, message in (
        (("cat", " / x", "hen"), {}, r"name 1 is ' / x', of which nothing is left .*; give it a name"),
        (("cat", "dog", " (unused)"), {}, r"name 2 is ' \(unused\)', of which nothing is left"),
        ((), {}, "must be a JSON list of names"),
        (whole, {"out": tmp_path / "absent" / "x"}, "--out=.*absent/x: cannot be written"),
        (whole, {"out": tmp_path}, "--out=.*: is a folder or a device; name a file"),
        (whole, {"held_out": f"jsonl:{tmp_path}/absent.jsonl"}, "absent.jsonl"),
        (whole, {"held_out": f"jsonl:{tmp_path}/held.jsonl"}, "all 3 classes are captions of .*; hold others out"),
    ):
        options = {"pictures": "fake:8", "names": write_names(tmp_path, *classes), "out": out, **given}
        with pytest.raises(UserError, match=message):
            make_class_features(config, **options)
    assert not out.exists()


def test_two_pictures_at_least_can_be_used(config, tmp_path):
    """Of one there is no covariance: all features were not a number; none ended in a traceback."""
    (tmp_path / "bad").mkdir()
    for number in range(2):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"no picture")
        (tmp_path / "bad" / f"{number}.txt").write_text("a caption")
    (tmp_path / "held.jsonl").write_text('{"image": "a.png", "caption": "A dog."}\n')
    names, out = write_names(tmp_path, "cat / puss", "dog (a pet)", "hen or cock"), tmp_path / "out.safetensors"
    options = {"names": names, "out": out, "held_out": f"jsonl:{tmp_path}/held.jsonl"}
    for pictures, count in (("fake:1", 1), (f"folder:{tmp_path}/bad", 0)):
        with pytest.raises(UserError, match=f"{count} pictures can be used, .*; give more pictures"):
            make_class_features(config, pictures=pictures, **options)
    assert not out.exists()
    assert make_class_features(config, pictures="fake:2", **options) == 4
    records = [ClassFeatures(out).record(number) for number in range(4)]
    assert [record.captions for record in records] == [("A cat.",), ("A hen.",)] * 2
    assert all(np.isfinite(record.image).all() for record in records)
