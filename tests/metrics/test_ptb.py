"""The caption tokenizer against the Java one; how its values were recorded is told in test_captions.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.metrics.ptb import tokenize_caption
from tests.metrics.test_captions import RECORDED

TEXTS = [
    (case["name"], text, tokens)
    for case in RECORDED["cases"]
    for text, tokens in zip([case["prediction"], *case["references"]], case["tokens"], strict=True)
]

# Recorded from the same tokenizer, one caption at a time: what the corners of the rules turn on.
CORNERS = [
    ("It's a man's t-shirt (blue), isn't it?", "it 's a man 's t-shirt -lrb- blue -rrb- is n't it"),
    ("cannot cannots gotta-x gonna's", "can not cannots gotta-x gonna 's"),
    ("d'or o'er y'all s'more s'mores you'all", "d'or o'er y' all s more s'mores you'all"),
    ("It’s O’Neil, don’t", "it 's o’neil do n't"),
    ("inc. x vs. y no. 5 no. x fig. 2 ill. x", "inc. x vs. y no. 5 no x fig. 2 ill x"),
    ("plan b. The man; plan b. a man", "plan b the man plan b. a man"),
    ("U.S.-based 3.5-inch 10.5-11.5 v1.0", "u.s.-based 3.5-inch 10.5-11 .5 v1 .0"),
    ("a/b/c/d 1/2/3 a.b/c", "a/b/c / d 1/2/3 a.b / c"),
    ("a\u00a0b\u00adc 日本語 e\u0301", "a bc 日本語 e\u0301"),
    ("it is red., and", "it is red. and"),
    ("US$5 5¢ ½", "us$ 5 5 cents 1/2"),
    ("'90s '11 x '505 5'10\"", "'90s '11 x 505 5 10"),
    ("A&B a&b M+N AT&amp;T", "a&b a & b m+n at&t"),
    ("me@example.org, @me #tag #1", "me@example.org, @me #tag # 1"),
]


@pytest.mark.parametrize(("text", "tokens"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_tokens_equal_the_recorded_ones(text: str, tokens: str) -> None:
    assert " ".join(tokenize_caption(text)) == tokens


@pytest.mark.parametrize(("text", "tokens"), CORNERS)
def test_corners_equal_the_recorded_ones(text: str, tokens: str) -> None:
    assert " ".join(tokenize_caption(text)) == tokens


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_any_text_gives_lower_case_tokens_without_spaces(text: str) -> None:
    for token in tokenize_caption(text):
        assert token.split() == [token]
        assert token == token.lower()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.from_regex(r"[a-z]{3,8}", fullmatch=True), max_size=8))
def test_plain_words_come_back_whatever_surrounds_them(words: list[str]) -> None:
    words = [word for word in words if word not in {"cannot", "gonna", "wanna", "gotta", "gimme", "lemme"}]
    expected = tuple(words)
    assert tokenize_caption(" ".join(words)) == expected
    assert tokenize_caption("  ".join(word.upper() for word in words)) == expected
    assert tokenize_caption(" 🐶 , ".join(words) + " !") == expected
