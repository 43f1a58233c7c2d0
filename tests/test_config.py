import pytest
from ml_collections import ConfigDict

from frozen_jax.config import default_config, from_config_dict, to_dict
from frozen_jax.errors import UserError


@pytest.fixture
def config():
    config = default_config()
    config.lm.path = "gpt2"
    config.vision.name = "nf_resnet50"
    config.data.train = "fake:8"
    return config


def test_defaults_are_the_papers(config):
    built = from_config_dict(config)
    assert (built.prefix.length, built.train.batch_size, built.data.image_size) == (2, 128, 224)
    assert (built.optim.learning_rate, built.optim.beta1, built.optim.beta2) == (3e-4, 0.9, 0.95)
    assert built.optim.schedule == "constant" and built.lm.mode == "frozen" and not built.blind


def test_round_trip_through_json_types(config):
    built = from_config_dict(config)
    assert from_config_dict(to_dict(built)) == built
    assert from_config_dict(ConfigDict(to_dict(built))) == built


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
        ("prefix", "dropout", 1.0, r"config\.prefix\.dropout is 1\.0.*less than 1"),
        ("optim", "learning_rate", -1.0, r"config\.optim\.learning_rate is -1\.0.*negative"),
        ("optim", "accumulate", 3, r"config\.train\.batch_size is 128.*multiple of optim\.accumulate=3"),
        ("data", "train", "", r"config\.data\.train is ''"),
        ("data", "max_tokens", 3, r"config\.data\.max_tokens is 3; the image slots and marks take 2"),
        ("data", "question_format", "Q:", r"config\.data\.question_format .*\{question\}"),
        ("data", "question_fraction", 1.5, r"config\.data\.question_fraction is 1\.5"),
        ("mesh", "data", 0, r"config\.mesh\.data is 0"),
        ("mesh", "fsdp", -1, r"config\.mesh\.fsdp is -1; mesh\.data is -1 too, and only one axis can be the rest"),
        ("mesh", "frozen", "some", r"config\.mesh\.frozen is 'some'; it must be one of 'auto', "),
        ("profile", "start", -5, r"config\.profile\.start is -5"),
        ("profile", "steps", 0, r"config\.profile\.steps is 0"),
        ("vision", "name", "", r"config\.lm\.mode is 'frozen'; without vision\.name nothing would be trained"),
    ],
)
def test_each_bad_value_is_named(config, section, name, value, message):
    given = config.to_dict()
    given[section][name] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(given)


def test_an_integer_serves_as_a_float(config):
    config.optim.clip_norm = 1.0
    assert from_config_dict({**config.to_dict(), "optim": {"clip_norm": 2}}).optim.clip_norm == 2.0


def test_blind_needs_an_encoder(config):
    given = config.to_dict()
    given["vision"]["name"], given["lm"]["mode"], given["blind"] = "", "finetuned", True
    with pytest.raises(UserError, match="no images to blacken"):
        from_config_dict(given)
