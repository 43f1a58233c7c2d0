"""Questions over pictures of one shade of red each, answered by a model that sees the shade."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image as Pillow

from frozen_jax.config import Config
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import EvaluateSettings, VQASettings
from frozen_jax.tasks import vqa
from frozen_jax.tasks.controls import Models, shuffle_without_fixed_points
from tests.tasks.seers import Seer, paint, red_of

QUERY, SHOT = " Question: how red? Answer:", " Question: how red? Answer: {}\n"


def name_red(parts):
    """Answers with the shade of the last picture, as models do with a leading space."""
    return f" {[part for part in parts if not isinstance(part, str)][-1]:.0f}"


def write_source(folder, reds, *, name):
    rows = []
    for number, red in enumerate(reds):
        Pillow.fromarray(paint(red)).save(folder / f"{name}{number}.png")
        rows.append({"image": f"{name}{number}.png", "question": "how red?", "answer": str(red)})
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder / name}.jsonl"


def make_config(source, shot_source="", **settings):
    vqa_settings = VQASettings(source=source, shot_source=shot_source, **settings)
    return Config(data=DataSettings(train=source), evaluate=EvaluateSettings(task="vqa", vqa=vqa_settings))


@pytest.fixture
def reds(tmp_path):
    return write_source(tmp_path, [10, 50, 90, 130, 170, 210], name="tests")


def test_zero_shot_with_controls(reds, tmp_path):
    models = Models(Seer(name_red), Seer(name_red, blind=True))
    figures, samples = vqa.evaluate(make_config(reds), models, tmp_path)
    figures = figures["vqa"]
    assert [(red_of(sample.prompt[1]), sample.answer, sample.truths, sample.score) for sample in samples] == [
        (red, f" {red}", (f"{red}",), 1.0) for red in (10, 50, 90, 130, 170, 210)
    ]
    assert figures["n"] == 6 and figures["stop"] == ["[eos]", "\n", "Question:", "20 tokens"]
    assert figures["majority"] == {"answer": "10", "accuracy": 16.67, "counted_on": "these questions"}
    row = figures["shots_0"]
    assert row["example"] == "Please answer the question.[img] Question: how red? Answer:"
    assert [row[name]["accuracy"] for name in ("seeing", "shuffled", "blind")] == [100.0, 0.0, 0.0]
    assert models.seeing.asked[0][1] == ("Please answer the question.", 50.0, QUERY)
    assert models.blind.asked[0][1] == ("Please answer the question.", 0.0, QUERY)


def test_shots_are_other_pictures_and_the_same_for_every_control(reds, tmp_path):
    models = Models(Seer(name_red), Seer(name_red, blind=True))
    config = make_config(reds, shots=(0, 3))
    row = vqa.evaluate(config, models, tmp_path).figures["vqa"]["shots_3"]
    seeing, shuffled, blind = models.seeing.asked[2:5], models.seeing.asked[5:], models.blind.asked[1:]
    assert len(seeing) == len(shuffled) == len(blind) == row["seeds"] == 3
    for prompts in seeing:
        for prompt in prompts:
            assert prompt[0] == "Please answer the question." and len(prompt) == 9
            shades = prompt[1::2]
            assert len(set(shades)) == 4 and prompt[2:8:2] == tuple(SHOT.format(f"{red:.0f}") for red in shades[:3])
    texts = lambda calls: [[prompt[2::2] for prompt in prompts] for prompts in calls]  # noqa: E731
    assert texts(seeing) == texts(shuffled) == texts(blind)
    assert seeing[0] != seeing[1] != seeing[2] != seeing[0]
    assert row["seeing"] == {"accuracy": 100.0, "spread": 0.0, "by_seed": [100.0] * 3}
    again = Models(Seer(name_red), Seer(name_red, blind=True))
    vqa.evaluate(config, again, tmp_path)
    assert again.seeing.asked == models.seeing.asked


def test_fixed_shots_are_one_draw_a_seed_without_the_question_s_own_picture(reds, tmp_path):
    seer = Seer(name_red)
    vqa.evaluate(make_config(reds, shots=(2,), shot_choice="fixed"), Models(seer), tmp_path)
    draws = []
    for prompts in seer.asked[:3]:
        shown = [prompt[1:-2:2] for prompt in prompts]  # the shades of the shots of each question
        usual = max(set(shown), key=shown.count)
        assert shown.count(usual) == 4  # the two questions about its own pictures have others
        for number, (prompt, shades) in enumerate(zip(prompts, shown, strict=True)):
            assert len(set(shades)) == 2 and prompt[-2] == 10 + 40 * number and prompt[-2] not in shades
            assert shades == usual or prompt[-2] in usual
        draws.append(usual)
    assert len(set(draws)) > 1


def test_spread_over_seeds_by_hand(reds, tmp_path):
    """A model that copies the first shot's shade is right where a draw happens to begin with a like one: never."""
    lucky = iter([" 10", " 50"] + [" 0"] * 4 + [" 10"] + [" 0"] * 5 + [" 10", " 50", " 90"] + [" 0"] * 3)
    measured = vqa.evaluate(make_config(reds, shots=(1,)), Models(Seer(lambda parts: next(lucky, " 0"))), tmp_path)
    expected = {"accuracy": 33.33, "spread": 16.67, "by_seed": [33.33, 16.67, 50.0]}
    assert measured.figures["vqa"]["shots_1"]["seeing"] == expected


def test_similar_shots_are_the_nearest_with_the_nearest_last(tmp_path):
    """By the cosine of what the model sees, (red, red / 2 + 1): 30 lies next to 20, then to 200, then to 10."""
    pool = write_source(tmp_path, [10, 200, 20], name="pool")
    config = make_config(write_source(tmp_path, [30], name="one"), pool, shots=(2,), shot_choice="similar")
    seer = Seer(name_red)
    vqa.evaluate(config, Models(seer), tmp_path)
    assert {prompts[0][1::2] for prompts in seer.asked[:3]} == {(200.0, 20.0, 30.0)}


def test_a_question_never_has_its_own_picture_as_a_similar_shot(reds, tmp_path):
    seer = Seer(name_red)
    vqa.evaluate(make_config(reds, shots=(2,), shot_choice="similar"), Models(seer), tmp_path)
    for prompt in seer.asked[0]:
        assert len(set(prompt[1::2])) == 3


@pytest.mark.parametrize("choice", ["similar", "sampled", "fixed"])
def test_no_shot_shows_the_picture_that_is_asked_about(tmp_path, choice):
    """A line for each of three questions about a picture, and a pool that names the same lines otherwise."""
    source = write_source(tmp_path, [10, 50, 90, 130], name="tests")
    lines = (tmp_path / "tests.jsonl").read_text().splitlines() * 3
    (tmp_path / "tests.jsonl").write_text("\n".join(lines))
    seer = Seer(name_red)
    config = make_config(source, f"{source} + {source}", shots=(3,), shot_choice=choice)
    assert vqa.evaluate(config, Models(seer), tmp_path).figures["vqa"]["n"] == 12
    for prompt in (prompt for prompts in seer.asked[:3] for prompt in prompts):
        assert len(set(prompt[1::2])) == 4


def test_ten_answers_and_types_by_the_official_rule(tmp_path):
    Pillow.fromarray(paint(30)).save(tmp_path / "7.jpg")
    questions = [{"image_id": 7, "question": f"q{n}?", "question_id": n} for n in range(2)]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    answers = [["30"] * 3 + [f"x{n}" for n in range(7)], ["30"] * 10]
    rows = [
        {"question_id": n, "answer_type": kind, "answers": [{"answer": text} for text in answers[n]]}
        for n, kind in enumerate(("number", "other"))
    ]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": rows}))
    source = f"vqa:{tmp_path}/q.json?root={tmp_path}&annotations={tmp_path}/a.json"
    row = vqa.evaluate(make_config(source), Models(Seer(name_red)), tmp_path).figures["vqa"]["shots_0"]
    assert row["seeing"] == {"accuracy": 95.0, "by_type": {"number": 90.0, "other": 100.0}}
    assert "shuffled" not in row  # one picture has no other


def test_stemmed_answers_are_official_and_those_that_people_wrote_stand_beside(tmp_path):
    """OK-VQA's form: `answer` is stemmed, `raw_answer` is not; the official code reads the former."""
    Pillow.fromarray(paint(30)).save(tmp_path / "7.jpg")
    questions = [{"image_id": 7, "question": "q?", "question_id": 1}]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    given = [{"answer": "race", "raw_answer": "30"}] * 2 + [{"answer": "30", "raw_answer": "racing"}] * 8
    annotation = {"question_id": 1, "answer_type": "other", "answers": given}
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [annotation]}))
    source = f"vqa:{tmp_path}/q.json?root={tmp_path}&annotations={tmp_path}/a.json"
    row = vqa.evaluate(make_config(source), Models(Seer(name_red)), tmp_path).figures["vqa"]["shots_0"]
    assert row["seeing"]["accuracy"] == 100.0 and row["seeing"]["accuracy_raw_answers"] == 60.0


def test_examples_limits_questions(reds, tmp_path):
    config = make_config(reds)
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, examples=2))
    assert vqa.evaluate(config, Models(Seer(name_red)), tmp_path).figures["vqa"]["n"] == 2


def test_what_cannot_be_asked_is_refused(reds, tmp_path):
    (tmp_path / "classes" / "red").mkdir(parents=True)
    Pillow.fromarray(paint(30)).save(tmp_path / "classes" / "red" / "0.png")
    with pytest.raises(UserError, match=r"asks for 6 shots, and .* has 6 pictures"):
        vqa.evaluate(make_config(reds, shots=(6,)), Models(Seer(name_red)), tmp_path)
    with pytest.raises(UserError, match="no questions with answers"):
        vqa.evaluate(make_config("classes:" + str(tmp_path / "classes")), Models(Seer(name_red)), tmp_path)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_the_shuffle_moves_everything(size):
    for seed in range(20):
        order = shuffle_without_fixed_points(size, seed=seed)
        assert sorted(order) == list(range(size)) and all(place != row for place, row in enumerate(order))
    assert shuffle_without_fixed_points(50, seed=1) != shuffle_without_fixed_points(50, seed=2)
    assert np.all(np.bincount(order) == 1)
