"""TFRecord, ArrayRecord and TFDS sets, written by TensorFlow's own writers and read without it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import frozen_jax
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.loading import load_all
from frozen_jax.data.records import RecordError
from frozen_jax.data.sources import open_source
from frozen_jax.data.tfrecord import masked_crc32c, parse_example
from frozen_jax.errors import UserError

COUNT = 12
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(frozen_jax.__file__).parents[1])}


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def varint(number):
    parts = []
    number &= (1 << 64) - 1
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features):
    """A tf.train.Example written by hand: a second reading of the format."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            kind = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(values[0], float):
            kind = field(2, field(1, np.array(values, "<f4").tobytes()))
        else:
            kind = field(3, field(1, b"".join(varint(value) for value in values)))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def write_tfrecord(path, messages):
    with open(path, "wb") as file:
        for message in messages:
            length = len(message).to_bytes(8, "little")
            file.write(length + masked_crc32c(length).to_bytes(4, "little") + message)
            file.write(masked_crc32c(message).to_bytes(4, "little"))
    return path


def messages(first=0, count=COUNT):
    for number in range(first, first + count):
        yield example(image=[png(number)], caption=[f"number {number}".encode()], id=[number, -3], weight=[0.5])


def test_the_checksum():
    """CRC-32C of "123456789" is 0xE3069283 (the check value of its definition), here rotated and offset."""
    crc = 0xE3069283
    assert masked_crc32c(b"123456789") == (((crc >> 15 | crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def test_messages():
    assert parse_example(example(a=[b"x", b""], b=[1, -5, 1 << 40], c=[0.5, -2.0])) == {
        "a": [b"x", b""], "b": [1, -5, 1 << 40], "c": [0.5, -2.0],
    }  # fmt: skip
    message = next(messages())
    for cut in (1, 5, len(message) // 2, len(message) - 1):
        with pytest.raises((ValueError, IndexError)):
            parse_example(message[:cut])


def test_tfrecord_files(tmp_path):
    write_tfrecord(tmp_path / "a-00000.tfrecord", messages(0, 5))
    write_tfrecord(tmp_path / "a-00001.tfrecord", messages(5, COUNT - 5))
    source = open_source(f"tfrecord:{tmp_path}/a-*.tfrecord")
    assert [source.record(i).captions for i in range(len(source))] == [(f"number {i}",) for i in range(COUNT)]
    assert load_all(source, options=ImageOptions(8))[:, 0, 0, 0].tolist() == [20 * i for i in range(COUNT)]
    with pytest.raises(RecordError, match=r"features \['caption', 'id', 'image', 'weight'\]"):
        open_source(f"tfrecord:{tmp_path}/a-*.tfrecord?image=picture").record(0)


def test_damaged_tfrecord_files(tmp_path):
    file = write_tfrecord(tmp_path / "a.tfrecord", messages())
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])
    source = open_source(f"tfrecord:{file}")
    assert COUNT / 2 < len(source) < COUNT
    assert source.record(0).captions == ("number 0",)
    with pytest.raises(RecordError, match="ends inside") as caught:
        source.record(len(source) - 1)
    assert caught.value.reason == "cut shard"
    file.write_bytes(b"some text that is long enough to be read")
    with pytest.raises(UserError, match="no TFRecord file or damaged at byte 0"):
        open_source(f"tfrecord:{file}")
    garbled = bytearray(data)
    garbled[12:40] = b"\xff" * 28
    file.write_bytes(garbled)
    with pytest.raises(RecordError, match=r"no tf\.train\.Example"):
        open_source(f"tfrecord:{file}").record(0)


def test_array_record_files(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for message in messages():
        writer.write(message)
    writer.close()
    source = open_source(f"array_record:{tmp_path}/*.array_record")
    assert [source.record(i).captions for i in range(len(source))] == [(f"number {i}",) for i in range(COUNT)]
    assert load_all(source, options=ImageOptions(8))[:, 0, 0, 0].tolist() == [20 * i for i in range(COUNT)]


TOY_CAPTIONS = """
import sys, os
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
import numpy as np, tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils
gcs_utils._is_gcs_disabled = True
class ToyCaptions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64})}))
    def _split_generators(self, dl):
        return {"train": self._generate_examples(0, 6), "val": self._generate_examples(6, 8)}
    def _generate_examples(self, begin, end):
        for i in range(begin, end):
            texts = [{"text": f"number {i}", "id": i}, {"text": f"again {i}", "id": i + 100}]
            yield i, {"image": np.full((8, 8, 3), 10 * i, np.uint8), "captions": texts}
"""
"""A builder, for a process of its own, so that the other tests stay free of TensorFlow."""

CHECKS = """
for kind in ("tfrecord", "array_record"):
    ToyCaptions(data_dir=os.path.join(sys.argv[1], kind), file_format=kind).download_and_prepare()
    from frozen_jax.data.sources import open_source
    from frozen_jax.data.loading import load_all
    from frozen_jax.data.images import ImageOptions
    folder = os.path.join(sys.argv[1], kind, "toy_captions", "1.0.0")
    train, val = open_source(f"tfds:{folder}"), open_source(f"tfds:{folder}?split=val")
    captions = sorted(train.record(i).captions for i in range(len(train)))
    assert captions == [(f"number {i}", f"again {i}") for i in range(6)], captions
    for i in range(len(train)):
        number = int(train.record(i).captions[0].split()[1])
        assert (load_all(train, options=ImageOptions(8))[i] == 10 * number).all()
    assert len(val) == 2 and val.ids() == ["toy_captions/val/0", "toy_captions/val/1"]
    if kind == "tfrecord":
        named = open_source(f"tfds:toy_captions?data_dir={os.path.join(sys.argv[1], kind)}")
        assert [named.record(i).captions for i in range(6)] == [train.record(i).captions for i in range(6)]
import tensorflow as tf
assert tf.config.get_visible_devices("GPU") == [] and tf.config.get_visible_devices("TPU") == []
from frozen_jax.errors import UserError
for line, message in ((f"tfds:{folder}?split=test", "no split 'test'"), ("tfds:no_such_set_anywhere", "knows no set")):
    try:
        open_source(line)
    except UserError as error:
        assert message in str(error), error
    else:
        raise AssertionError(line)
print("all right", flush=True)
os._exit(0)  # TensorFlow's own threads can take minutes to end on a busy machine
"""


def test_tfds_sets_by_name_and_folder(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "toy.py").write_text(TOY_CAPTIONS + CHECKS)
    done = subprocess.run(
        [sys.executable, "toy.py", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0 and "all right" in done.stdout, done.stderr[-2000:]
