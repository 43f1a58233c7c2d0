"""VQA accuracy as the official evaluation counts it: answer normalisation and the ten-answer consensus.

Here: `normalise_answer`, `vqa_accuracy` and the per-type summary, pure Python on strings. Not here: prompts, decoding
and reading of question files (the VQA task), caption metrics (captions.py). Data flow: decoded text, cut at its stop
mark, comes in; a number per question goes out to the report of the evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from frozen_jax.errors import UserError

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
# The official script hands re.UNICODE (32) to `sub` where its count belongs: only the first 32 periods go.
_MAX_PERIODS = 32

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(value) for value, word in enumerate(_NUMBER_WORDS)}}

# Table of the official evaluation: left as written, right as compared. Its entries with a capital I (Im, Ive, ...) are
# left out, as words are lower-case by then; its odd entries (somebody'd -> somebodyd) are kept.
_CONTRACTIONS: dict[str, str] = dict(
    re.findall(
        r"(\S+):(\S+)",
        """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
    didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
    havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't
    itd:it'd itd've:it'd've it'dve:it'd've itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've
    mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
    oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've
    shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
    somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's
    someoned:someone'd someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's
    somethingd:something'd somethingd've:something'd've something'dve:something'd've somethingll:something'll
    thats:that's thered:there'd thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd
    theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't
    wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've
    whens:when's whered:where'd wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've
    wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've
    wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll
    yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've
    youll:you'll youre:you're youve:you've
    """,
    )
)


def normalise_answer(text: str) -> str:
    """Brings an answer to the form in which the official VQA evaluation compares answers.

    Newlines and tabs become spaces. Each of 21 punctuation marks is deleted if it stands next to a space somewhere in
    the text, or if the text holds a digit-comma-digit; else it becomes a space. The first 32 periods that no digit
    follows are deleted. Then lower case, number words up to ten as digits, no articles, apostrophes restored in
    contractions, one space between words. Digits are Unicode digits.

    Example: `"The two-piece, 3.5 u.s.a. dont"` -> `"2 piece 3.5 usa don't"`. The comma stands next to a space and is
    deleted; the hyphen does not and becomes a space, which makes "two" a word of its own.

    Args:
        text: an answer as written or as generated.

    Returns:
        The normalised answer, possibly empty.

    Source: evaluation script of the VQA challenge (GT-Vision-Lab/VQA).
    """
    text = _strip_answer(text)
    # Every mark is judged on the text before any mark is touched.
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    spaces = {}
    for mark in _MARKS:
        if mark in text:
            delete = delete_all or f"{mark} " in text or f" {mark}" in text
            spaces[ord(mark)] = "" if delete else " "
    text = _PERIOD_BEFORE_NO_DIGIT.sub("", text.translate(spaces), count=_MAX_PERIODS)
    numbered = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Scores one predicted answer against the reference answers of its question.

    Several references (ten in VQAv2, OKVQA, VizWiz): the official accuracy. Each reference is left out in turn,
    min(1, matches among the others / 3) is taken, and the mean over all is the score: with ten references one match
    gives 0.3, two 0.6, three 0.9, four or more 1; with fewer than four references 1 is out of reach. If all references
    are equal, neither side is normalised beyond white space, so "Yes" against ten times "yes" scores 0: that is the
    official rule.

    One reference (`len(answers) == 1`, as in easy-VQA, where leaving one out leaves none): 1 if both are equal after
    `normalise_answer`, else 0.

    Args:
        prediction: the generated answer, already cut at its stop mark.
        answers: the reference answers, at least one.

    Returns:
        The accuracy in [0, 1].

    Raises:
        UserError: `answers` is empty or a bare string.

    Source: Agrawal et al., "VQA: Visual Question Answering", and the challenge's evaluation script.
    """
    if isinstance(answers, str) or not answers:
        raise UserError(
            f"answers={answers!r}: a question needs a list of at least one reference answer, as accuracy compares with"
            " those; pass [answer] for a single one"
        )
    if len(answers) == 1:
        return float(normalise_answer(prediction) == normalise_answer(answers[0]))
    prediction, references = _strip_answer(prediction), [_strip_answer(answer) for answer in answers]
    if len(set(references)) > 1:
        prediction, references = normalise_answer(prediction), [normalise_answer(answer) for answer in references]
    matches = references.count(prediction)
    left_out = (min(1.0, (matches - (reference == prediction)) / 3) for reference in references)
    return sum(left_out) / len(references)


def summarise_accuracy(accuracies: Sequence[float], answer_types: Sequence[str]) -> dict[str, float]:
    """Averages accuracies over all questions and over each answer type, as the official report prints them.

    Args:
        accuracies: accuracy of each question, in [0, 1].
        answer_types: answer type of each question in the same order ("yes/no", "number", "other").

    Returns:
        Percent rounded to two decimals: "overall" first, then every type that occurs, sorted by name.

    Raises:
        UserError: no questions, lengths that differ, or a type named "overall".
    """
    if not accuracies or len(accuracies) != len(answer_types) or "overall" in answer_types:
        raise UserError(
            f"{len(accuracies)} accuracies and {len(answer_types)} answer types: a summary needs one type, not named"
            " 'overall', for each of at least one question; pass both lists in question order"
        )
    groups: dict[str, list[float]] = {"overall": list(accuracies)}
    for answer_type in sorted(set(answer_types)):
        groups[answer_type] = [a for a, t in zip(accuracies, answer_types, strict=True) if t == answer_type]
    return {name: round(100 * sum(values) / len(values), 2) for name, values in groups.items()}


def _strip_answer(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
