"""Caption metrics over a set of captions: BLEU 1-4, ROUGE-L, CIDEr-D, and exact match.

Here: the scores, in pure Python, equal to those of pycocoevalcap 1.2. Not here: tokenization (ptb.py, the step before),
METEOR and SPICE (they need Java and downloads). Data flow: decoded captions and references by id come in, numbers go
out to the report of the evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from frozen_jax.errors import UserError
from frozen_jax.metrics.ptb import tokenize_caption

_MAX_ORDER = 4
# pycocoevalcap adds these to counts and lengths so that nothing divides by zero; they show where a count is 0.
_BLEU_TINY = 1e-15
_BLEU_SMALL = 1e-9
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0

_Ngram = tuple[str, ...]


def bleu(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> list[float]:
    """Scores captions by n-gram precision over the whole set, with the closest reference length.

    Args:
        predictions: one caption for each id, untokenized.
        references: at least one reference caption for each id, untokenized.

    Returns:
        BLEU-1, BLEU-2, BLEU-3, BLEU-4, each in [0, 1].

    Raises:
        UserError: the ids differ, or an id has no reference.

    Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation"; as in pycocoevalcap.
    """
    matches, guesses = [0] * _MAX_ORDER, [0] * _MAX_ORDER
    predicted_tokens = reference_tokens = 0
    for tokens, candidates in _tokenize(predictions, references):
        predicted_tokens += len(tokens)
        # The closest length counts; of two equally close ones the shorter.
        reference_tokens += min((abs(len(other) - len(tokens)), len(other)) for other in candidates)[1]
        for order in range(_MAX_ORDER):
            most = Counter[_Ngram]()
            for other in candidates:
                most |= _count_ngrams(other, order + 1)
            matches[order] += (_count_ngrams(tokens, order + 1) & most).total()
            guesses[order] += max(0, len(tokens) - order)
    ratio = (predicted_tokens + _BLEU_TINY) / (reference_tokens + _BLEU_SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores = []
    product = 1.0
    for order in range(_MAX_ORDER):
        product *= (matches[order] + _BLEU_TINY) / (guesses[order] + _BLEU_SMALL)
        scores.append(brevity * product ** (1 / (order + 1)))
    return scores


def rouge_l(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> float:
    """Scores captions by their longest common subsequence with a reference, averaged over the set.

    Precision and recall are each the best over the references and join with beta = 1.2. An empty caption counts as one
    empty word, as in pycocoevalcap: it scores 1 against an empty reference and 0 against any other.

    Args:
        predictions: one caption for each id, untokenized.
        references: at least one reference caption for each id, untokenized.

    Returns:
        The mean score in [0, 1].

    Raises:
        UserError: the ids differ, or an id has no reference.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries"; as in pycocoevalcap.
    """
    scores = []
    for tokens, candidates in _tokenize(predictions, references):
        words = tokens or ("",)
        others = [other or ("",) for other in candidates]
        common = [_measure_common_subsequence(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(length / len(other) for length, other in zip(common, others, strict=True))
        weight = _ROUGE_BETA**2
        scores.append(
            (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0
        )
    return math.fsum(scores) / len(scores)


def cider_d(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> float:
    """Scores captions by consensus with their references: clipped tf-idf cosine over n-grams, averaged over the set.

    What pycocoevalcap prints as "CIDEr". Document frequencies come from the references of this very set, so scores of
    sets of different size or content do not compare, and a set of one image scores 0. Captions whose lengths differ
    are discounted by a Gaussian of sigma 6 words.

    Args:
        predictions: one caption for each id, untokenized.
        references: at least one reference caption for each id, untokenized.

    Returns:
        The mean score, 0 to 10; tables usually print it times 100.

    Raises:
        UserError: the ids differ, or an id has no reference.

    Source: Vedantam et al., "CIDEr: consensus-based image description evaluation"; as in pycocoevalcap.
    """
    pairs = _tokenize(predictions, references)
    frequency = Counter[_Ngram]()
    for _, candidates in pairs:
        frequency.update({ngram for other in candidates for ngram in _count_all_ngrams(other)})
    # An n-gram that no reference has is as rare as one that a single image has.
    rarity = {ngram: math.log(len(pairs)) - math.log(count) for ngram, count in frequency.items()}
    scores = []
    for tokens, candidates in pairs:
        weights = _weigh_ngrams(tokens, rarity, images=len(pairs))
        similarity = 0.0
        for other in candidates:
            penalty = math.exp(-((len(tokens) - len(other)) ** 2) / (2 * _CIDER_SIGMA**2))
            similarity += penalty * _sum_cosines(weights, _weigh_ngrams(other, rarity, images=len(pairs)))
        scores.append(10 * similarity / _MAX_ORDER / len(candidates))
    return math.fsum(scores) / len(scores)


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Tells whether a caption equals one of its references but for outer white space, case and a final period.

    Args:
        prediction: the generated text, cut at its stop mark.
        references: the texts that count as right, at least one.

    Raises:
        UserError: `references` is empty or a bare string.
    """
    _check_references(references, name="exact_match")
    return _strip_sentence(prediction) in {_strip_sentence(reference) for reference in references}


def _strip_sentence(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()


def _check_references(references: Sequence[str], *, name: Hashable) -> None:
    if isinstance(references, str) or not references:
        raise UserError(
            f"references of {name!r} are {references!r}: a caption is compared with a list of at least one reference;"
            " pass [caption] for a single one"
        )


def _tokenize(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> list[tuple[_Ngram, list[_Ngram]]]:
    """Pairs each prediction's tokens with its references' tokens, in the order of `references`."""
    missing, unknown = references.keys() - predictions.keys(), predictions.keys() - references.keys()
    if missing or unknown or not references:
        raise UserError(
            f"{len(predictions)} captions for {len(references)} ids with references, {len(missing)} without a caption"
            f" {_show(missing)}, {len(unknown)} without references {_show(unknown)}: every id is scored exactly once;"
            " pass the same ids, at least one, on both sides"
        )
    for name, captions in references.items():
        _check_references(captions, name=name)
    return [
        (tokenize_caption(predictions[name]), [tokenize_caption(caption) for caption in captions])
        for name, captions in references.items()
    ]


def _show(names: Iterable[Hashable]) -> str:
    return str(sorted(map(str, names))[:3])


def _count_ngrams(tokens: _Ngram, order: int) -> Counter[_Ngram]:
    return Counter(tokens[start : start + order] for start in range(len(tokens) - order + 1))


def _count_all_ngrams(tokens: _Ngram) -> Counter[_Ngram]:
    counts = Counter[_Ngram]()
    for order in range(1, _MAX_ORDER + 1):
        counts.update(_count_ngrams(tokens, order))
    return counts


def _weigh_ngrams(tokens: _Ngram, rarity: Mapping[_Ngram, float], *, images: int) -> list[dict[_Ngram, float]]:
    """Gives term frequency times inverse document frequency, one table for each n-gram length."""
    rarest = math.log(images)
    return [
        {ngram: count * rarity.get(ngram, rarest) for ngram, count in _count_ngrams(tokens, order).items()}
        for order in range(1, _MAX_ORDER + 1)
    ]


def _sum_cosines(predicted: list[dict[_Ngram, float]], reference: list[dict[_Ngram, float]]) -> float:
    """Sums over n-gram lengths the cosine in which a prediction's weight is clipped to the reference's."""
    total = 0.0
    for ours, theirs in zip(predicted, reference, strict=True):
        norm = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        shared = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in ours.items() if ngram in theirs)
        total += shared / norm if norm else 0.0
    return total


def _measure_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            diagonal, row[column] = row[column], diagonal + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]
