from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from frozen_jax.errors import UserError
from frozen_jax.models.llama import LlamaConfig
from frozen_jax.models.rope import Rope, rope_angles, rotate
from tests.models.lm_cases import CASES, LLAMA, check_cache_and_padding, check_logits_and_gradient, pair

SIZES = {name: value for name, value in LLAMA.items() if name != "model_type"}
VARIANTS = [case for case in CASES if not case.startswith(("gpt2", "opt"))]


@pytest.mark.parametrize("case", VARIANTS)
def test_equals_torch(case: str) -> None:
    check_logits_and_gradient(case)


@pytest.mark.parametrize("case", VARIANTS)
def test_cache_and_padding(case: str) -> None:
    check_cache_and_padding(case)


SCALINGS = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn_smooth": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
        "truncate": False,
    },
    "yarn_stated": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 0.9,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_at_full_size_equal_torch(name: str) -> None:
    stated = SCALINGS[name]
    raw = {**LLAMA, "head_dim": 128, "max_position_embeddings": 131072, "rope_parameters": stated}
    expected, scale = ROPE_INIT_FUNCTIONS[stated["rope_type"]](transformers.LlamaConfig(**raw), torch.device("cpu"))
    rope = LlamaConfig.from_hf(raw).rope
    frequencies, ours = rope.frequencies(128)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
    assert ours == pytest.approx(scale, rel=1e-12)
    assert Rope.from_hf({"rope_parameters": rope.to_hf()}, default_theta=1.0, max_positions=7) == rope


def test_rotation_as_defined() -> None:
    """Dimension i and i + H/2 turn by position x theta^(-2i/H): position 1, H = 4, theta = 100 turns by 1 and 0.1."""
    cosines, sines = rope_angles(Rope(theta=100.0), jnp.asarray([[1]]), 4)
    turned = rotate(jnp.asarray([[[[1.0, 0.0, 0.0, 2.0]]]]), cosines, sines)[0, 0, 0]
    expected = [np.cos(1.0), -2 * np.sin(0.1), np.sin(1.0), 2 * np.cos(0.1)]
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_layer_without_rope_does_not_know_positions() -> None:
    """Of SmolLM3's layers those marked 0 see no positions; with all of them marked, order before a token is lost."""
    assert LlamaConfig.from_hf(CASES["smollm3"]).rope_layers == (True, False, True)
    by_interval = {**CASES["smollm3"], "num_hidden_layers": 8, "no_rope_layers": None, "no_rope_layer_interval": 4}
    assert LlamaConfig.from_hf(by_interval).rope_layers == (True, True, True, False) * 2


def test_mistral_is_limited_to_its_window() -> None:
    """Within the window a sliding window hides nothing; beyond it this model would be another one."""
    assert pair("mistral").config.max_positions == 40
    assert LlamaConfig.from_hf({**CASES["mistral"], "sliding_window": None}).max_positions == 48


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "smollm3"])
def test_a_window_left_out_is_that_of_transformers(model_type: str) -> None:
    assumed = transformers.AutoConfig.for_model(model_type, **SIZES).sliding_window
    assert LlamaConfig.from_hf({**SIZES, "model_type": model_type}).window == (assumed or 0)


def test_older_spelling_of_rope_is_the_same() -> None:
    llama3 = SCALINGS["llama3"]
    theta = {"rope_theta": llama3["rope_theta"]}
    scaling = {name: value for name, value in llama3.items() if name != "rope_theta"}
    new = LlamaConfig.from_hf({**LLAMA, "rope_parameters": llama3})
    assert LlamaConfig.from_hf({**LLAMA, **theta, "rope_scaling": scaling}) == new
    renamed = {"type" if name == "rope_type" else name: value for name, value in scaling.items()}
    assert LlamaConfig.from_hf({**LLAMA, **theta, "rope_scaling": renamed}) == new


@pytest.mark.parametrize(
    ("model_type", "field", "value", "reason"),
    [
        ("llama", "num_key_value_heads", 3, "must divide num_attention_heads = 4"),
        ("llama", "num_attention_heads", 6, "must divide hidden_size = 32"),
        ("llama", "head_dim", 7, "must be even"),
        ("llama", "hidden_act", "gelu_python", "must be one of"),
        ("llama", "vocab_size", None, "at least 1"),
        ("llama", "max_position_embeddings", 2**63, "at most 64 bits"),
        ("llama", "rms_norm_eps", 10**400, "finite"),
        ("llama", "rms_norm_eps", math.nan, "finite"),
        ("llama", "rope_interleaved", True, "half a head apart"),
        ("llama", "sliding_window", 16, "not understood"),
        ("llama", "quantization_config", {}, "not understood"),
        ("llama", "auto_map", {"AutoModel": "modeling.X"}, "not understood"),
        ("mistral", "attention_bias", True, "not understood"),
        ("qwen2", "use_sliding_window", True, "not built here"),
        ("qwen2", "layer_types", ["full_attention", "sliding_attention"], "only full_attention"),
        ("qwen2", "layer_types", 5, "only full_attention"),
        ("qwen2", "layer_types", [[]], "only full_attention"),
        ("qwen2", "use_mrope", True, "not built here"),
        ("smollm3", "num_hidden_layers", 2**40, "at most 100000"),
        ("smollm3", "no_rope_layers", [1], "list of 2"),
        ("smollm3", "no_rope_layers", [1, 2], "list of 2"),
    ],
)
def test_unsupported_field_is_named(model_type: str, field: str, value: object, reason: str) -> None:
    with pytest.raises(UserError, match=rf"{model_type} model: {field} = .*{reason}"):
        LlamaConfig.from_hf({**LLAMA, "model_type": model_type, field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0 must be a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, "beta_fast = 1 is not a field"),
        ({"rope_parameters": {"rope_theta": "big"}}, "theta = 'big' must be a number"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": [1]}, "must be an object"),
        (
            {"rope_scaling": "abc", "rope_parameters": {"rope_type": "default"}},
            "rope_scaling = 'abc' must be an object",
        ),
        ({"rope_scaling": {"type": ["yarn"], "factor": 2.0}}, "rope_type = .*'yarn'.* is not supported"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}}, "_embeddings = 0 must be a number"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": "64"}}, "_embeddings = '64' must be a"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0.5}}, "_embeddings = 0.5 counts pos"),
        (
            {"rope_scaling": {**SCALINGS["llama3"], "original_max_position_embeddings": 2**63}},
            "_embeddings = 9223372036854775808 counts positions",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor = 10{400} must be .* finite"),
        ({"rope_scaling": {"type": "linear", "factor": math.nan}}, "factor = nan must be .* finite"),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "factor = inf must be .* finite"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-60}}, "factor = 1e-60 must be .* finite"),
        ({"rope_theta": True}, "theta = True must be a number"),
        ({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_theta = 1.0 must be above 1"),
        (
            {"rope_scaling": {**SCALINGS["llama3"], "low_freq_factor": 4.0}},
            "high_freq_factor = 4.0 must be above low_freq_factor = 4.0",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "contradict each other",
        ),
    ],
)
def test_unsupported_rope_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LlamaConfig.from_hf({**LLAMA, **fields})


def test_published_config_is_read() -> None:
    """The fields of SmolLM2-135M-Instruct's own file, some of which only its authors' tools use."""
    config = LlamaConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 576,
            "initializer_range": 0.041666666666666664,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pad_token_id": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
            "transformers_version": "4.42.3",
            "use_cache": True,
            "vocab_size": 49152,
        }
    )
    assert (config.head_width, config.rope, config.max_positions) == (64, Rope(theta=1e5), 8192)
    assert (config.qkv_bias, config.out_bias, config.mlp_bias, config.tied) == (False, False, False, True)
