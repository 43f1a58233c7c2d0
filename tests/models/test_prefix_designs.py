"""Kinds of prefix: what each reads and makes, its size at the start, its rules, and what refuses it."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.api import Model
from frozen_jax.build import build_model
from frozen_jax.config import from_config_dict, identify
from frozen_jax.errors import UserError
from frozen_jax.export.write import widen
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
from frozen_jax.prefix_settings import DESIGN, PrefixKind
from frozen_jax.sharding_rules import list_sharding_rules
from frozen_jax.state import flatten, match_rules
from tests.models.lm_cases import FAST_COMPILE

KINDS = typing.get_args(PrefixKind)
PLACES = 4
GPT2 = lm_config_from_hf(
    {"model_type": "gpt2", "vocab_size": 12, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
)


def make(kind, **options):
    length = PLACES if kind == "patches" else 3
    return Prefix(length, 16, 0.14, kind=kind, hidden=32, layers=1, heads=4, **options)


def draw_features(module, rows=64, seed=0):
    shape = (rows, PLACES, 48) if module.reads_places else (rows, 48)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module", params=KINDS)
def drawn(request):
    """A module, its parameters, features and the vectors made of them."""
    module = make(request.param)
    features = draw_features(module)
    draw = jax.jit(module.init_with_output, compiler_options=FAST_COMPILE)
    vectors, variables = draw(jax.random.key(0), features)
    return module, variables["params"], features, vectors


def test_every_kind_makes_vectors_of_the_embeddings_size(drawn):
    module, _, _, vectors = drawn
    assert vectors.shape == (64, module.length, 16)
    assert float(jnp.sqrt(jnp.mean(jnp.square(vectors)))) == pytest.approx(0.14, rel=0.15)


def test_every_parameter_takes_part_and_every_vector_sees_the_picture(drawn):
    module, params, features, vectors = drawn

    def loss(params, features):
        return jnp.sum(jnp.square(module.apply({"params": params}, features) - 1.0))

    gradient, by_feature = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=FAST_COMPILE)(params, features)
    # A bias on all keys alike changes no attention.
    dead = [path for path, leaf in flatten(gradient).items() if not np.abs(leaf).max() > 1e-6]
    assert [path for path in dead if not path.endswith("key/bias")] == []
    assert (np.abs(by_feature).max(axis=-1) > 0).all()
    assert (np.std(vectors, axis=0).mean(axis=-1) > 0.01).all(), "a vector is the same for all pictures"
    assert len(np.unique(np.asarray(vectors[0]).round(5), axis=0)) == module.length, "vectors of a picture are equal"


def test_places_are_pooled_in_any_order_and_patches_keep_theirs(drawn):
    module, params, features, vectors = drawn
    if not module.reads_places:
        return
    order = [2, 0, 3, 1]
    moved = jax.jit(module.apply, compiler_options=FAST_COMPILE)({"params": params}, features[:, order])
    expected = vectors[:, order] if module.kind == "patches" else vectors
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def make_network(kind):
    vision = build_vision("nf_resnet_small", widths=(8,), depths=(1,), stem_width=8)
    return FrozenModel(build_lm(GPT2), vision, make(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_sharding_rules_cover_every_kind(kind):
    network = make_network(kind)
    params = jax.eval_shape(lambda k: {**network.init_lm(k), **network.init_vision(k, image_size=8)}, jax.random.key(0))
    match_rules(params, list_sharding_rules(network, params), what="sharding")
    images = jax.ShapeDtypeStruct((2, 3, 8, 8, 3), np.uint8)
    assert jax.eval_shape(network.embed_images, params, images).shape == (2, 3, network.prefix_length, 16)


def test_patches_have_as_many_vectors_as_places(tiny_config):
    tiny_config.prefix.kind, tiny_config.data.max_tokens = "patches", 40
    tiny_config.vision.name = "nf_resnet_small"
    config = from_config_dict(tiny_config)
    with pytest.raises(UserError, match=r"config\.prefix\.length is 2.*data\.image\.size=\d+: set it to \d+") as caught:
        build_model(config, GPT2, compute=np.dtype(np.float32), embedding_rms=0.1)
    tiny_config.prefix.length = int(str(caught.value).split()[-1])
    model = build_model(from_config_dict(tiny_config), GPT2, compute=np.dtype(np.float32), embedding_rms=0.1)
    assert model.prefix_length == tiny_config.prefix.length > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prefix.kind": "transformer", "prefix.hidden": 30},
            r"prefix\.hidden is 30; it must be a multiple of .*=8",
        ),
        ({"prefix.layers": 0}, r"prefix\.layers is 0; it must be at least 1"),
        ({"prefix.kind": "patches", "retrieval.weight": 0.1}, r"prefix\.kind is 'patches'; it has no pooled feature"),
        (
            {"prefix.kind": "attention_pool", "vision.path": "x", "vision.freeze": True, "vision.feature_cache": "y"},
            r"prefix\.kind is 'attention_pool'; it is made of the places .* leave vision\.feature_cache empty",
        ),
    ],
)
def test_contradictions_are_refused(tiny_config, settings, message):
    tiny_config.vision.name = "nf_resnet_small"
    tiny_config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=message):
        from_config_dict(tiny_config)


def test_a_linear_run_is_the_same_as_before_there_were_kinds(tiny_config):
    config = from_config_dict(tiny_config)
    assert not set(DESIGN) & set(identify(config)["prefix"])
    other = dataclasses.replace(config, prefix=dataclasses.replace(config.prefix, kind="mlp"))
    assert set(DESIGN) <= set(identify(other)["prefix"])


def test_an_export_of_another_kind_is_refused_by_name():
    model = object.__new__(Model)
    object.__setattr__(model, "network", make_network("transformer"))
    with pytest.raises(UserError, match=r"prefix\.kind='transformer'.*linear"):
        widen(model)
