"""Whole runs on every common layout of pictures and texts by one line of config; bad items, packing, pairs, buckets."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from frozen_jax import restore
from frozen_jax.batch import validate
from frozen_jax.config import default_config, from_config_dict
from frozen_jax.data.augment import AugmentOptions
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.sources import open_splits
from frozen_jax.data.text import RowLayout
from frozen_jax.data.wording import word_rows
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError
from frozen_jax.restore import load
from frozen_jax.run import run
from frozen_jax.tokenizer import SAVED_FILES, train_bpe
from frozen_jax.train import Progress, take_up
from tests.data.test_tfrecord import example, write_tfrecord
from tests.test_run import dying_at

COLOURS = ("red", "green", "blue", "pink", "white", "gray", "teal", "navy")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """{kind: line} of the same eight pictures in every layout; one caption in each says the colour."""
    root = tmp_path_factory.mktemp("layouts")
    (root / "p").mkdir()
    rows, images, annotations, karpathy, questions, answers, examples = [], [], [], [], [], [], []
    with tarfile.open(root / "0.tar", "w") as tar:
        for number, colour in enumerate(COLOURS):
            buffer = io.BytesIO()
            Image.new("RGB", (20, 10 + number), colour).save(buffer, "JPEG")
            picture, caption = buffer.getvalue(), f"a {colour} picture"
            (root / f"classes/{colour}").mkdir(parents=True)
            for path in (root / f"p/{colour}.jpg", root / f"classes/{colour}/1.jpg"):
                path.write_bytes(picture)
            (root / f"p/{colour}.txt").write_text(caption)
            for suffix, data in ((".jpg", picture), (".txt", caption.encode())):
                info = tarfile.TarInfo(f"{number}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            rows.append({"image": f"p/{colour}.jpg", "caption": caption})
            images.append({"id": number, "file_name": f"{colour}.jpg"})
            annotations.append({"image_id": number, "caption": caption})
            karpathy.append({"filename": f"{colour}.jpg", "split": "train", "sentences": [{"raw": caption}]})
            questions.append({"image_id": colour, "question": "what color?", "question_id": number})
            answers.append({"question_id": number, "answers": [{"answer": colour}], "answer_type": "other"})
            examples.append(example(image=[picture], caption=[caption.encode()]))
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "t.tsv").write_text("\n".join(f"{row['caption']}\t{row['image']}" for row in rows))
    (root / "t.csv").write_text("\n".join(["image,caption", *(f"{row['image']},{row['caption']}" for row in rows)]))
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (root / "karpathy.json").write_text(json.dumps({"images": karpathy}))
    (root / "q.json").write_text(json.dumps({"questions": questions}))
    (root / "a.json").write_text(json.dumps({"annotations": answers}))
    write_tfrecord(root / "0.tfrecord", examples)
    return {
        "folder": f"folder:{root}/p",
        "jsonl": f"jsonl:{root}/t.jsonl",
        "tsv": f"tsv:{root}/t.tsv",
        "csv": f"csv:{root}/t.csv",
        "coco": f"coco:{root}/coco.json?root={root}/p",
        "karpathy": f"karpathy:{root}/karpathy.json?root={root}/p&split=train",
        "tar": f"tar:{root}/*.tar",
        "tfrecord": f"tfrecord:{root}/*.tfrecord",
        "classes": f"classes:{root}/classes",
        "vqa": f"vqa:{root}/q.json?annotations={root}/a.json&root={root}/p",
        "mixture": f"0.5 * folder:{root}/p + 0.5 * tar:{root}/*.tar",
    }


@pytest.fixture
def config(tiny_config):
    tiny_config.train.update(steps=2, batch_size=8, log_every=1, evaluate_every=2, validation_examples=2)
    tiny_config.data.validation = "fake:4"
    tiny_config.mesh.data = 1
    return from_config_dict(tiny_config)


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def read_losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


KINDS = ["folder", "jsonl", "tsv", "csv", "coco", "karpathy", "tar", "tfrecord", "classes", "vqa", "mixture"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_gives_batches_of_every_layout(kind, layouts, config):
    """Also of what is held out where there is no validation set."""
    settings = dataclasses.replace(config.data, train=layouts[kind], validation="", question_fraction=1.0)
    layout = RowLayout(max_tokens=settings.max_tokens, prefix_length=2, bos_id=None, eos_id=0)
    for source in open_splits(settings, validation_examples=2):
        pipeline = Pipeline(
            source,
            text=word_rows(settings),
            encode=lambda text: list(text.encode()),
            layout=layout,
            options=PipelineOptions(batch_size=4, images=settings.image),
        )
        batch = pipeline.batch(Position(0, 0))
        validate(batch, prefix_length=2, vocab_size=256)
        assert batch.images.any(axis=(1, 2, 3, 4)).all() and batch.loss_mask.any(axis=1).all()


@pytest.mark.parametrize("kind", ["folder", "tar", "vqa", "mixture"])
def test_one_line_trains(kind, layouts, config, tmp_path):
    fraction = 1.0 if kind == "vqa" else 0.0
    given = with_data(config, train=layouts[kind], validation="", question_fraction=fraction)
    report = run(given, tmp_path / "w", mode="train")
    assert report["train"]["steps"] == 2 and report["bad_items"] == {"train": {}, "validation": {}}


def test_bad_items_are_replaced_listed_and_survive_a_restart(layouts, config, tmp_path):
    folder = Path(layouts["folder"].removeprefix("folder:"))
    dirty = tmp_path / "dirty"
    dirty.mkdir()
    for path in folder.iterdir():
        (dirty / path.name).write_bytes(path.read_bytes())
    (dirty / "red.jpg").write_bytes(b"not a picture")
    (dirty / "teal.txt").write_text("\u200b")
    given = with_data(config, train=f"folder:{dirty}", validation=f"folder:{dirty}", on_bad="replace")
    report = run(given, tmp_path / "w", mode="train")
    expected = {
        "empty caption": {"count": 1, "ids": ["teal.jpg"]},
        "not a picture": {"count": 1, "ids": ["red.jpg"]},
    }
    assert report["bad_items"]["train"] == expected
    assert "teal.jpg" in (tmp_path / "w/report.md").read_text()
    (dirty / "red.jpg").write_bytes((folder / "red.jpg").read_bytes())
    again = run(given, tmp_path / "w", mode="train")  # finished: only evaluates, and still knows
    assert again["bad_items"]["train"] == expected
    with pytest.raises(UserError, match=r"teal\.jpg.*empty caption"):
        run(with_data(given, on_bad="raise"), tmp_path / "raising", mode="train")


@pytest.mark.parametrize("task", ["caption", "vqa", "classify", "tag"])
def test_what_training_replaces_does_not_end_the_report(task, config, tmp_path):
    """Neither a line that is damaged nor a picture, in what is learnt from or in what is asked about."""
    rows = []
    for number in range(24):
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / f"{number}.png")
        red = "dark" if number < 12 else "bright"
        asked = {"caption": f"a {red} picture", "question": "how red?", "answer": red, "tags": [red]}
        rows.append(json.dumps({"image": f"{number}.png", **asked}))
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "13.png").write_bytes(b"no picture")
    (tmp_path / "train.jsonl").write_text("\n".join(["{", *rows[::2], rows[3]]))
    (tmp_path / "held.jsonl").write_text("\n".join([*rows[1::2], '{"image": "1.png", "caption": 5}']))
    train, held = (f"jsonl:{tmp_path}/{name}.jsonl" for name in ("train", "held"))
    given = with_data(config, train=train, validation=held, on_bad="replace")
    asking = dataclasses.replace(given.evaluate, task=task, max_new_tokens=2, blind_control=False)
    asking = dataclasses.replace(
        asking,
        vqa=dataclasses.replace(
            asking.vqa, shots=(0, 1), induction="", query_format="[img]", shot_format="[img] {answer}"
        ),
        classify=dataclasses.replace(asking.classify, shots=(0, 1), tag=0, heads=True),
        tag=dataclasses.replace(asking.tag, least=1),
    )
    report = run(dataclasses.replace(given, evaluate=asking), tmp_path / "w", mode="train")
    assert report[task]["n"] == 10, "of 12 pictures two do not open"


def test_packed_runs_train_as_single_rows_do(config, tmp_path):
    single = with_data(config, train="fake:16")
    packed = with_data(single, pack=4, max_tokens=4 * config.data.max_tokens)
    run(single, tmp_path / "single", mode="train")
    run(packed, tmp_path / "packed", mode="train")
    assert read_losses(tmp_path / "packed") == pytest.approx(read_losses(tmp_path / "single"), rel=1e-4)


def test_joined_pairs_buckets_and_augmentation_run(config, tmp_path):
    augment = AugmentOptions(shift=0.1, flip=True, brightness=0.1, zoom=0.8, operations=1)
    given = with_data(config, train="fake:16", pair_probability=1.0, max_tokens=32, buckets=(24, 32), augment=augment)
    assert run(given, tmp_path / "w", mode="train")["train"]["steps"] == 2


def test_every_setting_of_the_data_reaches_the_pipeline(config, tmp_path, monkeypatch):
    """A setting that is read from the config and then forgotten would be worse than none."""
    seen = []

    class Stop(Exception):
        pass

    def record(self, source, **given):
        seen.append(given["options"])
        raise Stop

    monkeypatch.setattr("frozen_jax.run.Pipeline.__init__", record)
    changed = with_data(
        config, on_bad="replace", pack=2, buckets=(10, 40), processes=1, augment=AugmentOptions(shift=0.5)
    )
    with pytest.raises(Stop):
        run(changed, tmp_path / "w", mode="train")
    options = seen[0]
    for name in ("on_bad", "pack", "buckets", "processes", "augment", "pair_probability"):
        assert getattr(options, name) == getattr(changed.data, name)
    assert options.images == changed.data.image
    read_elsewhere = {
        "train", "validation", "clean", "image", "max_tokens", "bos", "captions_per_example", "question_fraction",
        "caption_prompt", "caption_format", "question_format", "answer_format",
    }  # fmt: skip
    names = {entry.name for entry in dataclasses.fields(DataSettings)}
    assert names - read_elsewhere == {"on_bad", "pack", "buckets", "processes", "augment", "pair_probability"}


def write_captions(path, *, count=12, ending=""):
    """Writes lines whose pictures nothing opens: a model of text alone reads the captions."""
    lines = [{"image": "none.png", "caption": f"a {COLOURS[number % 8]} picture{ending}"} for number in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def text_config(tmp_path):
    """A language model from scratch, with a tokenizer made of the captions in `captions.jsonl`."""
    write_captions(tmp_path / "captions.jsonl")
    (tmp_path / "none.png").touch()
    config = default_config()
    config.lm.mode, config.mesh.data = "scratch", 1
    config.lm.architecture = {
        "model_type": "gpt2",
        "vocab_size": 300,
        "n_positions": 32,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 1,
    }
    config.data.train = config.data.validation = f"jsonl:{tmp_path / 'captions.jsonl'}"
    config.data.max_tokens = 24
    config.train.steps, config.train.batch_size, config.train.evaluate_every = 2, 4, 1
    return from_config_dict(config)


def test_a_run_from_scratch_keeps_its_tokenizer(text_config, tmp_path):
    """Captions that were mended since give other merges, and the weights are read through those of the training."""
    captions, directory = tmp_path / "captions.jsonl", tmp_path / "w"
    run(text_config, directory, mode="train")
    ids = load(directory).tokenizer.encode("a red picture")
    write_captions(captions, ending=" of zebras crossing")
    for mode in ("train", "eval"):
        assert run(text_config, directory, mode=mode)["train"]["steps"] == 2
        assert load(directory).tokenizer.encode("a red picture") == ids
    kept = {name: (directory / name).read_bytes() for name in SAVED_FILES}
    captions.unlink()
    tokenizer = load(directory).tokenizer
    assert (tokenizer.encode("a red picture"), tokenizer.bos_id, tokenizer.eos_id) == (ids, 0, 0)
    for name in kept:  # as in the workdir of a run from before it was kept
        (directory / name).unlink()
    write_captions(captions)
    assert load(directory).tokenizer.to_files() == {name: text.decode() for name, text in kept.items()}


def test_a_tokenizer_from_scratch_reads_what_can_be_used_of_all_parts(text_config, tmp_path, monkeypatch):
    seen = []

    def record(texts, **given):
        seen.extend(texts)
        return train_bpe(seen, **given)

    monkeypatch.setattr(restore, "train_bpe", record)
    monkeypatch.setattr(restore, "TOKENIZER_RECORDS", 4)
    (tmp_path / "other.jsonl").write_text('{"image": "none.png", "caption": "another"}\n{\n')
    train = f"0.5 * {text_config.data.train} + 0.5 * jsonl:{tmp_path / 'other.jsonl'}"
    restore.open_tokenizer(with_data(text_config, train=train, on_bad="replace"), tmp_path / "w")
    assert seen == ["a red picture", "a green picture", "another"]


def test_a_run_that_has_not_begun_makes_its_tokenizer_anew(text_config, tmp_path, monkeypatch):
    captions, directory = tmp_path / "captions.jsonl", tmp_path / "w"

    def fail(*_, **__):
        raise UserError("the captions are the wrong ones")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="wrong ones"):
        patch.setattr("frozen_jax.run.train", fail)
        run(text_config, directory, mode="train")
    before = (directory / "tokenizer.json").read_bytes()
    write_captions(captions, ending=" of zebras crossing")
    run(text_config, directory, mode="train")
    assert (directory / "tokenizer.json").read_bytes() != before


def test_a_run_goes_on_with_as_many_records_as_it_had(text_config, tmp_path, monkeypatch):
    """With others there is another order, and another part held out: some would be seen twice, some never."""
    captions, directory = tmp_path / "captions.jsonl", tmp_path / "w"
    with dying_at(monkeypatch, step=2):
        run(text_config, directory, mode="train")
    write_captions(captions, count=17)
    with pytest.raises(UserError, match=r"had 12 records when .* has 17 now; the order .* put the data back, or"):
        run(text_config, directory, mode="train")
    write_captions(captions)
    assert run(text_config, directory, mode="train")["train"]["steps"] == 2
    write_captions(captions, count=17)  # nothing is left that would depend on it
    assert run(text_config, directory, mode="train")["train"]["steps"] == 2


def test_a_checkpoint_without_the_number_of_records_takes_that_of_now(tmp_path):
    assert take_up({"step": 3, "used": 2}, records=5, directory=tmp_path) == Progress(step=3, used=2, records=5)
