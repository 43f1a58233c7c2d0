"""How often a frozen encoder's feature names a held-out picture's head noun without a language model.

    PYTHONPATH=. python benchmarks/naming.py --config=configs/stamps_smollm2.py \\
      --train="jsonl:data/fetched/stamps/train.jsonl + jsonl:data/fetched/emoji/train.jsonl" \\
      --names=data/fetched/imagenet_names/names.json

Held out is `data.validation`. Two readings of the pooled feature: the encoder's own classifier, by one guess or five; a
ridge regression from the training pictures' features to the head nouns of their captions. What counts as named is what
counts in the caption task (`metrics/nouns.py`): the noun, a synonym, a direct hypernym. `classifier_or_above` counts
what is up to four levels above the one guess in WordNet, too, "dog" for a beagle: as if one knew how general to be.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from frozen_jax.build import build_towers
from frozen_jax.config_file import read_config
from frozen_jax.data.sources import open_source
from frozen_jax.features import open_features
from frozen_jax.metrics.nouns import WordNet, head_noun, names_noun, read_wordnet
from frozen_jax.pretrained_vision import read_weights
from frozen_jax.tools.class_features import find_classifier

GUESSES = 5

LEVELS = 4
"""Of WordNet's hypernyms."""

RIDGES = (0.03, 0.1, 0.3, 1.0)
"""Penalties relative to the features' mean squared length; all are shown, none is chosen."""


def list_above(name: str, wordnet: WordNet) -> frozenset[str]:
    """Returns the nouns of the synsets up to `LEVELS` above the first sense of a name's head noun."""
    places, found = set(wordnet.senses.get(head_noun(name, wordnet), ())[:1]), set()
    for _ in range(LEVELS):
        places = {upper for place in places for upper in wordnet.hypernyms[place]}
        found |= {noun for place in places for noun in wordnet.words[place]}
    return frozenset(found)


def main() -> None:
    """Parses the command line and prints the shares as JSON, percent."""
    parser = argparse.ArgumentParser(description="What a frozen encoder's features can name.", allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--train", required=True, help="source of captioned pictures")
    parser.add_argument("--names", type=Path, required=True, help="names of the classifier's classes, a JSON list")
    given, rest = parser.parse_known_args()
    config = read_config([f"--config={given.config}", *rest])
    wordnet = read_wordnet(config.evaluate.caption.wordnet)
    classes = json.loads(given.names.read_text("utf-8"))
    towers = build_towers(config)

    def read(line: str) -> tuple[np.ndarray, list[str]]:
        source = open_source(line)
        features, _ = open_features(source, config, towers, name=line).load(np.arange(len(source)))
        heads = [head_noun(source.record(number).captions[0], wordnet) for number in range(len(source))]
        return features.astype(np.float64), heads

    (learnt, nouns), (shown, asked) = read(given.train), read(config.data.validation)
    accepted = [wordnet.accept(noun) for noun in asked]
    weights, biases = find_classifier(read_weights(config.vision.path), classes=len(classes), width=learnt.shape[1])
    best = np.argsort(-(shown @ weights.T + biases), axis=1)[:, :GUESSES]
    hits = np.array(
        [[names_noun(classes[k], ok, wordnet) for k in row] for row, ok in zip(best, accepted, strict=True)]
    )
    figures = {
        "pictures": len(asked),
        "classifier": hits[:, 0].mean(),
        f"classifier_{GUESSES}": hits.any(axis=1).mean(),
        "classifier_or_above": np.mean(
            [
                hit or bool(list_above(classes[row[0]], wordnet) & ok)
                for hit, row, ok in zip(hits[:, 0], best, accepted, strict=True)
            ]
        ),
    }
    known = sorted(set(nouns))
    targets = np.eye(len(known))[[known.index(noun) for noun in nouns]]
    mean, rate = learnt.mean(axis=0), targets.mean(axis=0)
    gram = (learnt - mean) @ (learnt - mean).T
    for ridge in RIDGES:
        solved = np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), targets - rate)
        guessed = ((shown - mean) @ (learnt - mean).T @ solved + rate).argmax(axis=1)
        named = [names_noun(known[noun], ok, wordnet) for noun, ok in zip(guessed, accepted, strict=True)]
        figures[f"ridge_{ridge}"] = np.mean(named)
    figures["head_noun_in_training"] = np.mean([noun in known for noun in asked])
    print(json.dumps({k: v if k == "pictures" else round(100 * float(v), 1) for k, v in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
