"""Captioning and closed-set classification of pictures of one shade of red each."""

import dataclasses
import json

import pytest
from PIL import Image as Pillow

from frozen_jax.config import Config
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import CaptionSettings, ClassifySettings, EvaluateSettings
from frozen_jax.metrics.captions import cider_d
from frozen_jax.tasks import caption, classify, controls
from frozen_jax.tasks.caption import score_captions
from frozen_jax.tasks.controls import Models
from tests.tasks.seers import Seer, paint

WORDS = {10: "a dark red square", 90: "a plain red thing here", 170: "something light and red", 250: "all of it bright"}


def write_reds(folder, *, name):
    rows = []
    for number, (red, text) in enumerate([*WORDS.items(), (250, "")]):
        Pillow.fromarray(paint(red)).save(folder / f"{name}{number}.png")
        row = {"image": f"{name}{number}.png", "tags": ["red", str(red)]}
        rows.append(row | ({"caption": [text, "red"]} if text else {}))
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder}/{name}.jsonl"


@pytest.fixture
def reds(tmp_path):
    return write_reds(tmp_path, name="reds")


@pytest.fixture
def others(tmp_path):
    """Other pictures of the same shades, to learn from."""
    return write_reds(tmp_path, name="others")


def test_captions_with_controls(reds, tmp_path):
    say = lambda parts: f" {WORDS.get(int(parts[0]), 'nothing')}"  # noqa: E731
    models = Models(Seer(say), Seer(say, blind=True))
    config = Config(data=DataSettings(train=reds, validation=reds), evaluate=EvaluateSettings(task="caption"))
    figures = caption.evaluate(config, models, tmp_path).figures["caption"]
    assert (figures["n"], figures["without_reference"], figures["prompt"]) == (4, 1, "[img]")
    references = {str(n): [text, "red"] for n, text in enumerate(WORDS.values())}
    expected = 100 * cider_d({name: texts[0] for name, texts in references.items()}, references)
    assert figures["seeing"] == {
        **{f"bleu_{order}": 100.0 for order in (1, 2, 3, 4)},
        "rouge_l": 100.0,
        "cider_d": pytest.approx(expected, abs=0.01),
        "exact_match": 100.0,
        "nats_per_token": 0.0,
    }
    assert figures["shuffled"]["nats_per_token"] == figures["blind"]["nats_per_token"] == 1.0
    assert figures["shuffled"]["exact_match"] == figures["blind"]["exact_match"] == 0.0
    assert figures["shuffled"]["cider_d"] < figures["seeing"]["cider_d"] > 100
    same = score_captions(dict.fromkeys(references, "red"), references)
    assert figures["majority"] == {"caption": "red", **same} and same["exact_match"] == 100.0 > same["cider_d"]


def test_nouns_of_captions_are_looked_for(reds, tmp_path):
    """ "square" and "thing" are head nouns of two captions; the model says one of them by a word for what is above it,
    the other in the plural, and repeats "light", to which WordNet has nothing to add."""
    nouns = {"square": "00000001", "rectangle": "00000002", "thing": "00000003"}
    (tmp_path / "index.noun").write_text("".join(f"{noun} n 1 0 1 0 {place}  \n" for noun, place in nouns.items()))
    above = {"square": "001 @ 00000002 n 0000"}
    lines = (f"{p} 03 n 01 {noun} 0 {above.get(noun, '000')} | gloss\n" for noun, p in nouns.items())
    (tmp_path / "data.noun").write_text("".join(lines))
    (tmp_path / "noun.exc").write_text("")
    texts = {
        10: "two rectangles",
        90: "things",
        170: "something light",
        250: "$\\nothing$ \x07 \u4e00",
    }  # no formula, no sign of the font
    settings = EvaluateSettings(task="caption", caption=CaptionSettings(wordnet=str(tmp_path)))
    config = Config(data=DataSettings(train=reds, validation=reds), evaluate=settings)
    models = Models(Seer(lambda parts: texts[int(parts[0])]))
    found = caption.evaluate(config, models, tmp_path).figures["caption"]
    assert (found["seeing"]["noun_exact"], found["seeing"]["noun"]) == (50.0, 75.0)
    assert (tmp_path / "report_captions.png").is_file()
    assert found["shuffled"]["noun"] < 75.0 and found["majority"]["noun"] == 0.0


def test_captions_by_domain_are_those_of_each_domain_alone(tmp_path):
    """NoCaps' form: COCO's, and a domain in every picture's entry."""
    places = dict(zip(WORDS, ("in-domain", "near-domain", "near-domain", "out-domain"), strict=True))
    images = [{"id": red, "file_name": f"{red}.png", "domain": domain} for red, domain in places.items()]
    for red in WORDS:
        Pillow.fromarray(paint(red)).save(tmp_path / f"{red}.png")
    texts = [{"image_id": red, "caption": text} for red, words in WORDS.items() for text in (words, "it is red")]
    (tmp_path / "nocaps.json").write_text(json.dumps({"images": images, "annotations": texts}))
    settings = CaptionSettings(source=f"coco:{tmp_path}/nocaps.json?root={tmp_path}")
    config = Config(
        data=DataSettings(train=settings.source), evaluate=EvaluateSettings(task="caption", caption=settings)
    )
    say = lambda parts: WORDS[90 if parts[0] == 10 else int(parts[0])]  # noqa: E731
    figures = caption.evaluate(config, Models(Seer(say)), tmp_path).figures["caption"]
    assert figures["n_by_domain"] == {"in-domain": 1, "near-domain": 2, "out-domain": 1}
    found = figures["seeing"]["by_domain"]
    assert {name: part["exact_match"] for name, part in found.items()} == {
        "in-domain": 0.0,
        "near-domain": 100.0,
        "out-domain": 100.0,
    }
    near = {str(red): [WORDS[red], "it is red"] for red in (90, 170)}
    assert found["near-domain"] == score_captions({name: lines[0] for name, lines in near.items()}, near)
    assert found["near-domain"]["cider_d"] != figures["seeing"]["cider_d"] > found["in-domain"]["cider_d"]


def test_lines_about_one_picture_are_one_picture(reds, tmp_path):
    """Flickr's form: a line for each caption. Nothing in a picture tells which of them is asked for."""
    lines = [f"{place}.png#{turn}\t{text}" for place, text in enumerate(WORDS.values()) for turn, text in
             enumerate((text, f"it is {text}"))]  # fmt: skip
    for place, red in enumerate(WORDS):
        Pillow.fromarray(paint(red)).save(tmp_path / f"{place}.png")
    (tmp_path / "flickr.tsv").write_text("\n".join(lines))
    source = CaptionSettings(source=f"tsv:{tmp_path}/flickr.tsv?image=0&caption=1&root={tmp_path}")
    for examples, pictures in ((0, 4), (3, 3)):
        settings = EvaluateSettings(task="caption", caption=source, examples=examples)
        models = Models(Seer(lambda parts: WORDS[int(parts[0])]))
        config = Config(data=DataSettings(train=reds), evaluate=settings)
        figures = caption.evaluate(config, models, tmp_path).figures["caption"]
        assert figures["n"] == pictures and figures["seeing"]["exact_match"] == 100.0
    both = [[words, f"it is {words}"] for words in list(WORDS.values())[:3]]
    references = {str(place): texts for place, texts in enumerate(both)}
    expected = score_captions({place: texts[0] for place, texts in references.items()}, references)
    assert {name: figures["seeing"][name] for name in expected} == expected


def test_captions_need_references(reds, tmp_path):
    Pillow.fromarray(paint(10)).save(tmp_path / "0.png")
    (tmp_path / "bare.jsonl").write_text('{"image": "0.png"}')
    settings = CaptionSettings(source=f"jsonl:{tmp_path}/bare.jsonl")
    config = Config(evaluate=EvaluateSettings(task="caption", caption=settings))
    with pytest.raises(UserError, match="has no captions to compare with"):
        caption.evaluate(config, Models(Seer(str)), tmp_path)
    with pytest.raises(UserError, match=r"evaluate\.caption\.source is ''"):
        caption.evaluate(Config(evaluate=EvaluateSettings(task="caption")), Models(Seer(str)), tmp_path)


def make_config(source, *, examples=0, **settings):
    classify_settings = ClassifySettings(source=source, **settings)
    return Config(evaluate=EvaluateSettings(task="classify", examples=examples, classify=classify_settings))


def test_classes_by_score(reds, tmp_path):
    """A score that is the higher the nearer the named shade is to the picture's."""
    models = Models(Seer(lambda parts, name: -abs(parts[0] - int(name))), Seer(lambda parts, name: 0.0, blind=True))
    figures = classify.evaluate(make_config(reds, tag=1), models, tmp_path).figures["classify"]
    assert (figures["classes"], figures["class_names"]) == (4, ["10", "170", "250", "90"])
    assert (figures["n"], figures["chance"], figures["majority"]) == (5, 25.0, 40.0)
    assert (figures["prompt"], figures["names"]) == ("[img] This is a", " {name}")
    # The mean shade is 154: less that, 90 and 170 are each as near to another shade, and count as missed.
    assert figures["seeing"] == {"top_1": 100.0, "ece": pytest.approx(0, abs=0.01), "less_prior_top_1": 60.0}
    # Equal scores: a confidence of a quarter in the first class, which one in five has; ties are no hits.
    assert figures["blind"] == {"top_1": 0.0, "ece": pytest.approx(5), "less_prior_top_1": 0.0}
    assert figures["shuffled"]["top_1"] < 100
    assert models.seeing.asked[0][0] == (10.0, " This is a")


def test_prompts_are_averaged_and_shots_are_answered_pictures(reds, others, tmp_path):
    """One prompt is right by itself, the other wrong; together the stronger one decides."""

    def answer(parts, name):
        near = -abs(parts[-2] - int(name))
        return near if parts[-1] == " It is" else -near / 2

    shots = {"tag": 1, "prompts": ("[img] It is", "[img] Not"), "shots": (0, 2), "shot_source": others}
    models = Models(Seer(answer))
    measured = classify.evaluate(make_config(reds, **shots), models, tmp_path)
    assert measured.figures["classify"]["seeing"]["top_1"] == 100.0
    section = measured.figures["classify_shots_2"]
    assert (section["seeing"]["top_1"], section["chance"], section["shots"]) == (100.0, 25.0, 2)
    assert section["n"] == 5 and section["prompt"].count("[img] It is") == 3
    queries = [query for call in models.seeing.asked for query in call if len(query) > 2]
    before = {query[:6] for query in models.seeing.asked[4]}
    assert len(queries) == 2 * 2 * (5 + 1) and len(before) == 1, (
        "prompts, views, five pictures and their mean; the same shots"
    )
    first, _, said, second, _, again = before.pop()
    assert first != second and (said, again) == (f" {first:.0f}\n", f" {second:.0f}\n")
    wrong = classify.evaluate(make_config(reds, tag=1, prompts=("[img] Not",)), models, tmp_path)
    assert wrong.figures["classify"]["seeing"]["top_1"] < 50
    drawn = sorted(path.name for path in tmp_path.glob("*_confusion_*.png"))
    assert drawn == ["report_confusion_0.png", "report_confusion_2.png"]


def test_a_name_that_is_said_of_everything_does_not_win_without_its_prior(reds, tmp_path):
    """ "250" is worth 1,000 more after any picture, the mean one included."""
    models = Models(Seer(lambda parts, name: 1000 * (name == " 250") - abs(parts[0] - int(name))))
    figures = classify.evaluate(make_config(reds, tag=1), models, tmp_path).figures["classify"]["seeing"]
    assert figures["top_1"] == 40.0 < figures["less_prior_top_1"]


def test_heads_on_the_encoder(reds, others, tmp_path):
    models = Models(Seer(lambda *_: 0.0), Seer(lambda *_: 0.0, blind=True))
    figures = classify.evaluate(make_config(reds, tag=1, heads=True, shot_source=others), models, tmp_path).figures
    for name in ("classify_linear_probe", "classify_head"):
        assert figures[name]["seeing"]["top_1"] == 100.0 and figures[name]["trained_on"] == figures[name]["n"] == 5
        assert figures[name]["blind"]["top_1"] == 40.0, "what it cannot see it gives the commonest class"
        assert figures[name]["majority"] == 40.0


def test_heads_learn_from_no_picture_that_is_tested(reds, others, tmp_path):
    """Told what they are asked, they would be right of anything."""
    with pytest.raises(UserError, match="no picture to learn from but those that are tested"):
        classify.evaluate(make_config(reds, tag=1, heads=True, shot_source=reds), Models(Seer(str)), tmp_path)
    both = make_config(reds, tag=1, heads=True, shot_source=f"{reds} + {others}")
    figures = classify.evaluate(both, Models(Seer(lambda *_: 0.0)), tmp_path).figures
    assert figures["classify_head"]["trained_on"] == 5


def test_of_a_pool_no_more_is_opened_than_shots_are_drawn_from(reds, others, tmp_path, monkeypatch):
    """Of ImageNet each picture would be opened for two shots; heads learn from all."""
    opened = []
    monkeypatch.setattr(controls, "_opens", lambda record, options: not opened.append(record.id))
    settings = {"tag": 1, "shot_source": others, "shot_pool": 2, "shots": (1,)}
    for heads, count in ((False, 2), (True, 5)):
        config = make_config(reds, heads=heads, **settings)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad="replace"))
        opened.clear()
        classify.evaluate(config, Models(Seer(lambda *_: 0.0)), tmp_path)
        assert len([name for name in opened if name.startswith("others")]) == count


def test_shots_need_pictures(reds, others, tmp_path):
    with pytest.raises(UserError, match="has 5 pictures of these classes, 5 shots are wanted"):
        classify.evaluate(make_config(reds, tag=1, shots=(5,), shot_source=others), Models(Seer(str)), tmp_path)


def test_all_classes_count_whatever_is_examined(reds, tmp_path):
    figures = classify.evaluate(make_config(reds, examples=1), Models(Seer(lambda *_: 0.0)), tmp_path).figures[
        "classify"
    ]
    assert figures["classes"] == 4 and figures["n"] == 1 and figures["class_names"][0] == "red 10"


def test_pictures_without_a_class_are_refused(reds, tmp_path):
    with pytest.raises(UserError, match=r"record reds.jsonl:0 has the tags .* none at place 2"):
        classify.evaluate(make_config(reds, tag=2), Models(Seer(str)), tmp_path)
    with pytest.raises(UserError, match=r"has the class \['red'\] alone"):
        classify.evaluate(make_config(reds, tag=0), Models(Seer(str)), tmp_path)
