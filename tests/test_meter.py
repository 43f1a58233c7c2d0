"""What a metered model counts, by hand; what it says is the model's own."""

import dataclasses

import numpy as np
import pytest

from frozen_jax.build import build_towers
from frozen_jax.config import from_config_dict
from frozen_jax.flops import count_answer
from frozen_jax.meter import Meter, MeteredModel, count
from frozen_jax.prompt import Image
from frozen_jax.restore import make_model
from frozen_jax.state import merge


@pytest.fixture(scope="module")
def model(tiny_lm):
    from frozen_jax.config import default_config

    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name, config.vision.options = "nf_resnet_small", {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.train, config.data.image.size, config.data.bos = "fake:8", 16, True
    config.retrieval.weight, config.retrieval.width = 0.5, 4
    towers = build_towers(from_config_dict(config))
    return make_model(from_config_dict(config), towers, merge(towers.trainable, towers.frozen))


def test_calls_are_counted_and_give_what_the_model_gives(model):
    metered = MeteredModel.wrap(model)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    table = metered.embed_image(pictures)
    np.testing.assert_array_equal(table, model.embed_image(pictures))
    prompts = [[Image(0), " a red patch", Image(1), Image(0)], [" a blue patch"], [" a blue patch"]]
    words = [len(model.tokenizer.encode(text)) for text in (" a red patch", " a blue patch")]
    options = {"max_new_tokens": 3, "stop": (), "prefixes": table}
    assert metered.generate(prompts, **options) == model.generate(prompts, **options)
    meter = metered.meter
    assert (meter.examples, meter.pictures, meter.new_tokens) == (3, 2, 9)
    assert meter.positions == 3 + 3 * 2 + words[0] + 2 * words[1]
    metered.score([[" a"]], [" red", " blue patch"])
    assert meter.new_tokens == 9 + sum(len(model.tokenizer.encode(text)) for text in (" red", " blue patch"))
    metered.score([[" a"]], [[" red", " blue patch"]])
    assert meter.examples == 5
    assert 0 < meter.compile_s < meter.seconds
    again = MeteredModel.wrap(model)
    again.generate(prompts, **options)
    assert again.meter.compile_s == 0 < again.meter.seconds < meter.seconds


def test_vectors_are_counted(model):
    """Each prompt or picture is an example; a prompt has its positions, and every picture is encoded."""
    metered = MeteredModel.wrap(model)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    prompts = [[pictures[0], " a red patch"], [" a blue patch"]]
    words = sum(len(model.tokenizer.encode(text)) for text in (" a red patch", " a blue patch"))
    for retrieval in (False, True):
        vectors = metered.embed_prompts(prompts, retrieval=retrieval)
        np.testing.assert_array_equal(vectors, model.embed_prompts(prompts, retrieval=retrieval))
    meter = metered.meter
    assert (meter.examples, meter.pictures, meter.positions) == (4, 2, 2 * (2 + words + 2))
    for look in ("map_image", "encode_image"):
        before = meter.seconds
        np.testing.assert_array_equal(getattr(metered, look)(pictures), getattr(model, look)(pictures))
        assert meter.seconds > before
    assert (meter.examples, meter.pictures, meter.new_tokens) == (10, 8, 0)
    assert metered.meter.summarise(metered)["flops_per_example"] > 0


def test_what_is_no_call_of_the_model_says_what_it_makes(model):
    metered = MeteredModel.wrap(model)
    with count(metered, 5):
        pass
    with count(model, 5):
        pass
    with pytest.raises(KeyError), count(metered, 5):
        raise KeyError
    figures = metered.meter.summarise(metered)
    assert figures["examples"] == 5 and {"tokens_per_s", "flops_per_example"}.isdisjoint(figures)


def test_calls_inside_calls_are_timed_once(monkeypatch):
    now = iter([10.0, 14.0])
    monkeypatch.setattr("frozen_jax.meter.time.monotonic", lambda: next(now))
    meter = Meter()
    with meter.time(), meter.time():
        pass
    assert meter.seconds == 4.0


def test_the_summary_by_hand(model):
    metered = MeteredModel.wrap(model)
    counted = Meter(seconds=7.0, compile_s=3.0, examples=8, positions=80, pictures=4, new_tokens=40)
    figures = dataclasses.replace(metered, meter=counted).meter.summarise(model)
    flops = count_answer(model.network, model.params, pictures=0.5, image_size=16, positions=10, new_tokens=5)
    assert figures == {
        "examples": 8,
        "examples_per_s": 2.0,
        "tokens_per_s": 30.0,
        "compile_s": 3.0,
        "flops_per_example": round(flops),
    }
    assert Meter().summarise(model) == {}
