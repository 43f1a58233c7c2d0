import re

import numpy as np
import pytest

from frozen_jax.data.easy_vqa import EasyVQA
from frozen_jax.data.scene_sources import CaptionedScenes, DescribedScenes, open_easy_vqa
from frozen_jax.data.scenes import COLOURS, SHAPES, ask_about, list_captions
from frozen_jax.errors import UserError


def test_captions_name_the_scene_and_nothing_else():
    for caption in list_captions("teal", "circle"):
        words = set(re.findall("[a-z]+", caption))
        assert words & set(COLOURS) == {"teal"} and words & set(SHAPES) == {"circle"}


def judge(question, colour, shape):
    """Answers a question by its words: an independent reading of what the templates mean."""
    words = re.findall("[a-z]+", question)
    if words[0] in ("what", "which"):
        asks_colour = words[1] == "color" or ("color" in words and words[:2] == ["what", "is"])
        return colour if asks_colour else shape
    named = [word for word in words if word in COLOURS + SHAPES]
    assert len(named) == 1
    there = named[0] in (colour, shape)
    return "no" if there == ("not" in words or "no" in words) else "yes"


def test_answers_are_true():
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(3000):
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        question, answer = ask_about(str(colour), str(shape), rng)
        assert answer == judge(question, colour, shape), question
        answers.append(answer)
    assert set(answers) == {"yes", "no", *COLOURS, *SHAPES}
    yes = answers.count("yes") / (answers.count("yes") + answers.count("no"))
    assert 0.45 < yes < 0.55


def test_the_same_judge_agrees_with_easy_vqa():
    """The templates mean what easy-VQA's own questions mean."""
    source = EasyVQA("test")
    checked = 0
    for question in source.questions:
        if scene := source.scene(question.image_index):
            assert judge(question.question, *scene) == question.answer, question
            checked += 1
    assert checked > 8000


def test_described_scenes_are_pure_and_pictureless():
    one, other = DescribedScenes(100, seed=1), DescribedScenes(100, seed=1)
    assert [one.record(i) for i in range(20)] == [other.record(i) for i in range(20)]
    assert one.record(3) != DescribedScenes(100, seed=2).record(3)
    assert one.record(3).image is None


def test_splits_do_not_overlap():
    train, validation = open_easy_vqa("train"), open_easy_vqa("validation")
    assert len(train) + len(validation) == 3542 and not set(train.ids()) & set(validation.ids())
    assert len(open_easy_vqa("test")) == len(CaptionedScenes(EasyVQA("test"))) == 880


@pytest.mark.parametrize("index", [0, 7])
def test_a_captioned_scene_has_every_wording(index):
    record = open_easy_vqa("train").record(index)
    assert record.captions == list_captions(*record.tags)
    colour, shape = record.tags
    phrased = open_easy_vqa("train", captions="noun_phrases").record(index)
    assert (phrased.id, phrased.captions) == (record.id, (f"{colour} {shape}", f"{shape} {colour}"))
    assert open_easy_vqa("train", captions="sentences").record(index).captions == (f"A {colour} {shape}.",)


def test_unknown_captions_are_refused():
    with pytest.raises(UserError, match="use all, noun_phrases, sentences"):
        open_easy_vqa("train", captions="some")
