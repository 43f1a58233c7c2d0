"""Fusion of a picture and a text: what each kind reads, that the text side stays, labels, and a run from end to end."""

import dataclasses
import functools
import inspect
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import frozen_jax
from frozen_jax import fusing
from frozen_jax.batch import PAD, Batch
from frozen_jax.build import build_towers
from frozen_jax.config import OptimSettings, from_config_dict
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.items import check_classes, list_all_items, list_classes, list_items, word_items
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.records import MemorySource, Question, Record
from frozen_jax.data.text import RowLayout, Text
from frozen_jax.errors import UserError
from frozen_jax.fusing import Fused, fuse
from frozen_jax.fusion_settings import FusionSettings
from frozen_jax.language_model import fingerprint_params
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.fusion import KINDS, Fusion
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.vision import build_vision
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.restore import make_model
from frozen_jax.run import run
from frozen_jax.state import TrainState, flatten, match_rules, merge, split
from frozen_jax.steps import LossOptions, class_loss, make_train_step
from frozen_jax.tasks.fusion import Item, score_fused, score_neighbours
from tests.models.lm_cases import FAST_COMPILE

CLASSES = ("red", "blue", "green")

TOKENS = np.array([[0, 5, 7, 0, PAD], [0, 9, 0, PAD, PAD], [0, 4, 4, 6, 0]], np.int32)

BATCH = Batch(
    images=jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16, 3), np.uint8)),
    tokens=jnp.asarray(TOKENS),
    loss_mask=jnp.asarray(np.eye(5, dtype=np.float32)[[3, 2, 4]]),  # the end of each text
    sample_ids=jnp.arange(3, dtype=jnp.int32),
    labels=jnp.asarray([2, 0, 1], jnp.int32),
)

LMS = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 12, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "bert": {
        "model_type": "bert",
        "vocab_size": 12,
        "max_position_embeddings": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
}


@functools.cache
def make_towers(kind, lm="gpt2"):
    """Towers with the rules that training uses."""
    vision = build_vision("nf_resnet_small", widths=(8,), depths=(1,), stem_width=8)
    model = FrozenModel(build_lm(lm_config_from_hf(LMS[lm])), vision, fusion=Fusion(kind, CLASSES, 16))
    init = jax.jit(
        lambda a, b: {**model.init_lm(a), **model.init_vision(b, image_size=16)}, compiler_options=FAST_COMPILE
    )
    params = init(jax.random.key(0), jax.random.key(1))
    return model, params, list_label_rules(params, lm_trains=False)


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def score(model, params, images, tokens):
    return model.fuse(params, images, tokens)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_what_its_name_says(kind):
    """Text alone does not see the picture, the picture alone not the text."""
    model, params, _ = make_towers(kind)
    logits = np.asarray(score(model, params, BATCH.images, BATCH.tokens))
    other_picture = np.asarray(score(model, params, 255 - BATCH.images, BATCH.tokens))
    other_text = np.asarray(score(model, params, BATCH.images, BATCH.tokens.at[:, 1].set(3)))
    assert np.array_equal(logits, other_picture) == (kind == "text")
    assert np.array_equal(logits, other_text) == (kind == "image")


@pytest.mark.parametrize("kind", ["cross_attention"])
def test_a_fusion_trains_beside_a_text_side_that_does_not(kind):
    """Bit for bit; all of the fusion and, where it looks at pictures, of the encoder moves."""
    model, params, rules = make_towers(kind)
    trainable, frozen = split(params, match_rules(params, rules, what="test"))
    assert set(frozen) == {"lm"} and set(trainable) == {"vision", "fusion"}
    optimiser = make_optimiser(OptimSettings(learning_rate=1e-2), rules, steps=3)
    step = jax.jit(
        make_train_step(model, optimiser, accumulate=1, options=LossOptions()), compiler_options=FAST_COMPILE
    )
    before, losses = fingerprint_params(frozen), []
    state = TrainState(trainable, optimiser.init(trainable))
    for _ in range(3):
        state, metrics = step(state, frozen, BATCH, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0] and fingerprint_params(frozen) == before
    start = flatten(trainable)
    still = {path for path, leaf in flatten(state.trainable).items() if np.array_equal(leaf, start[path])}
    assert not still


def test_padding_changes_nothing():
    model, params, _ = make_towers("cross_attention")
    padded = jnp.pad(BATCH.tokens, ((0, 0), (0, 3)), constant_values=PAD)
    logits = score(model, params, BATCH.images, BATCH.tokens)
    np.testing.assert_allclose(score(model, params, BATCH.images, padded), logits, atol=1e-5)


def test_a_bert_reads_in_both_directions():
    """A later word changes what an earlier one is, as in no language model here."""
    model, params, _ = make_towers("text", "bert")
    states = [
        model.run_lm(params, model.embed(params, tokens, None), (tokens != PAD).astype(jnp.int32))[:, 0]
        for tokens in (BATCH.tokens, BATCH.tokens.at[:, 2].set(1))
    ]
    assert float(jnp.abs(states[0] - states[1]).max()) > 1e-3
    assert np.isfinite(score(model, params, BATCH.images, BATCH.tokens)).all()


def test_loss_by_hand():
    """A row without a class, and one that only fills up the batch, carry nothing."""
    model, params, _ = make_towers("concat")
    logits = np.asarray(score(model, params, BATCH.images, BATCH.tokens), np.float64)
    losses = -np.array([row[label] - np.log(np.exp(row).sum()) for row, label in zip(logits, (2, 0, 1), strict=True)])
    correct = logits.argmax(axis=1) == (2, 0, 1)
    measure = jax.jit(lambda batch: class_loss(params, model, batch), compiler_options=FAST_COMPILE)
    whole = measure(BATCH)
    np.testing.assert_allclose(whole.loss_sum, losses.sum(), rtol=1e-5)
    assert (float(whole.words), float(whole.correct_sum)) == (3, correct.sum())
    none = measure(BATCH._replace(labels=jnp.asarray([2, -1, 1], jnp.int32)))
    np.testing.assert_allclose(none.loss_sum, losses[[0, 2]].sum(), rtol=1e-5)
    filling = measure(BATCH._replace(loss_mask=BATCH.loss_mask.at[2].set(0)))
    np.testing.assert_allclose(filling.loss_sum, losses[:2].sum(), rtol=1e-5)
    assert float(none.words) == float(filling.words) == 2


def test_the_text_sides_dropout_acts_where_it_trains():
    model, params, _ = make_towers("text", "bert")

    @functools.partial(jax.jit, static_argnames="lm_dropout", compiler_options=FAST_COMPILE)
    def measure(rng, *, lm_dropout):
        return class_loss(params, model, BATCH, rng=rng, options=LossOptions(lm_dropout=lm_dropout)).loss_sum

    one, other = jax.random.key(1), jax.random.key(2)
    assert measure(one, lm_dropout=False) == measure(other, lm_dropout=False)
    assert measure(one, lm_dropout=True) != measure(other, lm_dropout=True)


def test_items_of_records():
    asked = Question("what color?", ("red", "blue", "blue"))
    record = Record("0", None, ("a dot", "a spot"), (asked, Question("hidden?", ())), ("toys", "round"))
    assert list_items(record, FusionSettings()) == [("what color?", "blue")]
    captions = FusionSettings(item="caption", tag=1)
    assert list_items(record, captions) == [("a dot", "round"), ("a spot", "round")]
    rng = np.random.default_rng(0)
    drawn = Counter(word_items(captions)(record, rng) for _ in range(40))
    assert {(text.prompt, text.label, text.target) for text in drawn} == {
        ("a dot", "round", ""),
        ("a spot", "round", ""),
    }
    assert word_items(FusionSettings())(record._replace(questions=()), rng) is None
    alone = FusionSettings(kind="image", item="picture", tag=-1)
    assert list_items(record, alone) == [("", "toys round")]
    assert word_items(alone)(record, rng) == Text("", label="toys round")
    others = [record._replace(questions=(Question("", (word,)),)) for word in ("no", "yes", "no", "a")]
    assert list_classes(MemorySource(others), FusionSettings(), on_bad="raise") == ("no", "a", "yes")
    with pytest.raises(
        UserError, match=r"config\.fusion\.item is 'question', and data\.train has the classes \['no'\]"
    ):
        list_classes(MemorySource(others[:1]), FusionSettings(), on_bad="raise")


def test_a_record_without_the_tag_is_a_bad_item():
    """Training replaces it and counts why, lists leave it out, or both end there."""
    picture = np.zeros((8, 8, 3), np.uint8)
    records = [Record(str(n), picture, ("a dot",), (), ("round",) * (n != 1)) for n in range(4)]
    source, settings = MemorySource(records), FusionSettings(kind="concat", item="caption", classes=("round",))

    def read(on_bad):
        named = {"on_bad": on_bad, "classes": settings.classes}
        options = PipelineOptions(batch_size=4, images=ImageOptions(8), shuffle=False, **named)
        layout = RowLayout(max_tokens=4, prefix_length=0, bos_id=0, eos_id=0)
        pipeline = Pipeline(source, text=word_items(settings), encode=lambda _: [1], layout=layout, options=options)
        return pipeline.batch(Position(0, 0)), pipeline.bad.report()

    batch, counted = read("replace")
    assert counted == {"no such tag": {"count": 1, "ids": ["1"]}}
    assert set(batch.sample_ids.tolist()) == {0, 2, 3} and batch.labels.tolist() == [0] * 4
    assert len(list(list_all_items(source, settings, on_bad="replace"))) == 3
    for end in (lambda: read("raise"), lambda: list(list_all_items(source, settings, on_bad="raise"))):
        with pytest.raises(UserError, match=r"record 1 has the tags \(\), none at place 0"):
            end()


def test_classes_that_no_record_is_of_are_refused(tiny_config, tmp_path, monkeypatch):
    """All of them in training, some in validation; where bad items leave none to validate, that is said, too."""

    def answer(*words):
        return MemorySource([Record(word, None, (), (Question("", (word,)),)) for word in words])

    named = FusionSettings(classes=("yes", "no"))
    check_classes(answer("a", "no", "yes"), answer("a", "yes"), named)
    with pytest.raises(UserError, match=r"classes has 'no', and no record of data\.train is .* there: 'a', 'yes';"):
        check_classes(answer("yes", "a"), answer("yes"), named)
    with pytest.raises(UserError, match=r"none of the 1 validation records is of such a class; there: 'a';"):
        check_classes(answer("yes", "no"), answer("a"), named)
    tiny_config.fusion.kind, tiny_config.fusion.classes = "concat", ("Red", "Blue")
    tiny_config.train.steps, tiny_config.data.bos = 1, True
    config = from_config_dict(tiny_config)
    with pytest.raises(UserError, match=r"config\.fusion\.classes has 'Red', 'Blue', and no record of data\.train"):
        run(config, tmp_path / "checked", mode="train")
    monkeypatch.setattr("frozen_jax.run.check_classes", lambda *_: None)
    with pytest.raises(UserError, match="none of the validation records carries loss"):
        run(config, tmp_path / "unchecked", mode="train")


def test_a_run_from_training_to_use(tiny_config, tmp_path, monkeypatch):
    """Colours of patches asked for in words; black pictures and pictures of others are worse."""
    tiny_config.fusion.kind, tiny_config.fusion.width = "gated", 16
    tiny_config.data.bos = True
    tiny_config.train.steps, tiny_config.train.batch_size = 30, 16
    tiny_config.evaluate.task, tiny_config.evaluate.blind_control = "fusion", False
    report = run(from_config_dict(tiny_config), tmp_path, mode="train")
    figures = report["fusion"]
    assert (figures["n"], figures["classes"], figures["chance"]) == (10, 4, 25.0)
    assert figures["seeing"]["top_1"] > figures["shuffled"]["top_1"]
    assert figures["majority"] == figures["question_only"]  # there is but one question
    assert 0 <= figures["seeing"]["ece"] <= 100 and (tmp_path / "report_confusion.png").stat().st_size > 1000
    assert 0 <= figures["seeing"]["neighbours"]["r_1"] <= figures["seeing"]["neighbours"]["r_5"] <= 100
    assert report["evaluation"]["examples"] == 20 and report["evaluation"]["examples_per_s"] > 0  # and shuffled
    assert len(json.loads((tmp_path / "config.json").read_text())["fusion"]["classes"]) == 4
    model = frozen_jax.load(tmp_path)
    pictures = [np.full((20, 20, 3), value, np.uint8) for value in (0, 200)]
    items = [(pictures[0], "what color is the patch?"), (pictures[1], "what color?"), (pictures[0], "what color?")]
    fused, again = fuse(model, items), fuse(model, items)
    assert np.array_equal(fused.vectors, again.vectors) and fused.vectors.shape == (3, 16)
    np.testing.assert_allclose(fused.probabilities.sum(axis=1), 1, rtol=1e-5)
    alone = fuse(dataclasses.replace(model, batch_size=1), items[1:2])
    np.testing.assert_allclose(alone.probabilities[0], fused.probabilities[1], atol=1e-5)
    assert fuse(model, []).vectors.shape == (0, 16)
    opened = []
    monkeypatch.setattr(
        fusing, "load_image", lambda *given, **options: opened.append(1) or load_image(*given, **options)
    )
    one, two = (picture.copy() for picture in pictures)
    asked = [(one, "red"), (one, "blue"), (two, "red"), (two, "blue"), (one, "red")]
    narrow = fuse(dataclasses.replace(model, batch_size=1), asked)
    assert len(opened) == 3, "a picture is kept for the batch that follows, and no longer"
    np.testing.assert_allclose(narrow.probabilities, fuse(model, asked).probabilities, atol=1e-5)
    assert len(opened) == 3 + 2
    with pytest.raises(UserError, match=r"use frozen_jax\.fusing\.fuse"):
        model.embed_image(pictures)
    with pytest.raises(UserError, match=r"picture 1 is of type int"):
        # Unwrapped: in tests some items' types are checked before, which ones is chance.
        inspect.unwrap(fuse)(model, [(Path("nowhere.png"), "red"), (3, "red")])
    with pytest.raises(UserError, match=r"item 0 has the text ''"):
        fuse(model, [(pictures[0], "")])
    with pytest.raises(UserError, match=r"a text takes \d+ tokens, and the language model has 64 positions"):
        fuse(model, [(pictures[0], "red " * 80)])


def test_a_picture_needs_no_text_where_none_is_read(tiny_config):
    """The kind `image` is a classifier of pictures: what stands beside them changes nothing, nor need there be any."""
    tiny_config.fusion.kind, tiny_config.fusion.item = "image", "picture"
    tiny_config.fusion.classes, tiny_config.data.bos = CLASSES, True
    config = from_config_dict(tiny_config)
    towers = build_towers(config)
    model = make_model(config, towers, merge(towers.trainable, towers.frozen))
    pictures = [np.full((16, 16, 3), value, np.uint8) for value in (0, 200)]
    wordless, worded = (fuse(model, [(picture, text) for picture in pictures]) for text in ("", "red red red"))
    np.testing.assert_allclose(wordless.probabilities, worded.probabilities, rtol=1e-6)
    assert np.abs(wordless.vectors[0] - wordless.vectors[1]).max() > 1e-3


def test_an_item_of_an_unknown_class_is_wrong_at_any_rank():
    """One of four items is of a class that training did not have: the others alone can be right."""
    probabilities = np.full((4, 8), 0.04, np.float32)
    probabilities[np.arange(4), [0, 1, 2, 3]] = 0.72
    fused = Fused(np.zeros((4, 2), np.float32), probabilities)
    assert score_fused(fused, np.array([0, 1, 2, -1])) == {"top_1": 75.0, "top_5": 75.0, "ece": 3.0}


def test_one_of_all_five_classes_is_always_right_and_no_figure():
    scores = score_fused(Fused(np.zeros((1, 2), np.float32), np.full((1, 5), 0.2, np.float32)), np.array([1]))
    assert set(scores) == {"top_1", "ece"}


def test_equal_neighbours_are_misses_or_drawn_among():
    """Of six equal vectors the four of the two other pictures are in question, two of them of the same class."""
    items = [Item(picture, "", label) for picture in (0, 1, 2) for label in ("red", "blue")]
    found = score_neighbours(Fused(np.ones((6, 2), np.float32), np.eye(6, dtype=np.float32)), items)["neighbours"]
    assert (found["r_1"], found["r_1_drawn"], found["chance_r_1"]) == (0.0, 50.0, 50.0)


def test_neighbours_are_other_pictures_items():
    """Two pictures with two items each, alike within a picture: of the two items of the other one, one is right."""
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], np.float32)
    items = [Item(picture, "", label) for picture in (0, 1) for label in ("red", "blue")]
    found = score_neighbours(Fused(vectors, np.eye(4, dtype=np.float32)), items)["neighbours"]
    assert (found["gallery"], found["queries"], found["chance_r_1"]) == (4, 4, 50.0)
    assert found["r_1_drawn"] == 50.0
    # Blue looks for blue and red lies nearest to the other picture's blue, as blue to its blue.
    assert found["r_1"] == 50.0 and found["r_5"] == 100.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fusion.item": "picture"},
            r"config\.fusion\.item is 'picture'; it has no text, which other",
        ),
        ({"fusion.width": 6}, r"config\.fusion\.width is 6; it must be a multiple of 4"),
        ({"fusion.classes": ("red",)}, r"config\.fusion\.classes is \('red',\)"),
        ({"data.pack": 2, "train.batch_size": 8}, r"config\.data\.pack is 2; fusion\.kind='gated' names one class"),
        ({"vision.name": "", "vision.options": {}, "lm.mode": "finetuned"}, r"config\.vision\.name is ''"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_config, settings, message):
    given = {"fusion.kind": "gated", **settings}
    for name, value in given.items():
        section, key = name.split(".")
        tiny_config[section][key] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(tiny_config)


def test_towers_need_the_names_of_classes(tiny_config):
    tiny_config.fusion.kind = "concat"
    with pytest.raises(UserError, match=r"config\.fusion\.classes is \(\)"):
        build_towers(from_config_dict(tiny_config))
