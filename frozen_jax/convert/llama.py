"""The table of a Llama-type model's weights. What a table is: `tables.py`; the module: `models/llama.py`."""

from __future__ import annotations

from frozen_jax.convert.tables import LAYER, Rule, Table, linear_rules
from frozen_jax.models.llama import LlamaConfig


def llama_table(config: LlamaConfig) -> Table:
    """Returns the table for one config."""
    width, mlp_width = config.width, config.mlp_width
    query_shape, kv_shape = (config.heads, config.head_width), (config.kv_heads, config.head_width)
    vocabulary = (config.vocab_size, width)
    layer, qkv_bias, mlp_bias = f"layers.{LAYER}.", config.qkv_bias, config.mlp_bias
    rules = [
        Rule("embed/embedding", "embed_tokens.weight", vocabulary, vocabulary),
        Rule("blocks/attention_norm/scale", f"{layer}input_layernorm.weight", (width,), (width,)),
        *linear_rules("blocks/query", f"{layer}self_attn.q_proj", (width,), query_shape, bias=qkv_bias),
        *linear_rules("blocks/key", f"{layer}self_attn.k_proj", (width,), kv_shape, bias=qkv_bias),
        *linear_rules("blocks/value", f"{layer}self_attn.v_proj", (width,), kv_shape, bias=qkv_bias),
        *linear_rules("blocks/out", f"{layer}self_attn.o_proj", query_shape, (width,), bias=config.out_bias),
        Rule("blocks/mlp_norm/scale", f"{layer}post_attention_layernorm.weight", (width,), (width,)),
        *linear_rules("blocks/gate", f"{layer}mlp.gate_proj", (width,), (mlp_width,), bias=mlp_bias),
        *linear_rules("blocks/up", f"{layer}mlp.up_proj", (width,), (mlp_width,), bias=mlp_bias),
        *linear_rules("blocks/down", f"{layer}mlp.down_proj", (mlp_width,), (width,), bias=mlp_bias),
        Rule("final_norm/scale", "norm.weight", (width,), (width,)),
    ]
    if not config.tied:
        rules.append(Rule("head/embedding", "lm_head.weight", vocabulary, vocabulary))
    return Table(
        rules=tuple(rules),
        layers=config.layers,
        prefixes=("model.",),
        unprefixed=("lm_head.weight",),
        # The frequencies of rotary positions, which old versions of transformers saved as tensors.
        buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        tied=("lm_head.weight", "embed_tokens.weight") if config.tied else None,
    )
