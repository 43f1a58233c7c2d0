"""The table of GPT-2's weights. What a table is: `tables.py`; the module: `models/gpt2.py`.

Published files store linear maps as [in, out], so that nothing is transposed; query, key and value are one matrix.
"""

from __future__ import annotations

from frozen_jax.convert.tables import LAYER, Rule, Table, norm_rules
from frozen_jax.models.gpt2 import GPT2Config


def gpt2_table(config: GPT2Config) -> Table:
    """Returns the table for one config."""
    width, heads, head_width, mlp_width = config.width, config.heads, config.head_width, config.mlp_width
    layer = f"h.{LAYER}."
    return Table(
        rules=(
            Rule("embed/embedding", "wte.weight", (config.vocab_size, width), (config.vocab_size, width)),
            Rule("positions/embedding", "wpe.weight", (config.max_positions, width), (config.max_positions, width)),
            *norm_rules("blocks/attention_norm", f"{layer}ln_1", width),
            Rule("blocks/qkv/kernel", f"{layer}attn.c_attn.weight", (width, 3, heads, head_width), (width, 3 * width)),
            Rule("blocks/qkv/bias", f"{layer}attn.c_attn.bias", (3, heads, head_width), (3 * width,)),
            Rule("blocks/out/kernel", f"{layer}attn.c_proj.weight", (heads, head_width, width), (width, width)),
            Rule("blocks/out/bias", f"{layer}attn.c_proj.bias", (width,), (width,)),
            *norm_rules("blocks/mlp_norm", f"{layer}ln_2", width),
            Rule("blocks/up/kernel", f"{layer}mlp.c_fc.weight", (width, mlp_width), (width, mlp_width)),
            Rule("blocks/up/bias", f"{layer}mlp.c_fc.bias", (mlp_width,), (mlp_width,)),
            Rule("blocks/down/kernel", f"{layer}mlp.c_proj.weight", (mlp_width, width), (mlp_width, width)),
            Rule("blocks/down/bias", f"{layer}mlp.c_proj.bias", (width,), (width,)),
            *norm_rules("final_norm", "ln_f", width),
        ),
        layers=config.layers,
        prefixes=("transformer.",),
        unprefixed=("lm_head.weight",),
        # Causal masks and the masking constant, which old versions of transformers saved as tensors.
        buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
        tied=("lm_head.weight", "wte.weight"),
    )
