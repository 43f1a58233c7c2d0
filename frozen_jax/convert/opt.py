"""The table of OPT's weights. What a table is: `tables.py`; the module: `models/opt.py`."""

from __future__ import annotations

from frozen_jax.convert.tables import LAYER, Rule, Table, linear_rules, norm_rules
from frozen_jax.models.opt import POSITION_OFFSET, OPTConfig


def opt_table(config: OPTConfig) -> Table:
    """Returns the table for one config."""
    width, embed_width, mlp_width = config.width, config.embed_width, config.mlp_width
    heads_shape = (config.heads, config.head_width)
    vocabulary = (config.vocab_size, embed_width)
    positions = (config.max_positions + POSITION_OFFSET, width)
    layer, bias = f"layers.{LAYER}.", config.use_bias
    rules = [
        Rule("embed/embedding", "embed_tokens.weight", vocabulary, vocabulary),
        Rule("positions/embedding", "embed_positions.weight", positions, positions),
    ]
    if embed_width != width:
        rules += linear_rules("project_in", "project_in", (embed_width,), (width,), bias=False)
        rules += linear_rules("project_out", "project_out", (width,), (embed_width,), bias=False)
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        rules += linear_rules(f"blocks/{ours}", f"{layer}self_attn.{theirs}", (width,), heads_shape, bias=bias)
    rules += linear_rules("blocks/out", f"{layer}self_attn.out_proj", heads_shape, (width,), bias=bias)
    rules += linear_rules("blocks/up", f"{layer}fc1", (width,), (mlp_width,), bias=bias)
    rules += linear_rules("blocks/down", f"{layer}fc2", (mlp_width,), (width,), bias=bias)
    if config.norm_affine:
        rules += norm_rules("blocks/attention_norm", f"{layer}self_attn_layer_norm", width)
        rules += norm_rules("blocks/mlp_norm", f"{layer}final_layer_norm", width)
        if config.final_norm:
            rules += norm_rules("final_norm", "final_layer_norm", width)
    return Table(
        rules=tuple(rules),
        layers=config.layers,
        prefixes=("model.decoder.", "decoder."),
        unprefixed=("lm_head.weight",),
        buffers="",
        tied=("lm_head.weight", "embed_tokens.weight"),
    )
