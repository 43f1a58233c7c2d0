"""Runs the examples of docs/data.md on four small pictures and compares what each prints with its comment."""

import contextlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from frozen_jax.data.sources import KINDS
from tests.data.test_tfrecord import ENVIRONMENT, TOY_CAPTIONS, example, write_tfrecord

DOCUMENT = Path(__file__).parents[2] / "docs/data.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
(OF_TFDS,) = [number for number, code in enumerate(EXAMPLES) if '"tfds:' in code]
COLOURS = ("red", "green", "blue", "black")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """All files that the examples name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures/host.org", "shards", *(f"classes/{colour}" for colour in COLOURS)):
        Path(folder).mkdir(parents=True)
    images, annotations, karpathy, examples = [], [], [], []
    for number, colour in enumerate(COLOURS):
        caption = f"a {colour} picture"
        picture = Path(f"pictures/{colour}.jpg")
        Image.new("RGB", (20, 10), colour).save(picture)
        data = picture.read_bytes()
        Path(f"pictures/{colour}.txt").write_text(caption)
        Path(f"classes/{colour}/1.jpg").write_bytes(data)
        images.append({"id": number, "file_name": f"{colour}.jpg"})
        annotations.append({"image_id": number, "caption": caption})
        split = "test" if colour == "black" else "train"
        named = {"filename": f"{colour}.jpg", "cocoid": number, "split": split}
        karpathy.append({**named, "sentences": [{"raw": caption}]})
        examples.append(example(image=[data], caption=[caption.encode()]))
    rows = [json.dumps({"file": f"{colour}.jpg", "text": f"a {colour} picture"}) for colour in COLOURS]
    Path("train.jsonl").write_text("\n".join(rows))
    Path("train.tsv").write_text("a red picture\thttp://host.org/red.jpg\n")
    table = ["image_name| comment_number| comment", "red.jpg| 0| a red picture", "red.jpg| 1| a second caption"]
    Path("results.csv").write_text("\n".join(table))
    Path("captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    Path("dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    asked = [{"image_id": 0, "question": "colour?", "question_id": 5}]
    Path("questions.json").write_text(json.dumps({"questions": asked}))
    answered = [{"question_id": 5, "answers": [{"answer": "red"}], "answer_type": "other"}]
    Path("annotations.json").write_text(json.dumps({"annotations": answered}))
    write_tfrecord("shards/a.tfrecord", examples)
    array_record = pytest.importorskip("array_record.python.array_record_module")
    writer = array_record.ArrayRecordWriter("shards/a.array_record", "group_size:1")
    for message in examples:
        writer.write(message)
    writer.close()
    with tarfile.open("shards/0000.tar", "w") as tar:
        for colour in COLOURS:
            for suffix in ("jpg", "txt"):
                tar.add(f"pictures/{colour}.{suffix}", f"{colour}.{suffix}")


def test_there_are_examples():
    assert len(EXAMPLES) == 9
    kinds = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCUMENT.read_text(), re.MULTILINE)))
    assert set(KINDS) <= set(kinds), "each has its line in the table"
    shown_elsewhere = {"binding_text", "class_features", "easy_vqa", "fake", "scene_text"}
    assert all(f'"{kind}:' in "".join(EXAMPLES) for kind in set(KINDS) - shown_elsewhere), "and its example"


def list_expected(number):
    return re.findall(r"^print\(.*\)  # (.*)$", EXAMPLES[number], re.MULTILINE)


@pytest.mark.parametrize("number", [number for number in range(len(EXAMPLES)) if number != OF_TFDS])
def test_an_example_prints_what_it_says(number, files):
    expected = list_expected(number)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(EXAMPLES[number], f"docs/data.md example {number}", "exec"), {})
    assert printed.getvalue().splitlines() == expected and expected


def test_the_example_of_tfds_prints_what_it_says(tmp_path):
    prepare = 'ToyCaptions(data_dir=".", file_format="tfrecord").download_and_prepare()\n'
    end = "\nsys.stdout.flush()\nos._exit(0)\n"  # TensorFlow's own threads can take minutes to end on a busy machine
    (tmp_path / "toy.py").write_text(TOY_CAPTIONS + prepare + "print('prepared')\n" + EXAMPLES[OF_TFDS] + end)
    done = subprocess.run(
        [sys.executable, "toy.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("prepared\n")[1].splitlines() == list_expected(OF_TFDS)
