"""Binding texts: what they say is true, and they are laid out as the few-shot prompts are."""

import itertools
import re

import numpy as np
import pytest

from frozen_jax.config import DataSettings
from frozen_jax.data import binding
from frozen_jax.data.binding import (
    COLOURS,
    LINKS,
    NAMES,
    PAPER_NAMES,
    QUERY,
    SHAPES,
    BindingTexts,
    count_words,
    write_episode,
)
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.sources import open_source
from frozen_jax.data.text import RowLayout
from frozen_jax.data.wording import word_rows
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import FewShotSettings
from frozen_jax.tasks.episodes import Episode
from frozen_jax.tasks.fewshot import describe_pictures, make_prompt
from frozen_jax.tokenizer import train_bpe
from frozen_jax.tools.make_episodes import QUESTION

THING = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
PRESENTATION = re.compile(r" (\w+ \w+) This is a (\w+)\.")


def text_of(turns):
    return "".join(given + predicted for given, predicted in turns)


def write_alone(kind, monkeypatch, *, count=100, words=62):
    """The turns of records that are all of one kind."""
    monkeypatch.setattr(binding, "KINDS", (kind,) * 5)
    source = BindingTexts(count, seed=3, words=words)
    return [source.record(index).turns for index in range(count)]


def test_a_record_is_a_pure_function_of_seed_and_number():
    one, other = BindingTexts(100, seed=1), BindingTexts(100, seed=1)
    assert [one.record(i) for i in range(30)] == [other.record(29 - i) for i in range(30)][::-1]
    assert one.record(3) != BindingTexts(100, seed=2).record(3)
    assert one.record(3).image is None and one.ids()[3] == one.record(3).id == "binding/3"


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize(("ways", "shots", "repeats"), [(2, 1, 0), (2, 3, 1), (5, 1, 0), (5, 5, 3), (3, 2, 2)])
def test_an_episode_is_laid_out_as_a_few_shot_prompt(ways, shots, repeats, induced):
    things = list(zip(COLOURS, itertools.cycle(SHAPES)))[:ways]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(ways), shots)).tolist() * (1 + repeats)
    asked = [False] * len(order) + [True]
    text = text_of(write_episode(things, PAPER_NAMES, [*order, 1], asked=asked, induced=induced))
    support = PRESENTATION.findall(text.removeprefix(text.split(".")[0] + ".") if induced else text)
    assert len(support) == ways * shots * (1 + repeats)
    asked = re.search(rf" (\w+ \w+) {re.escape(QUERY)} (\w+)\.$", text)
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
    assert "".join(described) + f" {episode.answer}." == text
    assert len({name for _, name in shown}) == ways and len({frozenset(words.split()) for words, _ in shown}) == ways


@pytest.mark.parametrize("kind", ["short", "episode"])
def test_every_name_with_loss_follows_from_the_text_before_it(kind, monkeypatch):
    asked, links = 0, set()
    for turns in write_alone(kind, monkeypatch):
        before, known = "", {}
        for given, predicted in turns:
            before += given
            for thing, link, name in re.findall(rf" ({THING})( This is a| is a| a|) (\w+)\.", before):
                assert known.setdefault(thing, name) == name
                links.add(link)
            thing, question = re.search(rf"({THING})( Q: What is this\? A:)?(?: This is a| is a| a|)$", before).groups()
            asked += bool(question)
            assert f" {known[thing]}." == predicted and known[thing] in NAMES
            before += predicted
        assert len(set(known.values())) == len(known) and turns
    assert links == ({LINKS[-1]} if kind == "episode" else set(LINKS))
    assert (asked > 50) == (kind == "episode")


def test_repeats_say_the_same_words_again(monkeypatch):
    links = set()
    for turns in write_alone("repeats", monkeypatch):
        link = turns[1][0]
        links.add(link)
        words = turns[0][0].removesuffix(link).split(f"{link} ") if link else turns[0][0].split()
        words = [word.strip() for word in words]
        assert len(set(words)) == len(words) >= 3
        assert [predicted.strip() for _, predicted in turns[: len(words)]] == words[: len(turns)]
        assert len(turns) >= len(words) and all(given == link for given, _ in turns[1:])
    assert links == set(LINKS)


@pytest.mark.parametrize("kind", ["caption", "description"])
def test_readings_say_what_stands_before_in_both_orders(kind, monkeypatch):
    orders = set()
    for turns in write_alone(kind, monkeypatch):
        for given, predicted in turns:
            colour, shape, link = re.match(r"\.? (\w+) (\w+)(.*)$", given).groups()
            assert {colour, shape} <= set(re.findall(r"\w+", predicted))
            assert link.endswith("This is a") if kind == "caption" else link.split()[-1] in NAMES
            orders.add(predicted.index(colour) < predicted.index(shape))
    assert orders == {False, True}


def test_names_mean_nothing(monkeypatch):
    """Whatever a name is given to in one text says nothing about the next."""
    given = {}
    for turns in write_alone("episode", monkeypatch, count=1500):
        for words, name in PRESENTATION.findall(text_of(turns)):
            given.setdefault(name, set()).add(words)
    assert set(given) == set(NAMES) and set(PAPER_NAMES) < set(NAMES)
    assert {len(words) for words in given.values()} == {len(COLOURS) * len(SHAPES)}


@pytest.mark.parametrize("words", [40, 62, 150])
def test_texts_are_nearly_as_long_as_wanted_and_each_word_is_one_token(words):
    source = BindingTexts(300, seed=5, words=words)
    texts = [text_of(source.record(index).turns) for index in range(300)]
    tokenizer = train_bpe(texts, vocab_size=400, special_tokens=["<|endoftext|>"])
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert lengths == [count_words(text) for text in texts]
    assert max(lengths) <= words and min(lengths) > words / 3 and np.mean(lengths) > 0.8 * words


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


@pytest.mark.parametrize("lead", [0.25, 0.75])
def test_two_thirds_of_the_lead_are_repeats(lead):
    source = BindingTexts(1000, seed=1, lead=lead)
    texts = [text_of(source.record(index).turns) for index in range(1000)]
    repeats = [text for text in texts if not re.match(rf"Answer| {THING}", text)]
    assert abs(len(repeats) / 1000 - lead * 2 / 3) < 0.05


def test_the_source_by_its_line():
    made = BindingTexts(8, seed=4, words=90, lead=0.5)
    assert open_source("binding_text:4?words=90&lead=0.5").record(7) == made.record(7)
    for line, message in (
        ("4?words=39", "40 words or more"),
        ("4?lead=1.5", "a share"),
        ("4?lead=x", "no number"),
        ("x", "whole number"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"binding_text:{line}")
