"""The prefix: shape and order, size at initialisation, normalisation, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.models.prefix import Prefix


def draw_features(count=64, width=96, rms=1.0, seed=0):
    return jnp.asarray(rms * np.random.default_rng(seed).normal(size=(count, width)), jnp.float32)


def measure_rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


@pytest.mark.parametrize("embedding_rms", [0.02, 0.14, 1.0])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_size_at_initialisation_is_that_of_the_embeddings(embedding_rms, layer_norm):
    module = Prefix(2, 48, embedding_rms, layer_norm=layer_norm)
    pooled = draw_features()
    vectors = module.apply(module.init(jax.random.key(0), pooled), pooled)
    assert vectors.shape == (64, 2, 48)
    assert measure_rms(vectors) == pytest.approx(embedding_rms, rel=1e-3 if layer_norm else 0.1)


@pytest.mark.parametrize("options", [{"feature_norm": True}, {"feature_rms": 20.0}])
def test_features_of_another_size_are_allowed_for(options):
    module = Prefix(2, 48, 0.14, **options)
    pooled = draw_features(rms=20.0)
    vectors = module.apply(module.init(jax.random.key(0), pooled), pooled)
    assert measure_rms(vectors) == pytest.approx(0.14, rel=0.1)


def test_is_one_linear_layer_by_default():
    module = Prefix(3, 5, 0.14)
    pooled = draw_features(count=4)
    params = module.init(jax.random.key(0), pooled)["params"]
    assert jax.tree.map(jnp.shape, params) == {"projection": {"kernel": (96, 15), "bias": (15,)}}
    kernel, bias = params["projection"]["kernel"], jnp.arange(15.0)
    params["projection"]["bias"] = bias
    vectors = module.apply({"params": params}, pooled)
    for slot in range(3):
        place = slice(5 * slot, 5 * slot + 5)
        np.testing.assert_allclose(
            vectors[:, slot], pooled @ kernel[:, place] + bias[None, place], rtol=1e-5, atol=1e-5
        )


def test_normalised_vectors_keep_their_size_and_follow_the_gain():
    module = Prefix(2, 48, 0.14, layer_norm=True)
    pooled = draw_features()
    params = module.init(jax.random.key(0), pooled)["params"]
    assert params["gain"].shape == () and params["gain"] == 1.0
    vectors = module.apply({"params": params}, pooled * 100.0)
    np.testing.assert_allclose(jnp.mean(vectors, -1), 0.0, atol=1e-6)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(vectors), -1)), 0.14, rtol=1e-4)
    params["gain"] = jnp.float32(3.0)
    assert measure_rms(module.apply({"params": params}, pooled)) == pytest.approx(0.42, rel=1e-3)


def test_dropout_acts_only_when_asked():
    module = Prefix(1, 8, 0.14, dropout=0.5)
    pooled = jnp.ones((2, 96))
    params = module.init(jax.random.key(0), pooled)
    plain = module.apply(params, pooled)
    assert np.array_equal(plain[0], plain[1])
    dropped = module.apply(params, pooled, deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert not np.array_equal(dropped[0], dropped[1])


def test_bfloat16_output_with_float32_parameters():
    module = Prefix(2, 8, 0.14, layer_norm=True, feature_norm=True, dtype=jnp.bfloat16)
    params = module.init(jax.random.key(0), draw_features())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert module.apply(params, draw_features()).dtype == jnp.bfloat16
