"""Weights of any language model, in and out: the family's table chosen by its config.

Lives here: the choice. The tables are in `gpt2.py`, `opt.py`, `llama.py`, `bert.py`, how they are applied in
`tables.py`. Next in the data flow: `frozen_jax/language_model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from frozen_jax.convert.bert import NewNames, bert_table
from frozen_jax.convert.gpt2 import gpt2_table
from frozen_jax.convert.llama import llama_table
from frozen_jax.convert.opt import opt_table
from frozen_jax.convert.tables import Params, Table, export_tensors, import_tensors
from frozen_jax.models.bert import BERTConfig
from frozen_jax.models.gpt2 import GPT2Config
from frozen_jax.models.llama import LlamaConfig
from frozen_jax.models.lm import LMConfig
from frozen_jax.models.opt import OPTConfig

_TABLES: Mapping[type, Callable[[Any], Table]] = {
    GPT2Config: gpt2_table,
    OPTConfig: opt_table,
    LlamaConfig: llama_table,
    BERTConfig: bert_table,
}


def lm_table(config: LMConfig) -> Table:
    """Returns the table of a model's weights."""
    return _TABLES[type(config)](config)


def import_lm(config: LMConfig, tensors: Mapping[str, np.ndarray], *, dtype: Any) -> Params:
    """Returns our parameters on the host, from tensors with their published names (see `tables.import_tensors`)."""
    if isinstance(config, BERTConfig):
        tensors = NewNames(tensors)
    return import_tensors(lm_table(config), tensors, dtype=dtype)


def export_lm(config: LMConfig, params: Params) -> dict[str, np.ndarray]:
    """Returns tensors with their published names (see `tables.export_tensors`)."""
    return export_tensors(lm_table(config), params)
