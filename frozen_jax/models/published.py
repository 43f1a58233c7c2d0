"""Shapes of published language models by their hub ids, so that tools can plan a run without a hub or its weights.

Each entry has the fields of the model's config.json that decide shapes; a run reads the whole file beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads}


def _opt(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        **more,
    }


def _llama(family: str, vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> Any:
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


_TIED = {"tie_word_embeddings": True}

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "facebook/opt-125m": _opt(768, 12, 12),
    "facebook/opt-350m": _opt(1024, 24, 16, do_layer_norm_before=False, word_embed_proj_dim=512),
    "facebook/opt-1.3b": _opt(2048, 24, 32),
    "facebook/opt-2.7b": _opt(2560, 32, 32),
    "facebook/opt-6.7b": _opt(4096, 32, 32),
    "facebook/opt-13b": _opt(5120, 40, 40),
    "facebook/opt-30b": _opt(7168, 48, 56),
    "facebook/opt-66b": _opt(9216, 64, 72),
    "HuggingFaceTB/SmolLM2-135M": _llama("llama", 49152, 576, 1536, 30, 9, 3, **_TIED),
    "HuggingFaceTB/SmolLM2-360M": _llama("llama", 49152, 960, 2560, 32, 15, 5, **_TIED),
    "HuggingFaceTB/SmolLM2-1.7B": _llama("llama", 49152, 2048, 8192, 24, 32, 32, **_TIED),
    "HuggingFaceTB/SmolLM3-3B": _llama("smollm3", 128256, 2048, 11008, 36, 16, 4),
    "TinyLlama/TinyLlama_v1.1": _llama("llama", 32000, 2048, 5632, 22, 32, 4),
    "meta-llama/Llama-2-7b-hf": _llama("llama", 32000, 4096, 11008, 32, 32, 32),
    "meta-llama/Meta-Llama-3-8B": _llama("llama", 128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Meta-Llama-3-70B": _llama("llama", 128256, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.2-1B": _llama("llama", 128256, 2048, 8192, 16, 32, 8, head_dim=64, **_TIED),
    "mistralai/Mistral-7B-v0.1": _llama("mistral", 32000, 4096, 14336, 32, 32, 8),
    "Qwen/Qwen2-0.5B": _llama("qwen2", 151936, 896, 4864, 24, 14, 2, **_TIED),
    "Qwen/Qwen2-7B": _llama("qwen2", 152064, 3584, 18944, 28, 28, 4),
}
"""Hub id → fields of config.json."""
