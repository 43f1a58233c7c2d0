"""Every kind of source by its one line, with what each refuses; a small set of each layout is written here."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frozen_jax.data.cleaning import CleanOptions
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.loading import load_all
from frozen_jax.data.records import MemorySource, Record, RecordError
from frozen_jax.data.sources import KINDS, Mixture, open_source, open_splits
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError

COLOURS = ("red", "green", "blue", "black")


@pytest.fixture
def pictures(tmp_path):
    """Four pictures red.jpg … black.jpg in tmp_path/pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (20, 10), colour).save(folder / f"{colour}.jpg")
    return folder


def check(line, *, captions, ids=None, count=4):
    """Opens a source by its line, opens its pictures, and compares captions."""
    source = open_source(line)
    assert len(source) == count == len(source.ids()) == len(set(source.ids()))
    records = [source.record(i) for i in range(count)]
    assert [record.id for record in records] == list(source.ids())
    assert [record.captions for record in records] == captions
    if ids:
        assert source.ids() == ids
    images = load_all(source, options=ImageOptions(8))
    for image, record in zip(images, records, strict=True):
        named = next(colour for colour in COLOURS if colour in f"{record.id} {record.captions} {record.tags}")
        expected = np.asarray(Image.new("RGB", (1, 1), named))[0, 0].astype(int)
        assert np.abs(image[4, 4].astype(int) - expected).max() < 6
    return source


CAPTIONS = [(f"a {colour} picture",) for colour in COLOURS]


def test_jsonl(pictures):
    table = pictures / "table.jsonl"
    rows = [{"image": f"{c}.jpg", "caption": f"a {c} picture"} for c in COLOURS]
    rows[1] = {
        "image": "green.jpg",
        "caption": ["a green picture"],
        "question": "colour?",
        "answer": "green",
        "tags": ["t"],
    }
    table.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    source = check(f"jsonl:{table}", captions=CAPTIONS)
    assert source.record(1).questions[0].answers == ("green",) and source.record(1).tags == ("t",)
    other = pictures.parent / "other.jsonl"
    other.write_text("\n".join(json.dumps({"file": f"{c}.jpg", "text": f"a {c} picture"}) for c in COLOURS))
    check(f"jsonl:{other}?root={pictures}&image=file&caption=text", captions=CAPTIONS)


def test_jsonl_bad_lines_are_bad_records(pictures):
    table = pictures / "table.jsonl"
    lines = [
        b'{"image": "red.jpg"',
        b"[1]",
        b'{"image": 5}',
        b'{"image": "red.jpg", "caption": 7}',
        b'{"caption": "\xff"}',
    ]
    table.write_bytes(b"\n".join([*lines, b'{"image": "red.jpg", "caption": "ok"}']))
    source = open_source(f"jsonl:{table}")
    reasons = []
    for index in range(5):
        with pytest.raises(RecordError) as caught:
            source.record(index)
        reasons.append(caught.value.reason)
        assert f"table.jsonl:{index}" in str(caught.value) or f"line {index}" in str(caught.value)
    assert reasons == ["not JSON"] * 4 + ["not UTF-8"]
    assert source.record(5).captions == ("ok",)


def test_tsv_as_conceptual_captions(pictures):
    (pictures / "host.org").mkdir()
    lines = []
    for colour in COLOURS:
        (pictures / f"{colour}.jpg").rename(pictures / "host.org" / f"{colour} 1.jpg")
        lines.append(f"a {colour} picture\thttps://host.org/{colour}%201.jpg?size=big")
    (pictures / "train.tsv").write_text("\n".join(lines))
    check(f"tsv:{pictures}/train.tsv", captions=CAPTIONS)


def test_tsv_with_names_and_flickr_numbers(pictures):
    rows = "\n".join(f"{c}.jpg#0\ta {c} picture" for c in COLOURS)
    (pictures / "token.txt").write_text(rows)
    check(f"tsv:{pictures}/token.txt?image=0&caption=1", captions=CAPTIONS)
    (pictures / "named.tsv").write_text("what\tfile\n" + "\n".join(f"a {c} picture\t{c}.jpg" for c in COLOURS))
    check(f"tsv:{pictures}/named.tsv?image=file&caption=what", captions=CAPTIONS)
    with pytest.raises(UserError, match="no column 'path'"):
        open_source(f"tsv:{pictures}/named.tsv?image=path&caption=what")
    (pictures / "short.tsv").write_text("only a caption")
    with pytest.raises(RecordError, match="1 columns"):
        open_source(f"tsv:{pictures}/short.tsv").record(0)


def test_csv_with_quotes_and_several_captions(pictures):
    text = "image,caption\n" + "\n".join(f'{c}.jpg,"a {c}, ""fine""\npicture"\n{c}.jpg,second' for c in COLOURS)
    (pictures / "table.csv").write_text(text)
    check(f"csv:{pictures}/table.csv", captions=[(f'a {c}, "fine"\npicture', "second") for c in COLOURS])
    piped = "image_name| comment_number| comment\n" + "\n".join(f"{c}.jpg| 0| a {c} picture" for c in COLOURS)
    (pictures / "results.csv").write_text(piped)
    check(f"csv:{pictures}/results.csv?delimiter=|&image=image_name&caption=comment", captions=CAPTIONS)
    with pytest.raises(UserError, match="no column 'caption'"):
        open_source(f"csv:{pictures}/results.csv?delimiter=|&image=image_name")
    for delimiter in ("", "ab", "%22", "%0A"):
        with pytest.raises(UserError, match="delimiter is .*; it must be one character"):
            open_source(f"csv:{pictures}/results.csv?delimiter={delimiter}")


def test_sidecar_folder(pictures):
    (pictures / "deep").mkdir()
    (pictures / "black.jpg").rename(pictures / "deep" / "black.jpg")
    for colour in COLOURS:
        place = pictures / "deep" if colour == "black" else pictures
        (place / f"{colour}.txt").write_text(f"\n a {colour} picture \nes_ES.utf8=Otra\n", "utf-8")
    (pictures / "sound.ogg").write_bytes(b"x")
    order = ["blue", "black", "green", "red"]
    expected = [(f"a {colour} picture",) for colour in order]
    ids = ["blue.jpg", "deep/black.jpg", "green.jpg", "red.jpg"]
    source = check(f"folder:{pictures}", captions=expected, ids=ids)
    assert source.record(1).tags == ("deep",)
    both = open_source(f"folder:{pictures}?lines=all").record(0)
    assert both.captions == ("a blue picture", "es_ES.utf8=Otra")


def test_sidecar_folder_loses_nothing(pictures):
    (pictures / "alone.txt").write_text("a caption without a picture")
    (pictures / "drawing.svg").write_text("<svg/>")
    (pictures / "drawing.txt").write_text("a drawing")
    (pictures / "red.txt").write_bytes(b"caf\xe9")
    source = open_source(f"folder:{pictures}")
    found = {}
    for index, name in enumerate(source.ids()):
        try:
            record = source.record(index)
            found[name] = (record.image is not None, record.captions)
        except RecordError as error:
            found[name] = error.reason
    assert found == {
        "alone": (False, ("a caption without a picture",)), "drawing.svg": (True, ("a drawing",)),
        "red.jpg": "not UTF-8", "green.jpg": (True, ()), "blue.jpg": (True, ()), "black.jpg": (True, ()),
    }  # fmt: skip


def test_class_folders(pictures):
    for colour in COLOURS:
        (pictures / f"a_{colour}").mkdir()
        (pictures / f"{colour}.jpg").rename(pictures / f"a_{colour}" / f"{colour}.jpg")
    source = check(f"classes:{pictures}", captions=[(f"a {colour}",) for colour in sorted(COLOURS)])
    assert source.record(0).tags == ("a black",)
    names = pictures.parent / "names.txt"
    names.write_text("\n".join(f"a_{c} the {c} one" for c in COLOURS))
    assert open_source(f"classes:{pictures}?names={names}").record(3).tags == ("the red one",)
    names.write_text("a_red red")
    with pytest.raises(UserError, match="'a_black'"):
        open_source(f"classes:{pictures}?names={names}")


def test_coco_captions_and_karpathy(pictures):
    images = [{"id": i, "file_name": f"{c}.jpg"} for i, c in enumerate(COLOURS)]
    notes = [{"image_id": i, "caption": f"{n} {c}"} for i, c in enumerate(COLOURS) for n in ("one", "two")]
    (pictures / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    expected = [(f"one {c}", f"two {c}") for c in COLOURS]
    check(f"coco:{pictures}/captions.json?root={pictures}", captions=expected, ids=["0", "1", "2", "3"])
    splits = ("train", "restval", "val", "test")
    rows = [
        {
            "filename": f"{c}.jpg",
            "filepath": "pictures",
            "cocoid": i,
            "split": s,
            "sentences": [{"raw": f"a {c} picture"}],
        }
        for i, (c, s) in enumerate(zip(COLOURS, splits, strict=True))
    ]
    (pictures / "dataset.json").write_text(json.dumps({"images": rows}))
    line = f"karpathy:{pictures}/dataset.json?root={pictures.parent}&split="
    check(line + "train", captions=CAPTIONS[:2], count=2)
    check(line + "train-only", captions=CAPTIONS[:1], count=1)
    check(line + "test", captions=CAPTIONS[3:], count=1)
    with pytest.raises(UserError, match="'valid'; it has"):
        open_source(line + "valid")
    with pytest.raises(UserError, match="has no 'annotations'"):
        open_source(f"coco:{pictures}/dataset.json?root={pictures}")
    (pictures / "cut.json").write_text('{"images": [')
    with pytest.raises(UserError, match="not JSON"):
        open_source(f"coco:{pictures}/cut.json?root={pictures}")


def test_vqa_pairs(pictures):
    for number, colour in enumerate(COLOURS):
        (pictures / f"{colour}.jpg").rename(pictures / f"COCO_val2014_{number:012d}.jpg")
    questions = [{"image_id": n % 4, "question": f"q{n}?", "question_id": 10 + n} for n in range(6)]
    notes = [
        {"question_id": 10 + n, "answer_type": "other", "answers": [{"answer": f"a{n}"}, {"answer": "b"}]}
        for n in range(6)
    ]
    (pictures / "q.json").write_text(json.dumps({"questions": questions}))
    (pictures / "a.json").write_text(json.dumps({"annotations": notes}))
    line = f"vqa:{pictures}/q.json?root={pictures}&pattern=COCO_val2014_{{image_id:012d}}.jpg"
    source = open_source(f"{line}&annotations={pictures}/a.json")
    assert source.ids() == ["0", "1", "2", "3"] and load_all(source, options=ImageOptions(8)).any()
    first, second = source.record(0).questions
    assert (first.text, first.answers, first.id, first.kind) == ("q0?", ("a0", "b"), "10", "other")
    assert second.id == "14" and len(source.record(2).questions) == 1
    assert open_source(line).record(0).questions[0].answers == ()
    (pictures / "a.json").write_text(json.dumps({"annotations": notes[:2]}))
    with pytest.raises(UserError, match="no answers for question 12"):
        open_source(f"{line}&annotations={pictures}/a.json")
    with pytest.raises(UserError, match="does not fit"):
        open_source(f"vqa:{pictures}/q.json?root={pictures}&pattern={{number}}.jpg")


def test_what_ships_with_packages():
    assert len(open_source("easy_vqa:test")) == 880 and len(open_source("fake:7")) == 7
    everything = open_source("easy_vqa:test?pictures=all")
    assert len(everything) == 1000 and sum(len(everything.record(i).questions) for i in range(1000)) == 9673
    few = open_source("easy_vqa:train?count=20")
    assert [few.record(i).id for i in range(len(few))] == open_source("easy_vqa:train").ids()[:20]
    assert open_source("scene_text:3").record(5) != open_source("scene_text:4").record(5)
    for line, message in (
        ("fake:many", "whole number"),
        ("scene_text:", "whole number"),
        ("easy_vqa:train?pictures=some", "'captioned', or 'all'"),
        ("easy_vqa:test?count=881", "number of 1 to 880 pictures"),
        ("easy_vqa:test?count=0", "number of 1 to 880 pictures"),
        ("easy_vqa:tests", "no split 'tests'"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(line)


def test_splits_of_a_config(pictures):
    settings = DataSettings(train="fake:40", validation="fake:9")
    training, validation = open_splits(settings, validation_examples=5)
    assert (len(training), len(validation)) == (40, 5)
    training, held = open_splits(replace(settings, validation=""), validation_examples=1000)
    assert (len(training), len(held)) == (36, 4), "at most a tenth is held out"
    assert sorted([*training.ids(), *held.ids()]) == sorted(open_source("fake:40").ids())
    assert held.ids() == open_splits(replace(settings, validation=""), validation_examples=1000)[1].ids()
    shouted = f"folder:{pictures} + fake:3"
    (pictures / "red.txt").write_text("A RED  &amp; picture")
    cleaned = open_source(shouted, clean=CleanOptions(lower_case=True))
    assert ("a red & picture",) in [cleaned.record(i).captions for i in range(len(cleaned))]
    with pytest.raises(UserError, match="held out of 1 for validation would leave none"):
        open_splits(replace(settings, train="fake:1", validation=""), validation_examples=5)


def read_all(source):
    return [source.record(index) for index in range(len(source))]


def test_no_picture_is_held_out_and_trained_on(tmp_path):
    """In a table with a line for each caption, in a mixture that repeats a part, and in two parts of one picture."""
    table = tmp_path / "token.tsv"
    table.write_text("".join(f"{n}.jpg#{k}\tcaption {k} of {n}\n" for n in range(40) for k in range(5)))
    (tmp_path / "again.jsonl").write_text("".join(f'{{"image": "{n}.jpg", "caption": "x"}}\n' for n in range(60)))
    settings = DataSettings(validation="")
    tables = (f"tsv:{table}?image=0&caption=1", f"jsonl:{tmp_path}/again.jsonl")
    for train, most, shown in (
        (tables[0], 20, 4),  # whole pictures
        (tables[0], 12, 3),
        (f"0.9 * {tables[0]} + 0.1 * {tables[1]}", 20, 6),
        (f"{tables[0]} + fake:50", 25, 9),
    ):
        training, held = open_splits(replace(settings, train=train), validation_examples=most)
        sides = [{r.image if isinstance(r.image, Path) else r.id for r in read_all(part)} for part in (training, held)]
        assert not sides[0] & sides[1] and abs(len(held) - most) <= 1 and abs(len(sides[1]) - shown) <= 1, train
    training, held = open_splits(replace(settings, train="0.5 * fake:50 + 0.5 * fake:1000"), validation_examples=64)
    sides = [{name.partition("#")[0] for name in part.ids()} for part in (training, held)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 1050
    assert sorted(name[0] for name in sides[1]) == ["0"] * 5 + ["1"] * 32, "a tenth of the small part, no more"


def test_validation_on_a_mixture_is_on_all_of_its_parts():
    settings = DataSettings(train="fake:9", validation="0.75 * fake:2000 + 0.25 * fake:2000")
    _, validation = open_splits(settings, validation_examples=100)
    assert Counter(name[0] for name in validation.ids()) == {"0": 75, "1": 25}


def test_a_path_may_hold_a_plus(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "x"}')
    assert open_source(f"jsonl:{tmp_path}/t.jsonl?root=/data/a+b").record(0).image == Path("/data/a+b/a.png")


def test_captions_may_be_named_after_the_whole_name_of_a_picture(tmp_path):
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    for name in ("a.png.txt", "b.txt", "b.png.txt", "alone.txt"):
        (tmp_path / name).write_text(f"of {name}")
    found = read_all(open_source(f"folder:{tmp_path}"))
    assert [(record.id, record.image, record.captions) for record in found] == [
        ("a.png", tmp_path / "a.png", ("of a.png.txt",)),
        ("alone", None, ("of alone.txt",)),
        ("b.png", tmp_path / "b.png", ("of b.txt",)),
        ("c.jpg", tmp_path / "c.jpg", ()),
    ]


def named(name, count):
    return MemorySource([Record(f"{name}{i}", None) for i in range(count)])


def test_a_mixture_keeps_proportions_and_every_record():
    mixture = Mixture([named("a", 100), named("b", 10)], [0.75, 0.25])
    assert mixture.draws == [100, 33] and len(mixture) == 133
    ids = mixture.ids()
    assert ids == [mixture.record(i).id for i in range(133)] and len(set(ids)) == 133
    assert ids[0] == "0:a0" and ids[100] == "1:b0" and ids[110] == "1:b0#2" and ids[132] == "1:b2#4"
    assert {i.split("#")[0] for i in ids} == {f"0:a{i}" for i in range(100)} | {f"1:b{i}" for i in range(10)}
    assert open_source("fake:6 + fake:2").draws == [6, 2]
    assert open_source("1*fake:6 + 3 * fake:2").draws == [6, 18]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "kind:path"),
        ("folders:/x", "no kind 'folders'; did you mean 'folder'"),
        ("folder:/does/not/exist", "/does/not/exist is not a folder"),
        ("jsonl:/does/not/exist", "is not a file"),
        ("fake:4?size=3", "no option 'size'"),
        ("coco:/x.json", "needs the option 'root'"),
        ("tar:/does/not/*.tar", "no tar shard"),
        ("tfrecord:/does/not/*.tfrecord", "no record file"),
        ("easy_vqa:valid", "no split 'valid'"),
        ("0.5*fake:3 + fake:2", "weights some"),
        ("0*fake:3 + 1*fake:2", "must be positive"),
        ("1.2.3*fake:3 + 1*fake:2", "no number"),
    ],
)
def test_bad_lines(line, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(line)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path: Path):
    for kind in ("folder", "classes"):
        with pytest.raises(UserError, match="holds no"):
            open_source(f"{kind}:{tmp_path}")


def test_every_kind_has_a_test_or_its_own_file():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for kind in KINDS:
        assert f'"{kind}:' in text, kind
