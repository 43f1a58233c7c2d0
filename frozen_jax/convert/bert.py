"""The table of BERT's weights. What a table is: `tables.py`; the module: `models/bert.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from frozen_jax.convert.tables import LAYER, Rule, Table, linear_rules, norm_rules
from frozen_jax.models.bert import BERTConfig


def bert_table(config: BERTConfig) -> Table:
    """Returns the table for one config; the pooler and the heads of its pre-training are passed over."""
    width, heads_shape = config.width, (config.heads, config.head_width)
    layer = f"encoder.layer.{LAYER}."
    rules = [
        Rule(f"{ours}/embedding", f"embeddings.{theirs}_embeddings.weight", (entries, width), (entries, width))
        for ours, theirs, entries in (
            ("embed", "word", config.vocab_size),
            ("positions", "position", config.max_positions),
            ("types", "token_type", config.types),
        )
    ]
    rules += norm_rules("embedding_norm", "embeddings.LayerNorm", width)
    for name in ("query", "key", "value"):
        rules += linear_rules(f"blocks/{name}", f"{layer}attention.self.{name}", (width,), heads_shape, bias=True)
    rules += linear_rules("blocks/out", f"{layer}attention.output.dense", heads_shape, (width,), bias=True)
    rules += norm_rules("blocks/attention_norm", f"{layer}attention.output.LayerNorm", width)
    rules += linear_rules("blocks/up", f"{layer}intermediate.dense", (width,), (config.mlp_width,), bias=True)
    rules += linear_rules("blocks/down", f"{layer}output.dense", (config.mlp_width,), (width,), bias=True)
    rules += norm_rules("blocks/mlp_norm", f"{layer}output.LayerNorm", width)
    return Table(
        rules=tuple(rules),
        layers=config.layers,
        prefixes=("bert.",),
        unprefixed=(),
        buffers=r"embeddings\.position_ids|pooler\..*|cls\..*|classifier\..*",
        tied=None,
    )


class NewNames(Mapping[str, np.ndarray]):
    """Tensors of a BERT with the norms' names of today: files of 2018, such as bert-base-uncased's, have others."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors
        old = {".gamma": ".weight", ".beta": ".bias"}
        self._names = {}
        for name in tensors:
            stem, dot, last = name.rpartition(".")
            self._names[stem + old.get(dot + last, dot + last)] = name

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
