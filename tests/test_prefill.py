"""A beginning that is run once for several prompts, against the same prompts run whole, in every family."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.decode import DecodeConfig, generate
from frozen_jax.errors import UserError
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.prefill import Beginning, prefill
from tests.models.lm_cases import FAST_COMPILE, GPT2, LLAMA, OPT

BEGINNINGS = (5, 3, 0)  # the last one is empty
OWNERS = np.array([0, 1, 0, 2], np.int32)
LENGTHS = (2, 4, 3, 4)


def draw_params(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        gain = path[-1].key == "scale"
        return jnp.asarray(gain + (0.05 if leaf.ndim < 3 else 0.4) * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def pad_left(rows):
    """Embeddings and mask of rows of different length, with noise at the padding."""
    longest = max(map(len, rows))
    padded = np.full((len(rows), longest, 32), 9.0, np.float32)
    for place, row in enumerate(rows):
        padded[place, longest - len(row) :] = row
    return padded, np.arange(longest)[None, :] >= longest - np.array([[len(row)] for row in rows])


@pytest.mark.parametrize("family", [GPT2, OPT, LLAMA], ids=lambda family: family["model_type"])
def test_a_shared_beginning_changes_nothing(family):
    module = build_lm(lm_config_from_hf(family))
    params = draw_params(module)
    rng = np.random.default_rng(1)
    heads = [rng.normal(size=(length, 32)).astype(np.float32) for length in BEGINNINGS]
    rests = [rng.normal(size=(length, 32)).astype(np.float32) for length in LENGTHS]
    whole = pad_left([np.concatenate([heads[owner], rest]) for owner, rest in zip(OWNERS, rests, strict=True)])
    beginning = Beginning(*map(jnp.asarray, pad_left(heads)), OWNERS)
    run = jax.jit(functools.partial(prefill, module=module, room=2), compiler_options=FAST_COMPILE)
    expected, _, held = run(params, *whole, None)
    assert held.shape == (4, 8)
    logits, cache, held = run(params, *pad_left(rests), beginning)
    assert held.sum(axis=1).tolist() == [7, 7, 8, 4] and cache["key"].shape[3] == 5 + 4 + 2
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 0.01

    config = DecodeConfig(4, num_beams=2)
    one = generate(module, params, *whole, config=config)
    other = generate(module, params, *pad_left(rests), config=config, beginning=beginning)
    np.testing.assert_array_equal(other.tokens, one.tokens)
    np.testing.assert_allclose(other.scores, one.scores, rtol=1e-5)
    assert len(set(map(tuple, one.tokens.tolist()))) > 1


def test_the_limit_of_positions_counts_the_beginning():
    module = build_lm(lm_config_from_hf(GPT2))
    beginning = Beginning(*map(jnp.asarray, pad_left([np.zeros((40, 32), np.float32)])), np.zeros(1, np.int32))
    with pytest.raises(UserError, match="after a prompt of 44 positions exceeds the language model's 48"):
        generate(module, {}, *pad_left([np.zeros((4, 32), np.float32)]), config=DecodeConfig(6), beginning=beginning)
