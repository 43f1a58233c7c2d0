import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.config import Config, DataSettings
from frozen_jax.data.easy_vqa import EasyQuestion
from frozen_jax.data.scenes import list_captions
from frozen_jax.tasks.easy_vqa import (
    QuestionSet,
    Reader,
    accuracy_by_type,
    matches_caption,
    score_baselines,
    score_captions,
    score_questions,
    score_shuffled,
    score_text_oracle,
    shuffle_without_fixed_points,
)

SCENES = [("red", "circle"), ("teal", "triangle"), None, ("red", "circle")]
QUESTIONS = [
    EasyQuestion("what color is the shape?", "red", 0),
    EasyQuestion("what shape is present?", "triangle", 1),
    EasyQuestion("is there a circle?", "no", 1),
    EasyQuestion("what color is the shape?", "blue", 2),
    EasyQuestion("what shape is present?", "circle", 3),
]


CONFIG = Config(data=DataSettings(caption_format=" {caption}", question_format=" Question: {question} Answer:"))
PREFIXES = jnp.zeros((4, 2, 3))


class FourPictures(QuestionSet):
    """A test set of four pictures."""

    def __init__(self, questions=QUESTIONS):
        self.questions, self.scenes = questions, SCENES
        self.images = np.zeros((4, 2, 2, 3), np.uint8)
        self.question_format = CONFIG.data.question_format


class FakeReader(Reader):
    """Answers from the prompt alone, by what stands before the question: a picture's number or words."""

    def __init__(self, answer):
        for name, value in (("config", CONFIG), ("answer", answer), ("asked", [])):
            object.__setattr__(self, name, value)

    def ask(self, prompts, prefixes):
        self.asked += prompts
        return [self.answer(*prompt) for prompt in prompts]


def see(picture, text=""):
    """A perfect reader of the pictures above, who answers with a leading space and a capital, as models do."""
    scene = SCENES[picture.row] or ("blue", "circle")
    if not text:
        return " " + " ".join(scene)
    if "color" in text:
        return f" {scene[0].title()}."
    return f" {scene[1]}" if "shape" in text else " no"


def test_a_perfect_reader_scores_100_and_a_shuffled_one_does_not():
    scores, answers = score_questions(FakeReader(see), FourPictures(), PREFIXES)
    assert scores == {
        "accuracy": 100.0,
        "by_type": {"colour": 100.0, "shape": 100.0, "yes/no": 100.0},
        "questions": 5,
    }
    assert answers[0] == " Red."
    assert score_shuffled(FakeReader(see), FourPictures(), PREFIXES)["accuracy"] < 100


def test_by_type_by_hand():
    scores = accuracy_by_type(["red", "circle", "yes", "red", "circle"], QUESTIONS)
    assert scores["accuracy"] == 40.0
    assert scores["by_type"] == {"colour": 50.0, "shape": 50.0, "yes/no": 0.0}


def test_shuffled_asks_about_another_picture_and_keeps_questions_of_a_picture_together():
    reader = FakeReader(see)
    score_shuffled(reader, FourPictures(), PREFIXES)
    pairs = [(q.image_index, prompt[0].row) for q, prompt in zip(QUESTIONS, reader.asked, strict=True)]
    assert all(own != other for own, other in pairs)
    assert pairs[1] == pairs[2]


@pytest.mark.parametrize("size", [2, 3, 50])
def test_the_shuffle_moves_everything(size):
    for seed in range(20):
        order = shuffle_without_fixed_points(size, seed=seed)
        assert sorted(order) == list(range(size)) and all(place != row for place, row in enumerate(order))
    assert shuffle_without_fixed_points(50, seed=1) != shuffle_without_fixed_points(50, seed=2)


def test_the_oracle_is_asked_in_words_about_disclosed_pictures_alone():
    reader = FakeReader(lambda words, question: " red")
    scores = score_text_oracle(reader, FourPictures())
    assert scores["questions"] == 4 and scores["accuracy"] == 25.0
    assert all(isinstance(prompt[0], str) for prompt in reader.asked)
    assert {prompt[0] for prompt in reader.asked if "color" in prompt[1]} <= {
        " " + c for c in list_captions("red", "circle")
    }


def test_exact_match_counts_disclosed_pictures_and_every_wording():
    figures, captions = score_captions(FakeReader(see), FourPictures(), PREFIXES)
    assert figures == {"exact_match": 100.0, "pictures": 3, "chance": pytest.approx(66.67)}
    assert captions[0] == "red circle"
    wrong, _ = score_captions(FakeReader(lambda picture: " red circle"), FourPictures(), PREFIXES)
    assert wrong["exact_match"] == pytest.approx(66.67)


@pytest.mark.parametrize(
    ("caption", "match"),
    [
        ("red circle", True),
        ("red circle. the circle is red", True),
        ("red circle. the circle is blue", False),
        ("red", False),
        ("", False),
        ("a red circle in the image", False),
    ],
)
def test_matches_caption(caption, match):
    assert matches_caption(caption, list_captions("red", "circle")) is match


def test_baselines_of_the_whole_set():
    """The published set's own figures: majority 37.3 %, question only 67.0 %."""
    from frozen_jax.data.easy_vqa import EasyVQA

    tests = FourPictures(EasyVQA("test").questions)
    assert len(tests.questions) == 9673
    assert score_baselines(tests) == {"majority": 37.33, "question_only": 67.0}
