"""Tiny random torch language models of every family and variant, ours with the same weights, what must be equal."""

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
from frozen_jax.models.lm import LMConfig, build_lm, init_cache, lm_config_from_hf
from frozen_jax.models.masks import cache_mask, causal_mask, positions_from_mask

torch.set_num_threads(1)  # its threads spin while they wait, which starves a busy machine

TOLERANCE = 1e-5
VOCABULARY = 61
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": 48,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    **SPECIAL,
}
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
    "llama_wide_heads": {
        **LLAMA,
        "head_dim": 12,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
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
    "qwen2": {
        **LLAMA,
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "sliding_window": 4,
        "use_sliding_window": False,
    },
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


def torch_logits_and_gradient(
    model: Pair, tokens: np.ndarray, mask: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    embeddings = model.torch_model.get_input_embeddings()(torch.tensor(tokens).long()).detach().requires_grad_()
    positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
    logits = model.torch_model(
        inputs_embeds=embeddings, attention_mask=torch.tensor(mask).long(), position_ids=positions
    ).logits
    (logits * torch.tensor(cotangent)).sum().backward()
    return logits.detach().numpy(), embeddings.grad.numpy()


def check_logits_and_gradient(case: str) -> None:
    """Compares logits, and the gradient with respect to input embeddings, with torch, on left-padded rows."""
    model = pair(case)
    tokens, mask = left_padded()
    cotangent = np.random.default_rng(1).normal(size=(*tokens.shape, model.config.vocab_size)).astype(np.float32)
    cotangent *= mask[:, :, None] / tokens.size
    expected, expected_gradient = torch_logits_and_gradient(model, tokens, mask, cotangent)

    @jax.jit
    def run(params, embeddings):
        def weighted(embeddings):
            logits = forward(model.module, params, embeddings, jnp.asarray(mask))
            return (logits * cotangent).sum(), logits

        gradient, logits = jax.grad(weighted, has_aux=True)(embeddings)
        return logits, gradient

    embeddings = model.module.apply({"params": model.params}, jnp.asarray(tokens), method="embed")
    logits, gradient = run(model.params, embeddings)
    assert expected[mask].std() > 0.3, "logits near zero would pass any absolute tolerance"
    assert np.abs(expected_gradient[mask]).max() > 1e-3
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(np.asarray(gradient), expected_gradient, atol=TOLERANCE, rtol=0)


def check_cache_and_padding(case: str) -> None:
    """Compares prefill and steps of left-padded rows with a cache, with each row alone without one."""
    model = pair(case)
    tokens, mask = left_padded()
    prompt, length = 16, tokens.shape[1]
    variables = {"params": model.params}
    embeddings = model.module.apply(variables, jnp.asarray(tokens), method="embed")
    positions = positions_from_mask(jnp.asarray(mask))
    cache = init_cache(model.config, batch=len(tokens), length=length + 3, dtype=jnp.float32)
    # Entries behind the end of the text are never to be seen: poison them.
    cache = jax.tree.map(lambda x: x + 1e4, cache)
    filled = jnp.pad(jnp.asarray(mask), ((0, 0), (0, 3)))

    @jax.jit
    def prefill(cache):
        return model.module.apply(
            variables,
            embeddings[:, :prompt],
            positions=positions[:, :prompt],
            mask=jnp.pad(causal_mask(jnp.asarray(mask[:, :prompt])), ((0, 0), (0, 0), (0, length + 3 - prompt))),
            cache=cache,
            cache_index=0,
            method="stack",
        )

    @jax.jit
    def step(cache, index):
        return model.module.apply(
            variables,
            jax.lax.dynamic_slice_in_dim(embeddings, index, 1, axis=1),
            positions=jax.lax.dynamic_slice_in_dim(positions, index, 1, axis=1),
            mask=cache_mask(filled, cache_index=index, queries=1),
            cache=cache,
            cache_index=index,
            method="stack",
        )

    hidden, cache = prefill(cache)
    pieces = [hidden]
    for index in range(prompt, length):
        hidden, cache = step(cache, jnp.int32(index))
        pieces.append(hidden)
    logits = model.module.apply(variables, jnp.concatenate(pieces, axis=1), method="logits")

    alone = jax.jit(lambda embeddings, mask: forward(model.module, model.params, embeddings, mask))
    for row in range(len(tokens)):
        # Padding on the right keeps one shape for all rows; what stands behind a text cannot change it.
        count = int(mask[row].sum())
        single = jnp.zeros_like(embeddings[:1]).at[0, :count].set(embeddings[row, length - count :])
        expected = alone(single, (jnp.arange(length) < count)[None, :])[0, :count]
        np.testing.assert_allclose(logits[row, length - count :], expected, atol=TOLERANCE, rtol=0)
