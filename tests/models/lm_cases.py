"""Tiny random language models in torch of every family and variant, and ours with the same weights."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from frozen_jax.convert.lm_weights import import_lm
from frozen_jax.models.lm import LMConfig, build_lm, lm_config_from_hf
from frozen_jax.models.masks import causal_mask, positions_from_mask

VOCABULARY = 61
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, **SPECIAL}
OPT = {
    "model_type": "opt",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 40,
    **SPECIAL,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **SPECIAL,
}
NEAR = {"original_max_position_embeddings": 8, "factor": 4.0}

CASES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2_by_layer": {
        **GPT2,
        "scale_attn_by_inverse_layer_idx": True,
        "activation_function": "gelu",
        "n_inner": 24,
        "reorder_and_upcast_attn": True,
    },
    "gpt2_unscaled": {**GPT2, "scale_attn_weights": False, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
    "opt": OPT,
    "opt_350m": {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "opt_plain": {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    "opt_old": {**OPT, "_remove_final_layer_norm": True},
    "llama": LLAMA,
    "llama_wide_heads": {**LLAMA, "head_dim": 12, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama_linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 500.0},
    "llama_llama3": {
        **LLAMA,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            **NEAR,
        },
    },
    "llama_yarn": {**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "beta_fast": 4.0, **NEAR}},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 40, "num_key_value_heads": 1},
    "qwen2": {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "sliding_window": 4, "use_sliding_window": False},
    "smollm3": {**LLAMA, "model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
}


@dataclass(frozen=True, eq=False)
class Pair:
    """The same model twice."""

    torch_model: Any
    config: LMConfig
    params: dict[str, Any]
    module: nn.Module


def build_torch(raw: dict[str, Any]) -> Any:
    """Builds a random model whose logits are of order one, so that absolute errors mean something."""
    config = transformers.AutoConfig.for_model(**raw)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                center = 1.0 if "weight" in name else 0.0
                parameter.copy_(center + 0.2 * torch.randn(parameter.shape))
            else:
                parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    return model


def numpy_tensors(model: Any) -> dict[str, np.ndarray]:
    """Returns a torch model's tensors by name, as arrays; a tied head is not there twice."""
    tied = model.config.tie_word_embeddings
    state = model.state_dict()
    return {name: t.detach().numpy().copy() for name, t in state.items() if not (tied and name == "lm_head.weight")}


@functools.cache
def pair(case: str) -> Pair:
    """Returns a case's torch model, and ours with its weights."""
    model = build_torch(CASES[case])
    config = lm_config_from_hf(CASES[case])
    params = jax.device_put(import_lm(config, numpy_tensors(model), dtype=jnp.float32))
    return Pair(model, config, params, build_lm(config))


def forward(module: Any, params: Any, embeddings: Any, input_mask: Any) -> jax.Array:
    """Returns our logits for padded rows."""
    hidden, _ = module.apply(
        {"params": params},
        embeddings,
        positions=positions_from_mask(input_mask),
        mask=causal_mask(input_mask),
        method="stack",
    )
    return module.apply({"params": params}, hidden, method="logits")


def left_padded(*, rows: int = 3, length: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B, S] and mask [B, S]: row i is padded by 4 i on the left."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY, (rows, length)).astype(np.int32)
    mask = np.arange(length)[None, :] >= 4 * np.arange(rows)[:, None]
    return np.where(mask, tokens, 0).astype(np.int32), mask
