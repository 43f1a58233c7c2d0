"""Tags of pictures of one shade of red each: what is dark, bright, and warm besides."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image as Pillow

from frozen_jax.config import Config
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import EvaluateSettings, TagSettings
from frozen_jax.tasks import tag
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.tag import choose_thresholds, find_tag, score_frequency
from tests.tasks.seers import Seer, paint

SHADES = (10, 70, 30, 180, 250, 200, 220, 50)
"""Every second one, 70, 180, 200 and 50, decides the thresholds."""


@pytest.fixture
def shades(tmp_path):
    rows = []
    for red in SHADES:
        Pillow.fromarray(paint(red)).save(tmp_path / f"{red}.png")
        tags = ["dark"] if red < 100 else ["bright", *(["warm"] if red >= 200 else [])]
        rows.append({"image": f"{red}.png", "tags": tags})
    (tmp_path / "shades.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{tmp_path}/shades.jsonl"


def answer(parts, name=""):
    """Scores a tag by the shade; writes whether a picture is dark or bright, and never that it is warm."""
    red = parts[0]
    if name:
        return -red if name == " dark" else red
    return f" a {'dark' if red < 100 else 'bright'} square"


def evaluate(source, directory, **settings):
    """The probe and the thresholds learn from copies: pictures of their own, in the same order."""
    rows = [json.loads(line) for line in (directory / "shades.jsonl").read_text().splitlines()]
    copies = [
        row | {"image": shutil.copy(directory / row["image"], directory / f"other{row['image']}")} for row in rows
    ]
    (directory / "others.jsonl").write_text("\n".join(json.dumps(row, default=str) for row in copies))
    calibration = f"jsonl:{directory}/others.jsonl"
    given = TagSettings(source=source, **({"least": 1, "calibration": calibration} | settings))
    models = Models(Seer(answer), Seer(answer, blind=True))
    return tag.evaluate(Config(evaluate=EvaluateSettings(task="tag", tag=given)), models, directory)


def test_tags_by_score_by_text_and_by_frequency(shades, tmp_path):
    measured = evaluate(shades, tmp_path)
    figures, generated = measured.figures["tag"], measured.figures["tag_generated"]
    assert (figures["tags"], figures["n"], figures["calibration_n"], figures["probe_n"]) == (3, 8, 4, 4)
    assert figures["chance"] == pytest.approx(100 * 11 / 24, abs=0.01)
    assert figures["seeing"] == {"map": 100.0, "micro_f1": 100.0, "macro_f1": 100.0}
    assert figures["shuffled"]["map"] < 100 > figures["shuffled"]["micro_f1"]
    # Without a picture all are alike: every tag for everything, 11 of 24 right.
    everything = {"map": figures["chance"], "micro_f1": pytest.approx(100 * 22 / 35, abs=0.01)}
    assert {key: figures["blind"][key] for key in everything} == everything
    # Of the pictures that decide two are bright, two dark, one warm: the first two tags are best there, 8 of 16 right.
    macro = (8 / 12 + 8 / 12 + 6 / 11) / 3
    assert figures["frequency"] == {
        "map": figures["chance"],
        "micro_f1": pytest.approx(100 * 16 / 27, abs=0.01),
        "macro_f1": pytest.approx(100 * macro, abs=0.01),
    }
    assert generated["seeing"] == {"micro_f1": pytest.approx(100 * 16 / 19, abs=0.01), "macro_f1": 66.67}
    assert figures["linear_probe"]["map"] > figures["chance"] + 20
    assert (tmp_path / "report_tags.png").is_file()
    assert measured.samples[0].truths and measured.samples[0].answer.strip().startswith("a ")


def test_sources_without_a_common_tag_are_refused(shades, tmp_path):
    with pytest.raises(UserError, match="no tag occurs 7 times"):
        evaluate(shades, tmp_path, least=7)


def test_one_picture_cannot_both_teach_and_decide(shades, tmp_path):
    Pillow.fromarray(paint(11)).save(tmp_path / "alone.png")
    (tmp_path / "alone.jsonl").write_text(json.dumps({"image": "alone.png", "tags": ["dark"]}))
    with pytest.raises(UserError, match=r"has 1 tagged pictures that are not tested; .* two are needed"):
        evaluate(shades, tmp_path, calibration=f"jsonl:{tmp_path}/alone.jsonl")


def test_nothing_is_learnt_from_a_picture_that_is_tested(shades, tmp_path):
    with pytest.raises(UserError, match="no picture to learn from but those that are tested"):
        evaluate(shades, tmp_path, calibration=shades)


def test_a_vocabulary_of_hundreds_and_tags_that_no_threshold_was_chosen_for(shades, tmp_path):
    """600 tags of the bright pictures; half of them are on none that decides a threshold, and so are never called."""
    path = tmp_path / "shades.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place, row in enumerate(rows):
        if row["tags"][0] == "bright":
            row["tags"] += [f"mark {n}" for n in range(600) if n < 300 or place % 2 == 0]
    path.write_text("\n".join(map(json.dumps, rows)))
    figures = evaluate(shades, tmp_path).figures["tag"]
    assert figures["tags"] == 603 and figures["seeing"]["map"] == 100.0
    assert figures["seeing"]["macro_f1"] == pytest.approx(100 * 303 / 603, abs=0.01)


def test_without_looking_micro_f1_is_that_of_the_commonest_tags():
    """The order is that of other pictures, how many is decided by calibration, and macro-F1 is that of all tags."""
    actual = np.zeros((10, 3), bool)
    actual[:2, 0] = actual[:4, 1] = actual[:9, 2] = True
    often = np.array([0.1, 0.8, 0.5])
    one, two = np.array([[0, 1, 0]] * 4, bool), np.array([[0, 1, 1]] * 4, bool)
    macro = round(100 * (4 / 12 + 8 / 14 + 18 / 19) / 3, 2)
    for calibration, micro in ((one, 8 / (10 + 15)), (two, 26 / (20 + 15))):
        expected = {"map": 50.0, "micro_f1": round(100 * micro, 2), "macro_f1": macro}
        assert score_frequency(often, actual, calibration) == expected


def test_thresholds_are_the_best_on_the_given_pictures():
    """Against every threshold there is, ties included."""
    random = np.random.default_rng(0)
    scores, actual = random.integers(6, size=(30, 4)).astype(float), random.random((30, 4)) < 0.4

    def f1(threshold, column):
        made = scores[:, column] >= threshold
        return 2 * (made & actual[:, column]).sum() / (made.sum() + actual[:, column].sum())

    for column, threshold in enumerate(choose_thresholds(scores, actual)):
        assert f1(threshold, column) == max(f1(other, column) for other in range(6))


def test_tags_in_a_text_are_whole_words():
    assert find_tag("dark", "A Dark, wide square.") and find_tag("traffic light", "a traffic light")
    assert not find_tag("dark", "darkness") and not find_tag("red", "a shared thing")
