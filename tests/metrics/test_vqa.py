"""VQA accuracy against the official evaluation script.

The expected values were recorded by running vqaEval.py of GT-Vision-Lab/VQA under Python 3 (its three print statements
made calls), with `answer_id` numbering the references, n = 10 decimals. Normalised answers are its processPunctuation
followed by its processDigitArticle, after newline and tab became spaces and the ends were stripped.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.errors import UserError
from frozen_jax.metrics.vqa import normalise_answer, summarise_accuracy, vqa_accuracy

NORMALISED = [
    ("The two-piece, 3.5 u.s.a. dont", "2 piece 3.5 usa don't"),
    # Case, articles, numbers.
    ("Yes", "yes"),
    ("The cat", "cat"),
    ("an  apple", "apple"),
    ("Two dogs", "2 dogs"),
    ("NONE", "0"),
    ("zero", "0"),
    ("ten men", "10 men"),
    ("twenty", "twenty"),
    ("", ""),
    ("the", ""),
    ("É Ü", "é ü"),
    ("İ", "i\u0307"),
    ("\ttab\nline ", "tab line"),
    # Contractions.
    ("Dont.", "don't"),
    ("somebody'd", "somebodyd"),
    ("Im", "im"),
    ("ow's'at", "'ow's'at"),
    ("yall'd've", "y'all'd've"),
    ("cant've", "cant've"),
    # Marks: deleted next to a space, else a space.
    ("t-shirt", "t shirt"),
    ("black - white", "black white"),
    ("red, white", "red white"),
    ("red,white", "red white"),
    ("one-two", "1 2"),
    ("a_b", "b"),
    ("a, an; the!", ""),
    ("[a] {b}", "b"),
    ("c++", "c"),
    ('say "hi"', "say hi"),
    ("back\\slash", "back slash"),
    ("me@home", "me home"),
    ("what?!", "what"),
    ("it's 5:30", "it's 5:30"),
    ("50% cat&dog", "50% cat&dog"),
    # Digit, comma, digit: every mark is deleted.
    ("1,000", "1000"),
    ("1,000-year-old", "1000yearold"),
    ("1, 2", "1 2"),
    ("$1,5!", "$15"),
    ("٣,٤ a-b", "٣٤ ab"),
    # Periods: none but before a digit, at most 32.
    ("3.5.", "3.5"),
    ("u.s.a.", "usa"),
    ("p.m.5", "pm.5"),
    (".5", ".5"),
    ("...", ""),
    ("." * 40, "." * 8),
    ("." * 33 + "x", ".x"),
]

ACCURACIES = [
    # Ten equal references: nothing is normalised but outer white space, newlines and tabs.
    ("yes", ["yes"] * 10, 1.0),
    ("Yes", ["yes"] * 10, 0.0),
    ("yes.", ["yes"] * 10, 0.0),
    (" blue\n", ["blue"] * 10, 1.0),
    ("blue\tsky", ["blue sky"] * 10, 1.0),
    ("yes", ["Yes ", "Yes"] * 5, 0.0),
    # One that differs: both sides are.
    ("Yes", ["yes"] * 9 + ["no"], 1.0),
    ("yes.", ["Yes"] * 9 + ["no"], 1.0),
    ("yes", ["Yes"] * 5 + ["YES"] * 5, 1.0),
    ("red", ["blue"] * 10, 0.0),
    ("red", ["red"] * 1 + ["blue"] * 9, 0.3),
    ("red", ["red"] * 2 + ["blue"] * 8, 0.6),
    ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
    ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
    ("the red", ["red"] * 3 + ["a red"] + ["blue"] * 6, 1.0),
    ("2", ["two"] * 2 + ["2"] + ["3"] * 7, 0.9),
    ("t shirt", ["t-shirt"] * 2 + ["t shirt"] + ["shirt"] * 7, 0.9),
    ("", ["the"] * 2 + ["a"] + ["no"] * 7, 0.9),
    ("dont know", ["don't know"] * 3 + ["dont know"] * 3 + ["no"] * 4, 1.0),
    # Ties.
    ("red", ["red", "blue"] * 5, 1.0),
    ("blue", ["red", "blue"] * 5, 1.0),
    ("b", list("bcdefghijk"), 0.3),
    # Other counts.
    ("x", ["x", "y", "y"], 2 / 9),
    ("x", ["x", "x", "y"], 4 / 9),
    ("y", ["x", "y"], 1 / 6),
]

ANSWERS = st.text(alphabet="abAB 12.,-'", max_size=5)


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalise_answer_equals_the_official_script(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(("prediction", "answers", "expected"), ACCURACIES)
def test_vqa_accuracy_equals_the_official_script(prediction: str, answers: list[str], expected: float) -> None:
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-9)


def test_a_single_reference_is_compared_after_normalisation() -> None:
    assert vqa_accuracy("The Circle.", ["circle"]) == 1.0
    assert vqa_accuracy("two", ["2"]) == 1.0
    assert vqa_accuracy("square", ["circle"]) == 0.0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 999), st.integers(0, 999))
def test_a_thousands_comma_never_matters(high: int, low: int) -> None:
    assert normalise_answer(f"{high},{low:03d} cows") == f"{high}{low:03d} cows"


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_normalising_twice_changes_nothing_but_the_periods_beyond_32(text: str) -> None:
    once = normalise_answer(text)
    if text.count(".") <= 32:
        assert normalise_answer(once) == once


@settings(deadline=None, max_examples=40)
@given(ANSWERS, st.lists(ANSWERS, min_size=10, max_size=10), st.randoms(use_true_random=False))
def test_accuracy_takes_five_values_and_ignores_the_order_of_references(prediction, answers, random) -> None:
    accuracy = vqa_accuracy(prediction, answers)
    assert min(abs(accuracy - value) for value in (0, 0.3, 0.6, 0.9, 1)) < 1e-9
    shuffled = random.sample(answers, len(answers))
    assert vqa_accuracy(prediction, shuffled) == pytest.approx(accuracy)


@settings(deadline=None, max_examples=40)
@given(ANSWERS, st.integers(0, 10))
def test_accuracy_counts_matches_of_ten(answer: str, matches: int) -> None:
    answers = [f"{answer} indeed"] * matches + [f"{answer} not"] * (10 - matches)
    expected = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9}.get(matches, 1.0)
    assert vqa_accuracy(f"{answer} indeed", answers) == pytest.approx(expected)


@pytest.mark.parametrize("answers", [[], "yes"])
def test_references_must_be_a_list_of_some(answers) -> None:
    with pytest.raises(UserError, match="reference"):
        vqa_accuracy("yes", answers)


def test_summary_averages_overall_and_by_type_in_percent() -> None:
    summary = summarise_accuracy([1.0, 0.3, 0.0, 1.0], ["yes/no", "number", "number", "other"])
    assert summary == {"overall": 57.5, "number": 15.0, "other": 100.0, "yes/no": 100.0}
    assert next(iter(summary)) == "overall"
    assert summarise_accuracy([1.0, 0.0, 0.0], ["other"] * 3)["overall"] == 33.33


@pytest.mark.parametrize("types", [[], ["other", "other"], ["overall"]])
def test_summary_needs_one_type_per_question(types: list[str]) -> None:
    with pytest.raises(UserError, match="type"):
        summarise_accuracy([0.5], types)
