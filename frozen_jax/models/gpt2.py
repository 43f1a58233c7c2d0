"""GPT-2: learned positions, LayerNorm before each part, one fused query/key/value projection, tied head.

Lives here: its config and module. Weights' names in files: `convert/gpt2.py`. Built by `lm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.models.hf_config import FieldReader, token_field
from frozen_jax.models.layers import (
    ACTIVATIONS,
    Cache,
    DType,
    Embedding,
    LayerNorm,
    Projection,
    attend,
    plain_logits,
    stack_layers,
    write_cache,
)


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Hyperparameters of a GPT-2; the defaults are those of its config class in transformers.

    Attributes:
        vocab_size: V.
        max_positions: longest text.
        width: D.
        layers: L.
        heads: N, divides the width.
        mlp_width: F.
        activation: a name in `layers.ACTIVATIONS`.
        norm_epsilon: added to variances.
        init_std: standard deviation of initial weights.
        scale_by_head_width: divide the scores by sqrt(H).
        scale_by_layer: divide the scores of layer i (from 0) by i + 1.
        embedding_dropout: rate after the embeddings; the dropout rates act in training only.
        residual_dropout: rate after attention and MLP.
        attention_dropout: rate on attention weights.
        bos_token_id: the id that begins a text, if any.
        eos_token_id: the ids that end one.
        pad_token_id: kept for export; padding is masked, whatever its id.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners".
    """

    vocab_size: int = 50257
    max_positions: int = 1024
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    scale_by_head_width: bool = True
    scale_by_layer: bool = False
    embedding_dropout: float = 0.1
    residual_dropout: float = 0.1
    attention_dropout: float = 0.1
    bos_token_id: int | None = 50256
    eos_token_id: tuple[int, ...] = (50256,)
    pad_token_id: int | None = None

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
    def from_hf(cls, config: Mapping[str, Any]) -> GPT2Config:
        """Reads a config.json.

        Raises:
            UserError: a field is missing, of the wrong type, or not supported.
        """
        fields = FieldReader(config)
        width = fields.integer("n_embd", default=768)
        heads = fields.integer("n_head", default=12)
        if width % heads:
            raise fields.refuse("n_head", heads, f"it must divide n_embd = {width}")
        positions = fields.integer("n_positions", default=1024)
        fields.require("n_ctx", positions, reason=f"it must equal n_positions = {positions}")
        fields.require("tie_word_embeddings", True, reason="the head of a GPT-2 is its embedding table")
        # We always compute scores and softmax in f32, which is what this asks for.
        fields.boolean("reorder_and_upcast_attn", default=False)
        fields.ignore("n_special", "predict_special_tokens", "summary_activation", "summary_first_dropout")
        fields.ignore("summary_proj_to_labels", "summary_type", "summary_use_proj")
        result = cls(
            vocab_size=fields.integer("vocab_size", default=50257),
            max_positions=positions,
            width=width,
            layers=fields.integer("n_layer", default=12),
            heads=heads,
            mlp_width=fields.optional_integer("n_inner") or 4 * width,
            activation=fields.choice("activation_function", ACTIVATIONS, default="gelu_new"),
            norm_epsilon=fields.number("layer_norm_epsilon", default=1e-5),
            init_std=fields.number("initializer_range", default=0.02),
            scale_by_head_width=fields.boolean("scale_attn_weights", default=True),
            scale_by_layer=fields.boolean("scale_attn_by_inverse_layer_idx", default=False),
            embedding_dropout=fields.rate("embd_pdrop", default=0.1),
            residual_dropout=fields.rate("resid_pdrop", default=0.1),
            attention_dropout=fields.rate("attn_pdrop", default=0.1),
            bos_token_id=fields.token_id("bos_token_id", default=50256),
            eos_token_id=fields.token_ids("eos_token_id", default=50256),
            pad_token_id=fields.padding_id(default=None),
        )
        fields.finish()
        return result

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a config.json that transformers and `from_hf` read."""
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": self.vocab_size,
            "n_positions": self.max_positions,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": None if self.mlp_width == 4 * self.width else self.mlp_width,
            "activation_function": self.activation,
            "layer_norm_epsilon": self.norm_epsilon,
            "initializer_range": self.init_std,
            "scale_attn_weights": self.scale_by_head_width,
            "scale_attn_by_inverse_layer_idx": self.scale_by_layer,
            "embd_pdrop": self.embedding_dropout,
            "resid_pdrop": self.residual_dropout,
            "attn_pdrop": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": token_field(self.eos_token_id),
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": True,
        }


class GPT2Block(nn.Module):
    """One layer: attention and MLP, each on a normalised copy of the residual stream."""

    config: GPT2Config
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B S D"], Cache | None],
        layer: Int[Array, ""],
        shared: dict[str, Any],
        deterministic: bool,
    ) -> tuple[tuple[Float[Array, "B S D"], Cache | None], None]:
        """Returns the residual stream and the cache after this layer; see `layers.stack_layers` for the arguments."""
        config, dtype = self.config, self.dtype
        hidden, cache = carry
        shape = (config.width, 3, config.heads, config.head_width)
        # Projections into the residual stream start smaller, so that its variance does not grow with depth.
        residual_std = config.init_std / (2 * config.layers) ** 0.5
        residual_dropout = nn.Dropout(config.residual_dropout, deterministic=deterministic)

        normed = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="attention_norm")(hidden)
        qkv = Projection("BSD,DCNH->BSCNH", shape, 3, True, config.init_std, dtype, name="qkv")(normed)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if cache is not None:
            cache, key, value = write_cache(cache, key, value, layer=layer, cache_index=shared["cache_index"])
        scale: Any = config.head_width**-0.5 if config.scale_by_head_width else 1.0
        if config.scale_by_layer:
            scale = scale / (layer + 1).astype(jnp.float32)
        attention_dropout = nn.Dropout(config.attention_dropout, deterministic=deterministic)
        mixed = attend(query, key, value, mask=shared["mask"], scale=scale, dropout=attention_dropout)
        out = Projection("BSNH,NHD->BSD", (*shape[2:], config.width), 1, True, residual_std, dtype, name="out")(mixed)
        hidden = hidden + residual_dropout(out)

        normed = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="mlp_norm")(hidden)
        mlp_shape = (config.width, config.mlp_width)
        inner = Projection("BSD,DF->BSF", mlp_shape, 1, True, config.init_std, dtype, name="up")(normed)
        inner = ACTIVATIONS[config.activation](inner)
        out = Projection("BSF,FD->BSD", mlp_shape[::-1], 1, True, residual_std, dtype, name="down")(inner)
        return (hidden + residual_dropout(out), cache), None


class GPT2(nn.Module):
    """The language model; see `lm.py` for the interface that all families share.

    Attributes:
        config: hyperparameters.
        dtype: compute dtype.
        remat: "none", "full" or "dots", see `layers.stack_layers`.
        unroll: layers per step of the scan.
    """

    config: GPT2Config
    dtype: DType = jnp.float32
    remat: str = "none"
    unroll: int = 1

    def setup(self) -> None:
        """Declares the parts."""
        config = self.config
        self.embedding = Embedding(config.vocab_size, config.width, config.init_std, self.dtype, name="embed")
        self.positions = Embedding(config.max_positions, config.width, config.init_std, self.dtype)
        self.blocks = stack_layers(GPT2Block, layers=config.layers, remat=self.remat, unroll=self.unroll)(
            config, self.dtype
        )
        self.final_norm = LayerNorm(config.width, config.norm_epsilon, dtype=self.dtype)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """Returns next-token logits of unpadded texts; it touches every parameter, hence serves `init`."""
        return plain_logits(self, tokens)

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns token embeddings, without positions."""
        return self.embedding(tokens)

    def stack(
        self,
        embeddings: Float[Array, "B S D"],
        *,
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S K"],
        cache: Cache | None = None,
        cache_index: Int[Array, ""] | int | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Returns the final normalised hidden states and the cache, written at `cache_index`."""
        config = self.config
        hidden = embeddings.astype(self.dtype) + self.positions(positions)
        hidden = self.dropout(hidden, deterministic=deterministic)
        shared = {"mask": mask, "cache_index": None if cache is None else jnp.asarray(cache_index, jnp.int32)}
        layers = jnp.arange(config.layers, dtype=jnp.int32)
        (hidden, cache), _ = self.blocks((hidden, cache), layers, shared, deterministic)
        return self.final_norm(hidden), cache

    def logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Returns f32 next-token logits of what `stack` returned."""
        return self.embedding.attend(hidden)
