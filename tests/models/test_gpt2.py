from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from frozen_jax.errors import UserError
from frozen_jax.models.gpt2 import GPT2Config
from frozen_jax.models.lm import build_lm
from frozen_jax.models.masks import causal_mask, positions_from_mask, positions_from_segments, segment_mask
from tests.models.lm_cases import (
    CASES,
    FAST_COMPILE,
    GPT2,
    TOLERANCE,
    check_cache_and_padding,
    check_logits_and_gradient,
    look_up,
    pair,
)

VARIANTS = [case for case in CASES if case.startswith("gpt2")]


@pytest.mark.parametrize("case", VARIANTS)
def test_equals_torch(case: str) -> None:
    check_logits_and_gradient(case)


@pytest.mark.parametrize("case", VARIANTS)
def test_cache_and_padding(case: str) -> None:
    check_cache_and_padding(case)


def test_packed_texts_equal_separate_ones() -> None:
    model = pair("gpt2")
    tokens = np.random.default_rng(0).integers(3, 61, (1, 9))
    segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 2]])

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def packed_logits(embeddings: jax.Array) -> jax.Array:
        hidden, _ = model.module.apply(
            {"params": model.params},
            embeddings,
            positions=positions_from_segments(segments),
            mask=segment_mask(segments),
            method="stack",
        )
        return model.module.apply({"params": model.params}, hidden, method="logits")

    packed = packed_logits(look_up(model, tokens))
    for part in (slice(0, 4), slice(4, 9)):
        with torch.no_grad():
            alone = model.torch_model(torch.tensor(tokens[:, part]).long()).logits.numpy()
        np.testing.assert_allclose(packed[:, part], alone, atol=TOLERANCE, rtol=0)


def test_slots_and_padding_ids_read_a_row_of_the_table() -> None:
    """Negative ids mark image slots and padding: they must give finite vectors, which callers replace or mask."""
    model = pair("gpt2")
    rows = model.module.apply({"params": model.params}, jnp.asarray([[-2, -1, 0, 60]], jnp.int32), method="embed")
    table = np.asarray(model.params["embed"]["embedding"])
    np.testing.assert_array_equal(rows[0], table[[0, 0, 0, 60]])


NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def run_stack(module: Any, params: Any, embeddings: jax.Array, seeds: list[int | None]) -> list[np.ndarray]:
    """Returns the stack's results: for None without dropout and without a random key."""

    @functools.partial(jax.jit, static_argnames="deterministic", compiler_options=FAST_COMPILE)
    def run(params: Any, embeddings: jax.Array, rngs: Any, deterministic: bool) -> jax.Array:
        everything = jnp.ones(embeddings.shape[:2], bool)
        hidden, _ = module.apply(
            {"params": params},
            embeddings,
            positions=positions_from_mask(everything),
            mask=causal_mask(everything),
            deterministic=deterministic,
            rngs=rngs,
            method="stack",
        )
        return hidden

    keys = [None if seed is None else {"dropout": jax.random.key(seed)} for seed in seeds]
    return [np.asarray(run(params, embeddings, rngs, deterministic=rngs is None)) for rngs in keys]


def test_dropout_differs_between_layers() -> None:
    """Two layers that add 1, each dropped with rate 1/2, give sums of 0, 2 and 4; one mask for both gives 0 and 4."""
    config = GPT2Config.from_hf({**GPT2, **NO_DROPOUT, "resid_pdrop": 0.5})
    params = jax.tree.map(np.zeros_like, pair("gpt2").params)
    params["blocks"]["out"]["bias"] += 1.0
    params["final_norm"]["scale"] += 1.0
    (hidden,) = run_stack(build_lm(config), params, jnp.zeros((2, 8, config.width)), [0])
    assert {len(np.unique(row.round(3))) for row in hidden.reshape(-1, hidden.shape[-1])} == {3}


@pytest.mark.parametrize("rate", NO_DROPOUT)
def test_each_dropout_acts_in_training_only(rate: str) -> None:
    module = build_lm(GPT2Config.from_hf({**GPT2, **NO_DROPOUT, rate: 0.5}))
    params = pair("gpt2").params
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 32)), jnp.float32)
    still, first, again, other = run_stack(module, params, embeddings, [None, 1, 1, 2])
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - still).max() > 0.01
    (without,) = run_stack(build_lm(GPT2Config.from_hf({**GPT2, **NO_DROPOUT})), params, embeddings, [None])
    np.testing.assert_array_equal(still, without)


def test_initial_weights() -> None:
    config = GPT2Config.from_hf({**GPT2, "n_embd": 128, "n_layer": 8, "vocab_size": 1000})
    initialise = jax.jit(build_lm(config).init, compiler_options=FAST_COMPILE)
    params = jax.tree.map(np.asarray, initialise(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    for path, std in {
        "embed/embedding": 0.02,
        "blocks/qkv/kernel": 0.02,
        "blocks/up/kernel": 0.02,
        "blocks/out/kernel": 0.02 / 4,
        "blocks/down/kernel": 0.02 / 4,
    }.items():
        leaf = params
        for part in path.split("/"):
            leaf = leaf[part]
        assert leaf.std() == pytest.approx(std, rel=0.03), path
    assert not np.allclose(params["blocks"]["qkv"]["kernel"][0], params["blocks"]["qkv"]["kernel"][1])
    assert (params["blocks"]["qkv"]["bias"] == 0).all()
    assert (params["blocks"]["attention_norm"]["scale"] == 1).all()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("n_head", 5, "must divide n_embd = 32"),
        ("n_layer", 0, "at least 1"),
        ("n_layer", "two", "whole number"),
        ("n_layer", True, "whole number"),
        ("activation_function", "tanh", "must be one of gelu"),
        ("resid_pdrop", 1.0, "below 1"),
        ("layer_norm_epsilon", -1e-5, "at least 0"),
        ("scale_attn_weights", "yes", "true or false"),
        ("add_cross_attention", True, "another network"),
        ("tie_word_embeddings", False, "embedding table"),
        ("n_ctx", 512, "must equal n_positions = 48"),
        ("eos_token_id", -1, "token id"),
        ("bos_token_id", [1, 2], "one token id"),
        ("quantization_config", {"bits": 4}, "not understood"),
        ("alibi", True, "not understood"),
    ],
)
def test_unsupported_field_is_named(field: str, value: object, reason: str) -> None:
    with pytest.raises(UserError, match=rf"gpt2 model: {field} = .*{reason}"):
        GPT2Config.from_hf({**GPT2, field: value})


def test_published_config_is_read() -> None:
    """The fields that GPT-2's own files have, among them many without effect."""
    config = GPT2Config.from_hf(
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "bos_token_id": 50256,
            "embd_pdrop": 0.1,
            "eos_token_id": 50256,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 1600,
            "n_head": 25,
            "n_layer": 48,
            "n_positions": 1024,
            "n_special": 0,
            "output_past": True,
            "predict_special_tokens": True,
            "resid_pdrop": 0.1,
            "summary_activation": None,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        }
    )
    assert config == GPT2Config(width=1600, heads=25, layers=48, mlp_width=6400)
    assert (config.head_width, config.kv_heads, config.embed_width) == (64, 25, 1600)
    assert (config.bos_token_id, config.eos_token_id) == (50256, (50256,))
