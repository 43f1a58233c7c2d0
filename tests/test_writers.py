"""What TensorBoard and Weights & Biases get beside scalars: histograms, captions; and that TensorBoard reads them."""

import dataclasses
import inspect
import io
import json
import sys
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from frozen_jax.batch import PAD, SLOT, Batch
from frozen_jax.captioned import Captioned
from frozen_jax.config import from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.run import run
from frozen_jax.steps import _measure_prefixes
from frozen_jax.telemetry_settings import TelemetrySettings
from frozen_jax.writers import Writers

RED = np.full((8, 16, 3), (200, 0, 0), np.uint8)
CAPTIONS = [Captioned(RED, ("a red patch", "red", "not shown"), "a blue patch"), Captioned(RED[:, :8], ("x",), "y")]


def read_values(directory):
    """All values of a directory's event files, by (step, tag)."""
    tf = pytest.importorskip("tensorflow")
    events = [e for path in sorted(directory.iterdir()) for e in tf.compat.v1.train.summary_iterator(str(path))]
    return {(event.step, value.tag): value for event in events for value in event.summary.value}


def test_tensorboard_reads_histograms_and_captions(tmp_path):
    writers = Writers(tmp_path, TelemetrySettings(), resume_step=None)
    lengths = np.array([1.0, 1.5, 1.5, 4.0], np.float32)
    writers.add_histogram(3, "prefix/norm", lengths)
    writers.add_histogram(4, "prefix/norm", np.full(6, 2.0, np.float32))
    writers.add_histogram(6, "prefix/norm", np.array([1, 1 + 2**-23] * 3, np.float32))  # normalised vectors
    writers.add_captions(5, CAPTIONS)
    writers.close()
    values = read_values(tmp_path / "tensorboard")
    histogram = values[3, "prefix/norm"].histo
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (1.0, 4.0, 4, 8.0)
    assert histogram.sum_squares == 21.5
    assert len(histogram.bucket) == len(histogram.bucket_limit) == 31
    shares = dict(zip(np.round(histogram.bucket_limit, 6), histogram.bucket, strict=True))
    assert {limit: share for limit, share in shares.items() if share} == {1.1: 1, 1.6: 2, 4.0: 1}
    assert sum(values[4, "prefix/norm"].histo.bucket) == sum(values[6, "prefix/norm"].histo.bucket) == 6
    image = values[5, "captions/1"].image
    drawn = PIL.Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")
    assert (drawn.width, drawn.height) == (image.width, image.height) and image.colorspace == 3
    assert drawn.getpixel((100, 80)) == (200, 0, 0) and drawn.getpixel((image.width - 1, 150)) == (255, 255, 255)
    text = np.asarray(drawn)[:, 2 * image.height :]
    assert (text < 100).any(axis=(1, 2)).sum() > 20, "three lines of dark letters stand beside it"
    assert values[5, "captions/2"].image.width == image.width - image.height, "the other picture is square"


def test_a_long_caption_is_wrapped():
    short, long = (Captioned(RED, ("a",), "word " * count).draw() for count in (2, 120))
    assert long.height > short.height + 60 and long.width == short.width


def test_norms_are_those_of_the_pictures_that_a_row_shows():
    class Model(FrozenModel):
        prefix_length = 2

        def embed_images(self, params, images):
            return params["scale"] * jnp.arange(1.0, 13.0).reshape(3, 2, 2, 1) * jnp.ones((1, 1, 1, 4))

    tokens = np.array([[SLOT, SLOT, 5, SLOT, SLOT, 6], [SLOT, SLOT, 5, 6, 7, PAD], [SLOT, SLOT, 5, SLOT, SLOT, 6]])
    loss_mask = np.array([[0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0], [0] * 6])
    images = np.zeros((3, 2, 1, 1, 3), np.uint8)
    batch = Batch(images, tokens.astype(np.int32), loss_mask.astype(np.float32), np.arange(3, dtype=np.int32))
    norms = np.asarray(_measure_prefixes({"scale": jnp.float32(1)}, Model(nn.Dense(1)), batch))
    nan = np.nan
    np.testing.assert_allclose(norms, [[[2, 4], [6, 8]], [[10, 12], [nan, nan]], [[nan] * 2] * 2])


@pytest.fixture(scope="module")
def wandb():
    """A stand-in with the signatures of the client, which is compared with the client itself where it is installed."""
    calls = []

    class Run:
        def log(self, data, step=None):
            calls.append(("log", step, data))

        def finish(self):
            calls.append(("finish",))

    def init(*, project=None, id=None, resume=None, name=None, dir=None, config=None):
        calls.append(("init", {"project": project, "id": id, "resume": resume, "name": name, "config": config}))
        return Run()

    class Image:
        def __init__(self, data_or_path, caption=None):
            self.size, self.caption = data_or_path.shape, caption

    class Histogram:
        def __init__(self, sequence=None):
            self.values = sequence

    return types.SimpleNamespace(
        init=init, Run=Run, Image=Image, Histogram=Histogram, Error=type("Error", (Exception,), {}), calls=calls
    )


def test_the_stand_in_has_the_signatures_of_the_client(wandb):
    real = pytest.importorskip("wandb")
    for ours, theirs in (
        (wandb.init, real.init),
        (wandb.Run.log, real.Run.log),
        (wandb.Run.finish, real.Run.finish),
        (wandb.Image.__init__, real.Image.__init__),
        (wandb.Histogram.__init__, real.Histogram.__init__),
    ):
        known = inspect.signature(theirs).parameters
        assert {*inspect.signature(ours).parameters} <= {*known}, theirs
    assert issubclass(real.errors.CommError, real.Error) and issubclass(real.errors.UsageError, real.Error)


def test_weights_and_biases_gets_the_same(tmp_path, monkeypatch, wandb):
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    wandb.calls.clear()
    (tmp_path / "config.json").write_text('{"seed": 3}')
    settings = TelemetrySettings(wandb="frozen")
    for resume_step in (None, 7, None):
        writers = Writers(tmp_path, settings, resume_step=resume_step)
        writers.add_scalars(8, {"train/loss": 0.5})
        writers.add_histogram(8, "prefix/norm", np.array([1.0, 2.0], np.float32))
        writers.add_captions(8, CAPTIONS)
        writers.close()
    begun = [call[1] for call in wandb.calls if call[0] == "init"]
    assert begun[0] == begun[1] and begun[0]["id"] != begun[2]["id"], "a resumed run goes on, a new one begins"
    assert begun[0]["project"] == "frozen" and begun[0]["config"] == {"seed": 3} and begun[0]["resume"] == "allow"
    scalars, histogram, pictures = (call[2] for call in wandb.calls[1:4])
    assert scalars == {"train/loss": 0.5} and histogram["prefix/norm"].values == [1.0, 2.0]
    assert [one.caption for one in pictures["captions"]] == [
        "reference: a red patch\nreference: red\nmodel: a blue patch",
        "reference: x\nmodel: y",
    ]
    assert all(call[1] == 8 for call in wandb.calls if call[0] == "log")
    assert [call[0] for call in wandb.calls].count("finish") == 3

    def refuse(**_):
        raise wandb.Error("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="does not begin a run .api_key not configured.; log in"):
        Writers(tmp_path, settings, resume_step=None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'frozen_jax\[wandb\]'"):
        Writers(tmp_path, settings, resume_step=None)


def test_a_run_shows_captions_of_validation_pictures_once_and_norms_at_each_validation(tiny_config, tmp_path):
    tiny_config.telemetry.captions = 2
    config = from_config_dict(tiny_config)
    run(config, tmp_path / "w", mode="train")
    values = read_values(tmp_path / "w" / "tensorboard")
    assert {key for key in values if key[1].startswith("captions/")} == {(6, "captions/1"), (6, "captions/2")}
    assert {key for key in values if key[1] == "prefix/norm"} == {(3, "prefix/norm"), (6, "prefix/norm")}
    assert values[6, "prefix/norm"].histo.num == 2 * 10, "two vectors of each of ten validation pictures"
    before = sum(len(path.read_bytes()) for path in (tmp_path / "w" / "tensorboard").iterdir())
    again = dataclasses.replace(config, telemetry=TelemetrySettings(captions=3))
    run(again, tmp_path / "w", mode="train")
    after = sum(len(path.read_bytes()) for path in (tmp_path / "w" / "tensorboard").iterdir())
    assert after - before < 1000, "a finished run shows them no second time"
    assert json.loads((tmp_path / "w" / "config.json").read_text())["telemetry"] == {"captions": 2, "wandb": ""}
