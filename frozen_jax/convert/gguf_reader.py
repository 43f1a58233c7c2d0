"""GGUF files of Llama-type models as a weight source: config, tensors under Hugging Face names, tokenizer.

Lives here: what a Llama-type file's metadata and tensors mean. Not here: the container and its number formats
(`gguf_format.py`), our parameters (the tables of `convert/`, which take what this returns) and the network
(`models/llama.py`). Next in the data flow: `language_model.py`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frozen_jax.convert.gguf_format import Metadata, StoredTensor, read_container
from frozen_jax.errors import UserError
from frozen_jax.tokenizer import Tokenizer, build_byte_level_bpe

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""Tensors outside the layers: name in the file → name in transformers."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensors of a layer: blk.<layer>.<name>.weight → model.layers.<layer>.<name>.weight."""

Q_PROJ, K_PROJ = "self_attn.q_proj.weight", "self_attn.k_proj.weight"
"""Ends of the names of the tensors whose rows llama.cpp reorders."""

NORMAL, CONTROL = 1, 3
"""Kinds of tokens."""


def read_gguf(path: str | Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray], Tokenizer]:
    """Reads a Llama-type GGUF file.

    Returns:
        The fields of a Hugging Face `config.json`; the tensors under the names of transformers' LlamaForCausalLM, f32,
        each read from the file anew when it is asked for; the tokenizer.

    Raises:
        UserError: the file cannot be read, is truncated or contradicts itself, or holds something that this project
            does not support; the message names it.
    """
    path = Path(path)
    metadata, stored, data = read_container(path)
    config = _build_config(metadata, stored)
    tokenizer = _build_tokenizer(metadata)
    if tokenizer.vocab_size != config["vocab_size"]:
        raise UserError(
            f"{path}: has {tokenizer.vocab_size} tokens and {config['vocab_size']} embeddings, which must agree; "
            f"the file is damaged, fetch it again"
        )
    renamed = {_rename(path, name): tensor for name, tensor in stored.items()}
    _check_shapes(path, renamed, config)
    rotated = {name: _count_heads(config, name) for name in renamed if name.endswith((Q_PROJ, K_PROJ))}
    return config, _Tensors(data, renamed, rotated=rotated), tokenizer


class _Tensors(Mapping[str, np.ndarray]):
    """Tensors by name; `rotated` has the number of heads of those whose rows are in the order of llama.cpp's RoPE."""

    def __init__(self, data: mmap.mmap, stored: Mapping[str, StoredTensor], *, rotated: Mapping[str, int]) -> None:
        self._data = data
        self._stored = stored
        self._rotated = rotated

    def __getitem__(self, name: str) -> np.ndarray:
        weights = self._stored[name].read(self._data)
        if name not in self._rotated:
            return weights
        # Within a head the file pairs the rows (0, 1), (2, 3), … for rotation, transformers (0, H/2), (1, H/2 + 1), …
        pairs = weights.reshape(self._rotated[name], -1, 2, weights.shape[1])
        return pairs.swapaxes(1, 2).reshape(weights.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _rename(path: Path, name: str) -> str:
    layer = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.weight", name)
    if layer and layer[2] in LAYER_NAMES:
        return f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.weight"
    if name not in NAMES:
        raise UserError(f"{path}: tensor {name[:80]!r} is not part of a Llama-type model that this project supports")
    return NAMES[name]


def _check_shapes(path: Path, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Refuses sizes in the metadata that the tensors do not have, before anything is allocated from the metadata."""
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    if len(layers) != config["num_hidden_layers"]:
        raise UserError(
            f"{path}: llama.block_count = {config['num_hidden_layers']}, but {len(layers)} layers have tensors; "
            f"fetch the file again"
        )
    width, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    for name, tensor in tensors.items():
        part = ".".join(name.split(".")[-3:])
        rows = _count_heads(config, name) * config["head_dim"]
        expected = {
            "model.embed_tokens.weight": (vocab, width),
            "lm_head.weight": (vocab, width),
            Q_PROJ: (rows, width),
            K_PROJ: (rows, width),
            "self_attn.v_proj.weight": (rows, width),
            "self_attn.o_proj.weight": (width, rows),
            "mlp.gate_proj.weight": (mlp, width),
            "mlp.up_proj.weight": (mlp, width),
            "mlp.down_proj.weight": (width, mlp),
        }.get(part, (width,))
        if tensor.shape != expected:
            raise UserError(f"{path}: {name} has shape {tensor.shape}, must be {expected}; fetch the file again")


def _count_heads(config: Mapping[str, Any], name: str) -> int:
    keys = name.endswith((K_PROJ, "self_attn.v_proj.weight"))
    return int(config["num_key_value_heads" if keys else "num_attention_heads"])


def _build_config(metadata: Metadata, stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Translates the metadata; a llama.* key that is not known here is an error."""
    architecture = metadata.get("general.architecture", str)
    if architecture != "llama":
        raise UserError(f"{metadata.path}: general.architecture = {architecture!r} is not supported, only 'llama'")
    if "token_embd.weight" not in stored:
        raise UserError(f"{metadata.path}: has no tensor token_embd.weight; the file is damaged, fetch it again")
    width = metadata.size("llama.embedding_length")
    heads = metadata.size("llama.attention.head_count")
    head_width = metadata.size("llama.attention.key_length", default=max(width // heads, 1))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": metadata.size("llama.vocab_size", default=stored["token_embd.weight"].shape[0]),
        "hidden_size": width,
        "intermediate_size": metadata.size("llama.feed_forward_length"),
        "num_hidden_layers": metadata.size("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size("llama.attention.head_count_kv", default=heads),
        "head_dim": head_width,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.size("llama.context_length"),
        "rms_norm_eps": metadata.get("llama.attention.layer_norm_rms_epsilon", float),
        "rope_theta": metadata.get("llama.rope.freq_base", float, default=10000.0),
        "tie_word_embeddings": "output.weight" not in stored,
        "bos_token_id": metadata.token_id("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.token_id("tokenizer.ggml.eos_token_id"),
    }
    scaling = metadata.get("llama.rope.scaling.type", str, default="none")
    if scaling == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": metadata.get("llama.rope.scaling.factor", float)}
    elif scaling != "none":
        raise UserError(
            f"{metadata.path}: llama.rope.scaling.type = {scaling!r} is not supported, only none and linear"
        )
    metadata.require("llama.rope.dimension_count", head_width, reason="every dimension of a head must be rotated")
    metadata.require("llama.attention.value_length", head_width, reason="keys and values must be equally wide")
    metadata.require("llama.expert_count", 0, reason="the model must not be a mixture of experts")
    metadata.require("llama.expert_used_count", 0, reason="the model must not be a mixture of experts")
    metadata.finish("llama.")
    return config


def _build_tokenizer(metadata: Metadata) -> Tokenizer:
    for key, supported in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")):
        value = metadata.get(key, str)
        if value != supported:
            raise UserError(f"{metadata.path}: {key} = {value[:80]!r} is not supported, only {supported!r}")
    metadata.require("tokenizer.ggml.add_space_prefix", False, reason="text is read as it stands")
    tokens = [str(token) for token in metadata.get("tokenizer.ggml.tokens", list)]
    kinds = metadata.get("tokenizer.ggml.token_type", list)
    merges = [str(merge).split(" ") for merge in metadata.get("tokenizer.ggml.merges", list)]
    if len(kinds) != len(tokens) or not set(kinds) <= {NORMAL, CONTROL} or any(len(merge) != 2 for merge in merges):
        raise UserError(
            f"{metadata.path}: each of the {len(tokens)} tokens must have a type, {NORMAL} (normal) or {CONTROL} "
            f"(control), and each merge must be of two tokens; other tokenizers are not supported"
        )
    backend = build_byte_level_bpe(
        {token: number for number, token in enumerate(tokens)},
        [(left, right) for left, right in merges],
        special_tokens=[token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL],
        split_digits=True,
        origin=str(metadata.path),
    )
    bos, eos = (metadata.token_id(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    try:
        return Tokenizer(backend, bos_id=bos, eos_id=eos)
    except UserError as error:
        raise UserError(f"{metadata.path}: {error}") from None
