"""The table of the prefix's weights, with the names of our own exports. What a table is: `tables.py`."""

from __future__ import annotations

from frozen_jax.convert.tables import Rule, Table, linear_rules, norm_rules
from frozen_jax.models.prefix import Prefix


def prefix_table(module: Prefix, *, features: int) -> Table:
    """Returns the table of one prefix, linear or an MLP, over pooled features of width E = `features`."""
    inputs = module.hidden if module.kind == "mlp" else features
    rules = linear_rules("projection", "projection", (inputs,), (module.length * module.width,), bias=True)
    if module.kind == "mlp":
        rules += linear_rules("hidden", "hidden", (features,), (inputs,), bias=True)
    if module.feature_norm:
        rules += norm_rules("feature_norm", "feature_norm", features)
    if module.layer_norm:
        rules.append(Rule("gain", "gain", (), (1,)))
    return Table(tuple(rules), layers=1, prefixes=("",), unprefixed=(), buffers="", tied=None)
