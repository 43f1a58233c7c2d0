"""easy-VQA: the published counts, scenes that all answers agree with, and the rule for negations."""

import itertools
import re

import numpy as np
import pytest

from frozen_jax.data.easy_vqa import ANSWERS, COLOURS, SHAPES, EasyQuestion, EasyVQA, disclose, infer_scene
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.errors import UserError


@pytest.fixture(scope="module", params=["train", "test"])
def split(request):
    return EasyVQA(request.param)


def test_published_counts(split):
    pictures, questions, disclosed = {"train": (4000, 38575, 3542), "test": (1000, 9673, 880)}[split.split]
    assert len(split) == pictures == len(split.ids()) == len(set(split.ids()))
    assert len(split.questions) == questions
    assert sum(split.scene(i) is not None for i in range(len(split))) == disclosed
    assert {question.answer for question in split.questions} == set(ANSWERS)


def answer_from_scene(question, colour, shape):
    """A second reading of the question, written independently of the source's own rule."""
    things = [word for word in re.findall("[a-z]+", question) if word in COLOURS + SHAPES]
    if question.startswith("what"):
        asks_colour = "color" in question
        assert all(thing in (colour, shape) for thing in things)
        return colour if asks_colour else shape
    present = things[0] in (colour, shape)
    negated = " not " in question or question.startswith("is no ")
    return "yes" if present != negated else "no"


def test_every_answer_is_consistent_with_the_scene(split):
    checked = 0
    for question in split.questions:
        scene = split.scene(question.image_index)
        if scene:
            assert answer_from_scene(question.question, *scene) == question.answer
            checked += 1
    assert checked > 0.8 * len(split.questions)


def test_what_is_disclosed_says_which_scenes_fit(split):
    """By the second reading: a scene fits if it has what a question takes for granted, and the answer is its own."""
    for question in split.questions[::61]:
        shown, lacking = disclose(question.question, question.answer)
        taken = set(re.findall("[a-z]+", question.question)).intersection(COLOURS + SHAPES)
        for scene in itertools.product(COLOURS, SHAPES):
            granted = not question.question.startswith("what") or taken <= {*scene}
            fits = granted and answer_from_scene(question.question, *scene) == question.answer
            assert fits == (shown <= {*scene} and not lacking & {*scene})


def test_negations():
    def ask(question, answer):
        return infer_scene([EasyQuestion(question, answer, 0)])

    assert ask("is there not a red shape?", "no") == ("red", None)
    assert ask("is there not a red shape?", "yes") == (None, None)
    assert ask("does the image not contain a circle?", "no") == (None, "circle")
    assert ask("is no circle present?", "no") == (None, "circle")
    assert ask("is a circle present?", "no") == (None, None)
    assert ask("what is the blue shape?", "triangle") == ("blue", "triangle")
    with pytest.raises(UserError, match="contradict"):
        infer_scene([EasyQuestion("is there a red shape?", a, 0) for a in ("yes", "no")])


def test_scenes_are_what_the_pictures_show():
    """The inferred colour is the nearest of eight to the middle of the picture's shape: pixels confirm the answers."""
    rgb = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
           "teal": (0, 128, 128), "black": (0, 0, 0), "gray": (128, 128, 128), "brown": (165, 42, 42)}  # fmt: skip
    source, right, total = EasyVQA("test"), 0, 0
    for index in range(0, 200):
        scene = source.scene(index)
        if scene is None:
            continue
        pixels = load_image(source.record(index).image, options=ImageOptions(64)).astype(int).reshape(-1, 3)
        ground = np.median(pixels, axis=0)
        far = pixels[np.abs(pixels - ground[None, :]).sum(1) > 60]
        middle = np.median(far, axis=0)
        nearest = min(rgb, key=lambda name: np.abs(middle - np.array(rgb[name])).sum())
        right, total = right + (nearest == scene[0]), total + 1
    assert right >= 0.97 * total > 100


def test_records():
    source = EasyVQA("train")
    record = source.record(0)
    assert record.id == "train/0" and record.captions == ("a blue rectangle",) and record.tags == ("blue", "rectangle")
    assert record.questions[0].text == "what is the blue shape?" and record.questions[0].answers == ("rectangle",)
    silent = next(i for i in range(len(source)) if source.scene(i) is None)
    assert source.record(silent).captions == ()
    with pytest.raises(UserError, match="'valid'"):
        EasyVQA("valid")
