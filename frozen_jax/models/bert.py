"""BERT: reads a text in both directions and predicts no words; the text side of a fusion (`models/fusion.py`).

Lives here: its config and module. Weights' names in files: `convert/bert.py`. Built by `lm.py`, whose interface it has
but for `logits`: pooler and heads of published files are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.models.hf_config import FieldReader
from frozen_jax.models.layers import (
    ACTIVATIONS,
    Cache,
    DType,
    Embedding,
    LayerNorm,
    Projection,
    attend,
    stack_layers,
)
from frozen_jax.models.masks import causal_mask, positions_from_mask


@dataclass(frozen=True, kw_only=True)
class BERTConfig:
    """Hyperparameters of a BERT; the defaults are those of its config class in transformers (bert-base-uncased).

    Attributes:
        vocab_size: V.
        max_positions: longest text.
        width: D.
        layers: L.
        heads: N, divides the width.
        mlp_width: F.
        types: kinds of text that a position may be marked with; all of ours are of the first.
        activation: a name in `layers.ACTIVATIONS`.
        norm_epsilon: added to variances.
        init_std: standard deviation of initial weights.
        dropout: rate after embeddings, attention and MLP; the dropout rates act in training only.
        attention_dropout: rate on attention weights.
        bos_token_id, eos_token_id: none; [CLS] and [SEP] are known to the tokenizer.
        pad_token_id: kept for export; padding is masked, whatever its id.

    Source: Devlin et al. 2018, arXiv 1810.04805.
    """

    vocab_size: int = 30522
    max_positions: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    types: int = 2
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    init_std: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = 0

    @property
    def embed_width(self) -> int:
        """Width of what the model takes as input: the token embeddings'."""
        return self.width

    @property
    def kv_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.heads

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BERTConfig:
        """Reads a config.json.

        Raises:
            UserError: a field is missing, of the wrong type, or not supported.
        """
        fields = FieldReader(config)
        width = fields.integer("hidden_size", default=768)
        heads = fields.integer("num_attention_heads", default=12)
        if width % heads:
            raise fields.refuse("num_attention_heads", heads, f"it must divide hidden_size = {width}")
        fields.require("position_embedding_type", "absolute", reason="positions are learned, one vector each")
        fields.require("is_decoder", False, reason="a BERT reads in both directions")
        fields.require("add_cross_attention", False, reason="there is nothing beside the text to attend to")
        fields.ignore("classifier_dropout", "tie_word_embeddings")  # of heads that are not read
        result = cls(
            vocab_size=fields.integer("vocab_size", default=30522),
            max_positions=fields.integer("max_position_embeddings", default=512),
            width=width,
            layers=fields.integer("num_hidden_layers", default=12),
            heads=heads,
            mlp_width=fields.integer("intermediate_size", default=3072),
            types=fields.integer("type_vocab_size", default=2),
            activation=fields.choice("hidden_act", ACTIVATIONS, default="gelu"),
            norm_epsilon=fields.number("layer_norm_eps", default=1e-12),
            init_std=fields.number("initializer_range", default=0.02),
            dropout=fields.rate("hidden_dropout_prob", default=0.1),
            attention_dropout=fields.rate("attention_probs_dropout_prob", default=0.1),
            pad_token_id=fields.padding_id(default=0),
        )
        fields.finish()
        return result

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a config.json that transformers and `from_hf` read."""
        return {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp_width,
            "type_vocab_size": self.types,
            "hidden_act": self.activation,
            "layer_norm_eps": self.norm_epsilon,
            "initializer_range": self.init_std,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "pad_token_id": self.pad_token_id,
        }


class BERTBlock(nn.Module):
    """One layer: attention and MLP, each added to what it read and normalised after that."""

    config: BERTConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B S D"], layer: Int[Array, ""], mask: Bool[Array, "B S S"], deterministic: bool
    ) -> tuple[Float[Array, "B S D"], None]:
        """Returns the states after this layer; see `layers.stack_layers` for the arguments."""
        config, dtype, std = self.config, self.dtype, self.config.init_std
        heads_shape = (config.heads, config.head_width)
        dropout = nn.Dropout(config.dropout, deterministic=deterministic)
        query, key, value = (
            Projection("BSD,DNH->BSNH", (config.width, *heads_shape), 2, True, std, dtype, name=name)(hidden)
            for name in ("query", "key", "value")
        )
        attention_dropout = nn.Dropout(config.attention_dropout, deterministic=deterministic)
        mixed = attend(query, key, value, mask=mask, scale=config.head_width**-0.5, dropout=attention_dropout)
        out = Projection("BSNH,NHD->BSD", (*heads_shape, config.width), 1, True, std, dtype, name="out")(mixed)
        norm = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="attention_norm")
        hidden = norm(hidden + dropout(out))

        shape = (config.width, config.mlp_width)
        inner = Projection("BSD,DF->BSF", shape, 1, True, std, dtype, name="up")(hidden)
        inner = ACTIVATIONS[config.activation](inner)
        out = Projection("BSF,FD->BSD", shape[::-1], 1, True, std, dtype, name="down")(inner)
        return LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="mlp_norm")(hidden + dropout(out)), None


class BERT(nn.Module):
    """The text encoder.

    Attributes:
        config: hyperparameters.
        dtype: compute dtype.
        remat: "none", "full" or "dots", see `layers.stack_layers`.
        unroll: layers per step of the scan.
    """

    config: BERTConfig
    dtype: DType = jnp.float32
    remat: str = "none"
    unroll: int = 1

    def setup(self) -> None:
        """Declares the parts."""
        config, std = self.config, self.config.init_std
        self.embedding = Embedding(config.vocab_size, config.width, std, self.dtype, name="embed")
        self.positions = Embedding(config.max_positions, config.width, std, self.dtype)
        self.types = Embedding(config.types, config.width, std, self.dtype)
        self.embedding_norm = LayerNorm(config.width, config.norm_epsilon, dtype=self.dtype)
        self.blocks = stack_layers(BERTBlock, layers=config.layers, remat=self.remat, unroll=self.unroll)(
            config, self.dtype
        )
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns the last states of unpadded texts; it touches every parameter, hence serves `init`."""
        everything = jnp.ones(tokens.shape, bool)
        positions = positions_from_mask(everything)
        return self.stack(self.embed(tokens), positions=positions, mask=causal_mask(everything))[0]

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns token embeddings, without positions, kind and norm."""
        return self.embedding(tokens)

    def stack(
        self,
        embeddings: Float[Array, "B S D"],
        *,
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S S"],
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Returns the last hidden states; there is no cache, because what follows a word changes its state.

        Args:
            embeddings: of words.
            positions: of each word within its text.
            mask: as for the other families, who may see what stands before it; here both see each other.
            deterministic: without dropout.
        """
        kind = self.types(jnp.zeros_like(positions))
        hidden = self.embedding_norm(embeddings.astype(self.dtype) + self.positions(positions) + kind)
        hidden = self.dropout(hidden, deterministic=deterministic)
        layers = jnp.arange(self.config.layers, dtype=jnp.int32)
        hidden, _ = self.blocks(hidden, layers, mask | jnp.swapaxes(mask, 1, 2), deterministic)
        return hidden, None
