"""Cleaning of captions: each step by example, idempotent on anything, and what cannot be used has a reason."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.data.cleaning import (
    CleanedSource,
    CleanOptions,
    clean_captions,
    clean_source,
    clean_text,
    without_repeats,
)
from frozen_jax.data.records import MemorySource, Question, Record, RecordError
from frozen_jax.errors import UserError


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tred \n\n bus\u00a0here ", "a red bus here"),
        ("Tom &amp; Jerry &lt;3 &#39;x&#39;", "Tom & Jerry <3 'x'"),
        ("rock &amp;amp; roll", "rock & roll"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x1bc\u200bd\ufeff", "abcd"),
        ("co\u00adoperate \u202eabc", "cooperate abc"),
        ("", ""),
        (" \x07 \u200b ", ""),
        ("日本の 猫 🐈", "日本の 猫 🐈"),
        ("👩‍🚀 می‌خواهم", "👩‍🚀 می‌خواهم"),
    ],
)
def test_defaults(raw, clean):
    assert clean_text(raw) == clean


def test_options():
    assert clean_text("ﬁne Ａ", CleanOptions(normal_form="NFKC")) == "fine A"
    assert clean_text("‘It’s’ “so” – …", CleanOptions(plain_quotes=True)) == "'It's' \"so\" - ..."
    assert clean_text("A Bus", CleanOptions(lower_case=True)) == "a bus"
    assert clean_text("a &amp; b", CleanOptions(entities=False)) == "a &amp; b"
    for bad in ({"normal_form": "NFD"}, {"min_characters": 0}, {"min_characters": 9, "max_characters": 8}):
        with pytest.raises(UserError, match=next(iter(bad))):
            CleanOptions(**bad)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_becomes_one_clean_line(text):
    options = CleanOptions(entities=False)
    clean = clean_text(text, options)
    assert clean == clean_text(clean, options) == unicodedata.normalize("NFC", clean)
    assert "\n" not in clean and "  " not in clean and clean == clean.strip()
    assert all(unicodedata.category(c) != "Cc" for c in clean)


def test_captions_of_a_record():
    options = CleanOptions(min_characters=2, max_characters=20)
    assert clean_captions(["a  bus", "a bus", "x", "y" * 30, "a car"], options, name="r") == ("a bus", "a car")
    unusable = {"empty caption": [" ", "y" * 30], "huge caption": ["y" * 30], "not UTF-8": ["a\ufffd"]}
    for reason, captions in unusable.items():
        with pytest.raises(RecordError, match="record r") as caught:
            clean_captions(captions, options, name="r")
        assert caught.value.reason == reason and len(str(caught.value)) < 200


def test_a_cleaned_source():
    rows = [Record("a", None, ("x &amp; y",)), Record("b", None), Record("c", None, ("",))]
    source = CleanedSource(MemorySource(rows), CleanOptions())
    assert source.record(0).captions == ("x & y",) and source.record(1).captions == () and len(source) == 3
    with pytest.raises(RecordError, match="record c"):
        source.record(2)


def test_repeats():
    rows = [("a", "b"), ("c",), ("B", "a"), (), ("c", "d"), (), ("C",)]
    source = MemorySource([Record(str(i), None, captions) for i, captions in enumerate(rows)])
    assert without_repeats(source).ids() == ["0", "1", "3", "4", "5"]
    assert clean_source(source, CleanOptions(drop_repeats=True)).ids() == ["0", "1", "3", "4", "5"]
    assert len(clean_source(source, CleanOptions())) == 7


def test_questions_are_cleaned_and_answers_are_not():
    row = Record("a", None, (), (Question("what &amp;  why?", ("x &amp; y",)),))
    question = clean_source(MemorySource([row]), CleanOptions()).record(0).questions[0]
    assert (question.text, question.answers) == ("what & why?", ("x &amp; y",))
