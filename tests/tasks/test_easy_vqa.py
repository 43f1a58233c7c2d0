import numpy as np
import pytest

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.easy_vqa import EasyQuestion
from frozen_jax.data.scenes import list_captions
from frozen_jax.data_settings import DataSettings
from frozen_jax.tasks import easy_vqa
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.easy_vqa import (
    QuestionSet,
    accuracy_by_type,
    describe_captioned,
    matches_caption,
    score_baselines,
    score_captions,
    score_questions,
    score_text_oracle,
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
PREFIXES = np.zeros((4, 2, 3), np.float32)


class FourPictures(QuestionSet):
    """A test set of four pictures."""

    def __init__(self, questions=QUESTIONS):
        self.questions, self.scenes = questions, SCENES
        self.images = np.zeros((4, 2, 2, 3), np.uint8)
        self.config = CONFIG


class FakeModel(Model):
    """Answers from the prompt alone, by what stands before the question: a picture's number or words."""

    def __init__(self, answer):
        for name, value in (("answer", answer), ("asked", [])):
            object.__setattr__(self, name, value)

    def generate(self, prompts, *, max_new_tokens, prefixes):
        self.asked += prompts
        return [self.answer(*prompt) for prompt in prompts]


def see(picture, text=""):
    """A perfect model of the pictures above, who answers with a leading space and a capital, as models do."""
    scene = SCENES[picture.row] or ("blue", "circle")
    if not text:
        return " " + " ".join(scene)
    if "color" in text:
        return f" {scene[0].title()}."
    return f" {scene[1]}" if "shape" in text else " no"


def test_a_perfect_model_scores_100():
    scores, answers = score_questions(FakeModel(see), FourPictures(), PREFIXES)
    assert scores == {
        "accuracy": 100.0,
        "by_type": {"colour": 100.0, "shape": 100.0, "yes/no": 100.0},
        "questions": 5,
    }
    assert answers[0] == " Red."


def test_a_blind_run_has_a_report_of_its_own(monkeypatch, tmp_path):
    """Its one view is called blind, and its captions are what `exact_match` is of."""

    class Blind(FakeModel):
        blind = True

        def embed_image(self, images):
            return np.zeros((len(images), 2, 3), np.float32)

    monkeypatch.setattr(easy_vqa, "QuestionSet", lambda config: FourPictures())
    model = Blind(lambda picture, question="": " red circle")
    figures = easy_vqa.evaluate(CONFIG, Models(model), tmp_path).figures
    assert set(figures["vqa"]) == {"blind", "majority", "question_only", "text_oracle"}
    assert figures["caption"]["exact_match"] == figures["caption"]["blind"]["exact_match"] == pytest.approx(66.67)


def test_by_type_by_hand():
    scores = accuracy_by_type(["red", "circle", "yes", "red", "circle"], QUESTIONS)
    assert scores["accuracy"] == 40.0
    assert scores["by_type"] == {"colour": 50.0, "shape": 50.0, "yes/no": 0.0}


def test_the_oracle_is_asked_in_words_about_disclosed_pictures_alone():
    model = FakeModel(lambda words, question: " red")
    scores = score_text_oracle(model, FourPictures())
    assert scores["questions"] == 4 and scores["accuracy"] == 25.0
    assert all(isinstance(prompt[0], str) for prompt in model.asked)
    assert {prompt[0] for prompt in model.asked if "color" in prompt[1]} <= {
        " " + c for c in list_captions("red", "circle")
    }


def test_exact_match_counts_disclosed_pictures_and_every_wording():
    figures, captions = score_captions(FakeModel(see), FourPictures(), PREFIXES)
    assert figures == {"exact_match": 100.0}
    assert describe_captioned(FourPictures()) == {"pictures": 3, "chance": pytest.approx(66.67)}
    assert captions[0] == "red circle"
    wrong, _ = score_captions(FakeModel(lambda picture: " red circle"), FourPictures(), PREFIXES)
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
