"""Features of classes: what a classifier knows, as captioned training data without pictures."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from frozen_jax.class_features import estimate_class_features
from frozen_jax.data.class_features import ClassFeatures, write_class_features
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.fetch.wording import make_sentence
from frozen_jax.tools.class_features import find_classifier


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
