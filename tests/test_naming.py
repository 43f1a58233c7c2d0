"""Texts scored after pictures: by hand on a model that sees one number, and against the model's own calls."""

import inspect

import numpy as np
import pytest

from frozen_jax.errors import UserError
from frozen_jax.naming import lay_question, score_texts
from frozen_jax.prompt import Image
from tests.tasks.seers import Seer, paint


def test_prompts_are_averaged_and_the_mean_picture_is_the_prior():
    """A name is worth the red of the picture, after the second prompt three times as much, and "loud" 500 more."""

    def answer(parts, name):
        return (parts[0] if parts[1:] == () else 3 * parts[0]) + 500 * (name == " loud")

    model = Seer(answer)
    table = model.embed_image([paint(10), paint(50), paint(90)])
    worth = score_texts(model, table, [" red", " loud"], prompts=("[img]", "[img] it is"))
    np.testing.assert_allclose(worth.scores, [[20, 520], [100, 600], [180, 680]])
    np.testing.assert_allclose(worth.prior, [100, 600])
    np.testing.assert_allclose(worth.less_prior, [[-80, -80], [0, 0], [80, 80]])
    given = score_texts(model, table[:1], [" red"], mean=table[2])
    assert (given.scores.item(), given.prior.item(), given.less_prior.item()) == (10, 90, -80)
    assert score_texts(model, table[:1], [" red"]).less_prior.item() == 0, "the mean of one picture is that picture"


def test_shots_stand_before_every_question_and_are_no_part_of_the_mean():
    model = Seer(lambda parts, name: 0.0)
    seen, shown = model.embed_image([paint(10), paint(50)]), model.embed_image([paint(200), paint(100)])
    score_texts(model, seen, [" x"], prompts=("[img] is",), shots=[(shown[0], " bright"), (shown[1], " dull")])
    before = (200.0, " is", " bright\n", 100.0, " is", " dull\n")
    assert model.asked == [[(*before, red, " is") for red in (10.0, 50.0, 30.0)]]
    assert lay_question("[img] is", 4, shots=[(7, " a")]) == (Image(7), " is", " a\n", Image(4), " is")


def test_vectors_that_do_not_fit_the_table_are_refused():
    model = Seer(lambda parts, name: 0.0)
    table = model.embed_image([paint(10), paint(50)])
    for given in ({"mean": table}, {"mean": table[0, :, :1]}, {"shots": [(table[0, 0], " red")]}):
        with pytest.raises(UserError, match=r"mean and shots are vectors \(1, 2\), as table's; one of them is"):
            inspect.unwrap(score_texts)(model, table, [" x"], **given)  # what checks types in tests sees it, too


@pytest.mark.parametrize("prompts", [(), ("a",), ("[img] a", "[img][img]")])
def test_prompts_without_one_picture_are_refused(prompts):
    model = Seer(lambda parts, name: 0.0)
    with pytest.raises(UserError, match=r"templates with one \[img\] each"):
        score_texts(model, model.embed_image([paint(10)]), [" x"], prompts=prompts)
