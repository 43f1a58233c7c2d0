"""Binding texts: what they say is true, and they are laid out as the few-shot prompts are."""

import collections
import itertools
import re

import numpy as np
import pytest

from frozen_jax.config import DataSettings
from frozen_jax.data.binding import COLOURS, NAMES, PAPER_NAMES, QUERY, SHAPES, BindingTexts, write_episode
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.sources import open_source
from frozen_jax.data.text import RowLayout
from frozen_jax.data.wording import word_rows
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import FewShotSettings
from frozen_jax.tasks.episodes import Episode
from frozen_jax.tasks.fewshot import describe_pictures, make_prompt
from frozen_jax.tools.make_episodes import QUESTION

PRESENTATION = re.compile(r" (\w+ \w+) This is a (\w+)\.")


def text_of(turns):
    return "".join(given + predicted for given, predicted in turns)


def test_a_record_is_a_pure_function_of_seed_and_number():
    one, other = BindingTexts(100, seed=1), BindingTexts(100, seed=1)
    assert [one.record(i) for i in range(30)] == [other.record(29 - i) for i in range(30)][::-1]
    assert one.record(3) != BindingTexts(100, seed=2).record(3)
    assert one.record(3).image is None and one.ids()[3] == one.record(3).id == "binding/3"


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize(("ways", "shots", "repeats"), [(2, 1, 0), (2, 3, 1), (5, 1, 0), (5, 5, 3), (3, 2, 2)])
def test_an_episode_is_laid_out_as_a_few_shot_prompt(ways, shots, repeats, induced):
    rng = np.random.default_rng(0)
    things = list(zip(COLOURS, itertools.cycle(SHAPES)))[:ways]
    text = text_of(write_episode(things, rng, shots=shots, repeats=repeats, questions=1, induced=induced))
    support = PRESENTATION.findall(text.removeprefix(text.split(".")[0] + ".") if induced else text)
    assert len(support) == ways * shots * (1 + repeats)
    asked = re.search(rf" (\w+ \w+) {re.escape(QUERY)} (\w+)$", text)
    shown = support[: ways * shots]
    episode = Episode(
        images=(b"",) * len(shown),
        captions=tuple(f"This is a {name}." for _, name in shown),
        question=QUESTION,
        question_image=b"",
        answer=asked[2],
        descriptions=(*(words for words, _ in shown), asked[1]),
    )
    prompt = make_prompt(episode, FewShotSettings(), first_row=0, repeats=repeats, induced=induced)
    (described,) = describe_pictures([prompt], [episode], " {caption}")
    assert "".join(described) + f" {episode.answer}" == text
    assert len({name for _, name in shown}) == ways and len({frozenset(words.split()) for words, _ in shown}) == ways


def test_every_name_with_loss_follows_from_the_text_before_it():
    kinds = collections.Counter()
    source = BindingTexts(300, seed=3)
    for index in range(300):
        turns = source.record(index).turns
        if turns[0][1].strip() not in NAMES:
            kinds["caption" if len(turns) == 1 else "descriptions"] += 1
            for given, predicted in turns:
                adjective, noun = re.match(r"\.? (\w+) (\w+)", given).groups()
                assert {adjective, noun} <= set(re.findall(r"\w+", predicted))
            continue
        kinds["episode"] += 1
        before = ""
        for given, predicted in turns:
            before += given
            known = {frozenset(words.split()): name for words, name in PRESENTATION.findall(before)}
            (shown,) = re.findall(r"(\w+ \w+) (?:Q: What is this\? A: )?This is a$", before)
            assert known[frozenset(shown.split())] == predicted.strip() in NAMES
            before += predicted
    assert kinds["episode"] > 170 and kinds["descriptions"] > 50 and kinds["caption"] > 15


def test_names_mean_nothing():
    """Whatever a name is given to in one text says nothing about the next."""
    given = {}
    for index in range(2000):
        text = text_of(BindingTexts(2000, seed=1).record(index).turns)
        for words, name in PRESENTATION.findall(text):
            given.setdefault(name, set()).add(words)
    assert set(given) == set(NAMES) and set(PAPER_NAMES) < set(NAMES)
    assert {len(words) for words in given.values()} == {len(COLOURS) * len(SHAPES)}


def test_loss_lies_on_the_names_alone():
    turns = (("red cup This is a dax. red cup This is a", " dax"), (". red cup Q: What is this? A: This is a", " dax"))
    words = sorted({word for turn in turns for part in turn for word in re.findall(r"\w+|\W+?", part)})
    source = BindingTexts(1, seed=0)
    source.record = lambda index: open_source("fake:1").record(0)._replace(image=None, turns=turns)
    pipeline = Pipeline(
        source,
        text=word_rows(DataSettings()),
        encode=lambda text: [words.index(word) for word in re.findall(r"\w+|\W+?", text)],
        layout=RowLayout(max_tokens=64, prefix_length=0, bos_id=None, eos_id=len(words)),
        options=PipelineOptions(batch_size=1),
    )
    batch = next(iter(pipeline.evaluation_batches()))
    learned = [([*words, "<eos>"])[token] for token in batch.tokens[0][batch.loss_mask[0] > 0]]
    assert learned == [" ", "dax", " ", "dax", "<eos>"]


def test_the_source_by_its_line():
    made = BindingTexts(8, seed=4, presentations=9, other_things=0.5)
    assert open_source("binding_text:4?presentations=9&other_things=0.5").record(7) == made.record(7)
    for line, message in (
        ("4?presentations=3", "4 presentations or more"),
        ("4?other_things=2", "a share"),
        ("4?other_things=x", "no number"),
        ("x", "whole number"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"binding_text:{line}")
