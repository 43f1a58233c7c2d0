"""Pictures of reports: whatever a class, a caption or an answer is called, they are drawn."""

from types import SimpleNamespace

import numpy as np
import pytest

from frozen_jax.data.easy_vqa import EasyQuestion
from frozen_jax.report import draw_answers, draw_confusion, draw_samples, make_printable
from frozen_jax.tasks.generate import draw_generated

NAMES = ["$1_$2", "$\\nothing$", "\ud800half", "bell \x07", "一", ""]


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (len(NAMES), 16, 16, 3), np.uint8)


def draw_confusions(path, _):
    draw_confusion(path, np.eye(len(NAMES)), np.arange(len(NAMES)), NAMES)


def draw_question_set(path, pictures):
    questions = [EasyQuestion(name, name, row) for row, name in enumerate(NAMES)]
    tests = SimpleNamespace(questions=questions, scenes=[(name,) for name in NAMES], images=pictures)
    draw_samples(path, tests, NAMES, NAMES[::-1])


def draw_captions(path, pictures):
    draw_answers(path, list(pictures), NAMES, NAMES[::-1], [True, False] * 3, size=16)


def draw_made(path, pictures):
    draw_generated(path, NAMES, pictures)


def test_spaces_of_all_kinds_are_plain_ones():
    assert make_printable("a\nred\u3000circle\u00a0\t\x07\ud800 👩\u200d🚀") == "a red circle  \ufffd\ufffd 👩\u200d🚀"


@pytest.mark.parametrize("draw", [draw_confusions, draw_question_set, draw_captions, draw_made])
def test_any_words_are_drawn(draw, pictures, tmp_path):
    draw(tmp_path / "made.png", pictures)
    assert (tmp_path / "made.png").stat().st_size > 5000
