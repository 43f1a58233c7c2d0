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
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # halves the time of these tests, which compile more than they run
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
TIED = {"tie_word_embeddings": True}
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


def look_up(model: Pair, tokens: np.ndarray) -> np.ndarray:
    """Returns token embeddings without compiling anything."""
    return np.asarray(model.params["embed"]["embedding"])[tokens]


def check_logits_and_gradient(case: str) -> None:
    """Compares logits, and the gradient with respect to input embeddings, with torch, on left-padded rows."""
    model = pair(case)
    tokens, mask = left_padded()
    cotangent = np.random.default_rng(1).normal(size=(*tokens.shape, VOCABULARY)).astype(np.float32)
    cotangent *= mask[:, :, None] / tokens.size

    embeddings = model.torch_model.get_input_embeddings()(torch.tensor(tokens).long()).detach().requires_grad_()
    positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
    attention_mask = torch.tensor(mask).long()
    torch_logits = model.torch_model(
        inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=positions
    ).logits
    (torch_logits * torch.tensor(cotangent)).sum().backward()
    expected, expected_gradient = torch_logits.detach().numpy(), embeddings.grad.numpy()

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params: Any, embeddings: Any) -> tuple[jax.Array, jax.Array]:
        def weighted(embeddings: Any) -> tuple[jax.Array, jax.Array]:
            logits = forward(model.module, params, embeddings, jnp.asarray(mask))
            return (logits * cotangent).sum(), logits

        gradient, logits = jax.grad(weighted, has_aux=True)(embeddings)
        return logits, gradient

    logits, gradient = run(model.params, look_up(model, tokens))
    assert expected[mask].std() > 0.3, "logits near zero would pass any absolute tolerance"
    assert np.abs(expected_gradient[mask]).max() > 1e-3
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(np.asarray(gradient), expected_gradient, atol=TOLERANCE, rtol=0)


def check_cache_and_padding(case: str) -> None:
    """Compares prefill and four steps of left-padded rows with a cache, with torch on each row alone without one."""
    model = pair(case)
    tokens, mask = left_padded()
    prompt, length, size = 16, tokens.shape[1], tokens.shape[1] + 3
    embeddings = look_up(model, tokens)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0).astype(np.int32)
    empty = jax.eval_shape(lambda: init_cache(model.config, batch=len(tokens), length=size, dtype=jnp.float32))
    # Entries behind the end of the text are never to be seen: poison them.
    cache = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e4, leaf.dtype), empty)
    filled = np.pad(mask, ((0, 0), (0, size - length)))

    def run(cache: Any, embeddings: Any, positions: Any, mask: Any, index: Any) -> tuple[jax.Array, Any]:
        hidden, cache = model.module.apply(
            {"params": model.params},
            embeddings,
            positions=positions,
            mask=mask,
            cache=cache,
            cache_index=index,
            method="stack",
        )
        return model.module.apply({"params": model.params}, hidden, method="logits"), cache

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def prefill(cache: Any, embeddings: Any, positions: Any, input_mask: Any) -> tuple[jax.Array, Any]:
        seen = jnp.pad(causal_mask(input_mask), ((0, 0), (0, 0), (0, size - prompt)))
        return run(cache, embeddings, positions, seen, 0)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def step(cache: Any, embeddings: Any, positions: Any, filled: Any, index: Any) -> tuple[jax.Array, Any]:
        return run(cache, embeddings, positions, cache_mask(filled, cache_index=index, queries=1), index)

    logits, cache = prefill(cache, embeddings[:, :prompt], positions[:, :prompt], mask[:, :prompt])
    pieces = [logits]
    for index in range(prompt, length):
        here = slice(index, index + 1)
        logits, cache = step(cache, embeddings[:, here], positions[:, here], filled, jnp.int32(index))
        pieces.append(logits)
    logits = np.concatenate(pieces, axis=1)

    for row in range(len(tokens)):
        with torch.no_grad():
            expected = model.torch_model(torch.tensor(tokens[row : row + 1, mask[row]]).long()).logits.numpy()[0]
        np.testing.assert_allclose(logits[row, mask[row]], expected, atol=TOLERANCE, rtol=0)
