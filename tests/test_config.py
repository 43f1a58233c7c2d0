import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from frozen_jax.build import build_model
from frozen_jax.config import default_config, from_config_dict, identify, list_free_sections, to_dict
from frozen_jax.errors import UserError
from frozen_jax.models.lm import lm_config_from_hf


@pytest.fixture
def config():
    config = default_config()
    config.lm.path = "gpt2"
    config.vision.name = "nf_resnet50"
    config.data.train = "fake:8"
    return config


def test_defaults_are_the_papers(config):
    built = from_config_dict(config)
    assert (built.prefix.length, built.train.batch_size, built.data.image.size) == (2, 128, 224)
    assert (built.optim.learning_rate, built.optim.beta1, built.optim.beta2) == (3e-4, 0.9, 0.95)
    assert built.optim.schedule == "constant" and built.lm.mode == "frozen" and not built.blind


def test_round_trip_through_json_types(config):
    built = from_config_dict(config)
    assert from_config_dict(to_dict(built)) == built
    assert from_config_dict(ConfigDict(to_dict(built))) == built
    config.data.buckets = (12, 34)
    built = from_config_dict(config)
    assert from_config_dict(json.loads(json.dumps(to_dict(built)))) == built, "JSON has lists for tuples"


def test_a_prefix_of_another_size_is_another_run_and_the_usual_one_is_as_it_was(config):
    config.vision.name, config.data.image.size = "nf_resnet_small", 16
    given = {"vocab_size": 8, "n_positions": 64, "n_embd": 4, "n_layer": 1, "n_head": 1}
    lm = lm_config_from_hf({"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **given})
    sizes = {}
    for scale in (1.0, 4.0):
        config.prefix.scale = scale
        run = from_config_dict(config)
        sizes[scale] = build_model(run, lm, compute=np.dtype(np.float32), embedding_rms=0.1).prefix.embedding_rms
        assert ("scale" in identify(run)["prefix"]) == ("prefix.scale" not in list_free_sections(run)) == (scale != 1)
        assert "hidden" not in identify(run)["prefix"], "a linear prefix has none"
    assert sizes == {1.0: 0.1, 4.0: 0.4}


def test_walls_and_joined_pairs_exclude_each_other(config):
    config.data.pack, config.data.pair_probability = 2, 0.5
    with pytest.raises(UserError, match=r"config\.data\.pair_probability.*data\.pack=2 puts walls"):
        from_config_dict(config)


def test_misspelt_setting_is_refused_where_it_is_written(config):
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optim.learning_rte = 1e-3


def test_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"config\.train\.setps: no such setting; did you mean 'steps'"):
        from_config_dict({"train": {"setps": 3}})


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("train", "steps", "many", r"config\.train\.steps is 'many', a str; it must be a int"),
        ("train", "steps", 2.5, r"config\.train\.steps is 2\.5, a float"),
        ("train", "steps", True, r"config\.train\.steps is True, a bool"),
        ("train", "steps", 0, r"config\.train\.steps is 0; it must be at least 1"),
        ("lm", "mode", "frosen", r"config\.lm\.mode is 'frosen'; it must be one of 'frozen', 'finetuned', 'scratch'"),
        ("lm", "path", "", r"config\.lm\.path is ''"),
        ("lm", "architecture", {"model_type": "gpt2"}, r"config\.lm\.architecture .*brings its own"),
        ("prefix", "length", 0, r"config\.prefix\.length is 0"),
        ("prefix", "scale", 0.0, r"config\.prefix\.scale is 0\.0; .*must be positive"),
        ("prefix", "dropout", 1.0, r"config\.prefix\.dropout is 1\.0.*less than 1"),
        ("optim", "learning_rate", -1.0, r"config\.optim\.learning_rate is -1\.0.*negative"),
        ("optim", "accumulate", 3, r"config\.train\.batch_size is 128.*multiple of optim\.accumulate=3"),
        ("data", "train", "", r"config\.data\.train is ''"),
        ("data", "max_tokens", 3, r"config\.data\.max_tokens is 3; the image slots and marks take 2"),
        ("data", "question_format", "Q:", r"config\.data\.question_format .*\{question\}"),
        ("data", "question_fraction", 1.5, r"config\.data\.question_fraction is 1\.5"),
        ("data", "pack", 3, r"config\.train\.batch_size is 128.*times 3 pairs in a row"),
        ("data", "buckets", (20, 10), r"config\.data\.buckets is \(20, 10\); lengths must rise.*max_tokens=34"),
        ("data", "buckets", (10, 20), r"config\.data\.buckets is \(10, 20\)"),
        ("data", "buckets", (10, 34.0), r"config\.data\.buckets\[1\] is 34\.0, a float"),
        ("data", "on_bad", "skip", r"config\.data\.on_bad is 'skip'; it must be one of 'raise', 'replace'"),
        ("data", "image", {"size": 8, "background": (0, 0)}, r"config\.data\.image\.background .*must have 3 values"),
        ("data", "image", {"size": 0}, r"images: size 0 must be at least 1"),
        ("data", "pair_probability", -0.5, r"config\.data\.pair_probability is -0\.5"),
        ("mesh", "data", 0, r"config\.mesh\.data is 0"),
        ("mesh", "fsdp", -1, r"config\.mesh\.fsdp is -1; mesh\.data is -1 too, and only one axis can be the rest"),
        ("mesh", "frozen", "some", r"config\.mesh\.frozen is 'some'; it must be one of 'auto', "),
        (None, "seed", -1, r"config\.seed is -1; it must be at least 0 and less than 2\*\*32"),
        (None, "seed", 2**32, r"config\.seed is 4294967296; .* less than 2\*\*32"),
        (None, "train", 5, r"config\.train is 5, a int; it must hold settings: steps, batch_size"),
        ("data", "image", None, r"config\.data\.image is None, a NoneType; it must hold settings: size"),
        ("profile", "start", -5, r"config\.profile\.start is -5"),
        ("profile", "steps", 0, r"config\.profile\.steps is 0"),
        ("vision", "name", "", r"config\.lm\.mode is 'frozen'; without vision\.name nothing would be trained"),
    ],
)
def test_each_bad_value_is_named(config, section, name, value, message):
    given = config.to_dict()
    (given[section] if section else given)[name] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(given)


def test_an_integer_serves_as_a_float(config):
    config.optim.clip_norm = 1.0
    assert from_config_dict({**config.to_dict(), "optim": {"clip_norm": 2}}).optim.clip_norm == 2.0


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        (None, "blind", True, r"config\.blind is True; .*no images to blacken"),
        ("evaluate", "blind_control", True, r"evaluate\.blind_control is True; .*no images to blacken"),
        ("evaluate", "task", "caption", r"evaluate\.task is 'caption'; it shows pictures, .*text alone; name an enc"),
    ],
)
def test_what_shows_pictures_needs_an_encoder(config, section, name, value, message):
    given = config.to_dict()
    given["vision"]["name"], given["lm"]["mode"] = "", "finetuned"
    assert from_config_dict({**given, "evaluate": {"task": "scene_text"}}).evaluate.task == "scene_text"
    (given[section] if section else given)[name] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(given)


def test_retrieval_without_dialogues_is_what_it_was_before_them(config):
    """What `turns` is at 0 has no place among the facts of a run; above 0 it has."""
    config.retrieval.weight, config.data.question_fraction = 0.5, 0.5
    captions = from_config_dict(config)
    config.retrieval.turns = 2
    dialogues = from_config_dict(config)
    assert "retrieval.turns" in list_free_sections(captions) and "retrieval.turns" not in list_free_sections(dialogues)
    assert identify(captions)["retrieval"] == {"weight": 0.5, "width": 128}
    assert identify(dialogues)["retrieval"] == {"weight": 0.5, "width": 128, "turns": 2}
