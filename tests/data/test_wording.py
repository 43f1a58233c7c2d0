import numpy as np
import pytest

from frozen_jax.data.records import Question, Record
from frozen_jax.data.text import Text
from frozen_jax.data.wording import word_rows
from frozen_jax.data_settings import DataSettings

PICTURE = np.zeros((2, 2, 3), np.uint8)
ASKED = (Question("what color?", ("red",)),)


def word(record, seed=0, **settings):
    return word_rows(DataSettings(caption_format=" {caption}", **settings))(record, np.random.default_rng(seed))


def test_rows_as_drawn():
    question = " a red circleQuestion: what color? Answer:"
    assert word(Record("a", PICTURE, (), ASKED), question_fraction=1.0) == Text(" red", question[13:])
    assert word(Record("a", PICTURE, ("it is red",))) == Text(" it is red", "")
    assert word(Record("a", PICTURE, ("red",)), caption_prompt=" This is") == Text(" red", " This is")
    assert word(Record("a", None, ("a red circle",), ASKED), question_fraction=1.0) == Text(" red", question)
    assert word(Record("a", None, ("a red circle",))) == Text(" a red circle", " a red circle")


def test_several_captions_are_different_and_joined():
    captions = ("one", "two", "three")
    texts = {word(Record("a", PICTURE, captions), seed, captions_per_example=2).target for seed in range(60)}
    singles = {f" {caption}" for caption in captions}
    pairs = {f" {a}. {b}" for a in captions for b in captions if a != b}
    assert texts == singles | pairs


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_questions_come_in_their_share(fraction):
    record = Record("a", PICTURE, ("it is red",), ASKED)
    asked = [bool(word(record, seed, question_fraction=fraction).prompt) for seed in range(400)]
    assert abs(np.mean(asked) - fraction) < 0.08


def test_a_dialogue_asks_up_to_so_many_different_questions():
    """Answers carry loss, the last as the target; what is shown in words stands before the first question alone."""
    asked = tuple(Question(f"q{number}?", (f"a{number}",)) for number in range(5))
    settings = DataSettings(question_fraction=1.0)
    lengths = set()
    for seed in range(60):
        record = Record("a", None, ("a red circle",), asked)
        text = word_rows(settings, turns=3)(record, np.random.default_rng(seed))
        told = [*text.turns, (text.prompt, text.target)]
        assert told[0][0].startswith("a red circleQuestion: q") and sum("circle" in given for given, _ in told) == 1
        numbers = [answer.removeprefix(" a") for _, answer in told]
        assert all(given.endswith(f"Question: q{n}? Answer:") for (given, _), n in zip(told, numbers, strict=True))
        assert len(set(numbers)) == len(told)
        lengths.add(len(told))
    assert lengths == {1, 2, 3}
    assert not word_rows(settings, turns=3)(Record("a", PICTURE, (), ASKED), np.random.default_rng(0)).turns


def test_questions_without_an_answer_are_not_asked():
    """As in a hidden test set, or a line of a table that lacks its answer."""
    hidden = Question("hidden?", ())
    for seed in range(20):
        for turns in (1, 3):
            asked = word_rows(DataSettings(question_fraction=1.0), turns=turns)
            text = asked(Record("a", PICTURE, ("it is red",), (hidden, *ASKED)), np.random.default_rng(seed))
            assert (text.prompt, text.target, text.turns) == ("Question: what color? Answer:", " red", ())
    assert word(Record("a", PICTURE, ("it is red",), (hidden,)), question_fraction=1.0) == Text(" it is red", "")


def test_a_record_without_words_has_no_text():
    assert word(Record("a", PICTURE)) is None
    assert word(Record("a", None, (), ASKED), question_fraction=1.0) == Text(" red", "Question: what color? Answer:")
