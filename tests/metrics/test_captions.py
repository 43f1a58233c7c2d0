"""Caption metrics against pycocoevalcap 1.2.

pycocoevalcap.json holds captions written for this test, the tokens that pycocoevalcap made of them (prediction first,
then references), its scores of each case alone, and of three sets of cases. It was made with pycocoevalcap 1.2
(`pip install --no-deps pycocoevalcap==1.2 numpy`), Java 17 and a UTF-8 locale by running, from this folder,
`python record.py < pycocoevalcap.json > new.json` with record.py being

    import json, sys
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    cases = json.load(sys.stdin)["cases"]
    tokenize = PTBTokenizer().tokenize
    references = tokenize({c["name"]: [{"caption": r} for r in c["references"]] for c in cases})
    predictions = tokenize({c["name"]: [{"caption": c["prediction"]}] for c in cases})

    def score(names):
        pair = {n: references[n] for n in names}, {n: predictions[n] for n in names}
        scores = [Bleu(4).compute_score(*pair, verbose=0), *(s().compute_score(*pair) for s in (Rouge, Cider))]
        (bleu, _), (rouge, _), (cider, _) = scores
        return {"bleu": [float(x) for x in bleu], "rouge_l": float(rouge), "cider_d": float(cider)}

    for c in cases:
        c["tokens"] = predictions[c["name"]] + references[c["name"]]
        c["alone"] = score([c["name"]])
    names = [c["name"] for c in cases]
    sets = {"all": score(names), "even": score(names[::2]), "odd": score(names[1::2])}
    json.dump({"sets": sets, "cases": cases}, sys.stdout, ensure_ascii=False, indent=1)

To add cases, append {"name", "prediction", "references"} to "cases" and run it again.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.errors import UserError
from frozen_jax.metrics.captions import bleu, cider_d, exact_match, rouge_l

RECORDED = json.loads((Path(__file__).parent / "pycocoevalcap.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in RECORDED["cases"]}
SETS = {"all": list(CASES), "even": list(CASES)[::2], "odd": list(CASES)[1::2]}

WORDS = ("a", "dog", "cat", "runs", "sits", "on", "the", "red", "mat", "isn't")
CAPTIONS = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
REFERENCES = st.dictionaries(st.integers(0, 9), st.lists(CAPTIONS, min_size=1, max_size=4), min_size=1, max_size=4)


def pair(names: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    return {name: CASES[name]["prediction"] for name in names}, {name: CASES[name]["references"] for name in names}


@pytest.mark.parametrize("name", SETS)
def test_scores_of_a_set_equal_pycocoevalcap(name: str) -> None:
    expected = RECORDED["sets"][name]
    assert bleu(*pair(SETS[name])) == pytest.approx(expected["bleu"], rel=1e-12)
    assert rouge_l(*pair(SETS[name])) == pytest.approx(expected["rouge_l"], rel=1e-12)
    assert cider_d(*pair(SETS[name])) == pytest.approx(expected["cider_d"], rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_scores_of_one_caption_equal_pycocoevalcap(name: str) -> None:
    expected = CASES[name]["alone"]
    assert bleu(*pair([name])) == pytest.approx(expected["bleu"], rel=1e-12)
    assert rouge_l(*pair([name])) == pytest.approx(expected["rouge_l"], rel=1e-12)
    assert cider_d(*pair([name])) == expected["cider_d"] == 0


def test_the_recorded_cases_are_varied_enough() -> None:
    assert len(CASES) >= 30
    assert all(len(case["references"]) >= 5 for case in CASES.values())
    assert len({round(case["alone"]["rouge_l"], 6) for case in CASES.values()}) > 15


def test_bleu_by_hand() -> None:
    # "the the the" matches "the" twice at most (clipped); 3 words against the closest length 4: brevity e^(1 - 4/3).
    scores = bleu({0: "the the the"}, {0: ["the cat the mat", "a very long caption about one cat"]})
    assert scores[0] == pytest.approx(2 / 3 * 2.718281828459045 ** (-1 / 3), rel=1e-6)
    assert scores[1] < 1e-4


def test_rouge_by_hand() -> None:
    # Common subsequence "a b" of 3 predicted and 4 reference words.
    precision, recall, weight = 2 / 3, 2 / 4, 1.44
    expected = (1 + weight) * precision * recall / (recall + weight * precision)
    assert rouge_l({0: "aa xx bb"}, {0: ["aa bb cc dd"]}) == pytest.approx(expected)


def test_cider_by_hand() -> None:
    # Every n-gram belongs to one of two images: cosines are 1 for n = 1, 2 and there are no longer n-grams.
    predictions, references = {0: "red dog", 1: "blue cat"}, {0: ["red dog"], 1: ["green bird"]}
    assert cider_d(predictions, references) == pytest.approx((10 * 2 / 4 + 0) / 2)


@settings(deadline=None, max_examples=30)
@given(REFERENCES)
def test_predicting_a_reference_is_at_least_as_good_as_predicting_nothing(references) -> None:
    copied = {name: max(captions, key=len) for name, captions in references.items()}
    nothing = dict.fromkeys(references, "")
    for metric in (lambda *sides: bleu(*sides)[0], cider_d, rouge_l):
        assert metric(copied, references) >= metric(nothing, references) - 1e-9


@settings(deadline=None, max_examples=30)
@given(REFERENCES, st.data())
def test_scores_keep_their_range_and_ignore_order_and_surface(references, data) -> None:
    predictions = {name: data.draw(CAPTIONS) for name in references}
    reordered = {name: references[name][::-1] for name in reversed(references)}
    shouted = {name: f" {caption.upper()} ! " for name, caption in predictions.items()}
    for metric, top in ((lambda *sides: bleu(*sides)[3], 1), (rouge_l, 1), (cider_d, 10)):
        score = metric(predictions, references)
        assert 0 <= score <= top + 1e-9
        assert metric(shouted, reordered) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider_d])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "1 without a caption ['b']"),
        ({"a": "x", "c": "z"}, {"a": ["x"]}, "1 without references ['c']"),
        ({"a": "x"}, {"a": []}, "at least one reference"),
        ({"a": "x"}, {"a": "xyz"}, "list of at least one reference"),
    ],
)
def test_both_sides_need_the_same_ids_and_lists_of_references(metric, predictions, references, message: str) -> None:
    with pytest.raises(UserError) as caught:
        metric(predictions, references)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("prediction", "references", "equal"),
    [
        ("A dog.", ["a dog"], True),
        (" a dog \n", ["cat", "A DOG ."], True),
        ("a dog..", ["a dog"], False),
        ("a dog!", ["a dog"], False),
        ("dog", ["a dog"], False),
        ("", ["."], True),
    ],
)
def test_exact_match_forgives_case_outer_space_and_one_final_period(prediction, references, equal: bool) -> None:
    assert exact_match(prediction, references) is equal


@pytest.mark.parametrize("references", [[], "a dog"])
def test_exact_match_needs_a_list(references) -> None:
    with pytest.raises(UserError, match="at least one reference"):
        exact_match("a dog", references)
