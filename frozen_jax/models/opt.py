"""OPT: learned positions that start at row 2, LayerNorm before or (350M) after each part, embeddings of another width.

Lives here: its config and module. Weights' names in files: `convert/opt.py`. Built by `lm.py`.
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

POSITION_OFFSET = 2
"""Row of the position table that the first token reads; the rows before it were meant for padding."""

NORM_EPSILON = 1e-5
"""Added to variances; OPT's config has no field for it."""


@dataclass(frozen=True, kw_only=True)
class OPTConfig:
    """Hyperparameters of an OPT; the defaults are those of its config class in transformers.

    Attributes:
        vocab_size: V.
        max_positions: longest text.
        embed_width: width of the token embeddings and of the head; projected where it is not the layers'.
        width: D, of the layers.
        layers: L.
        heads: N, divides the width.
        mlp_width: F.
        activation: a name in `layers.ACTIVATIONS`.
        init_std: standard deviation of initial weights.
        norm_first: normalise before attention and MLP, not after.
        final_norm: normalise once more after the last layer; only with norm_first.
        norm_affine: norms have a scale and a bias.
        use_bias: projections of the layers have a bias.
        dropout: rate after attention and MLP; the dropout rates act in training only.
        attention_dropout: rate on attention weights.
        bos_token_id: the id that begins a text, if any.
        eos_token_id: the ids that end one.
        pad_token_id: kept for export; padding is masked, whatever its id.

    Source: Zhang et al. 2022, arXiv 2205.01068.
    """

    vocab_size: int = 50272
    max_positions: int = 2048
    embed_width: int = 768
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "relu"
    init_std: float = 0.02
    norm_first: bool = True
    final_norm: bool = True
    norm_affine: bool = True
    use_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    bos_token_id: int | None = 2
    eos_token_id: tuple[int, ...] = (2,)
    pad_token_id: int | None = 1

    @property
    def kv_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.heads

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> OPTConfig:
        """Reads a config.json.

        Raises:
            UserError: a field is missing, of the wrong type, or not supported.
        """
        fields = FieldReader(config)
        width = fields.integer("hidden_size", default=768)
        heads = fields.integer("num_attention_heads", default=12)
        if width % heads:
            raise fields.refuse("num_attention_heads", heads, f"it must divide hidden_size = {width}")
        fields.require("tie_word_embeddings", True, reason="the head of an OPT is its embedding table")
        fields.require("layerdrop", 0, 0.0, reason="dropping whole layers in training is not built here")
        fields.require("activation_dropout", 0, 0.0, reason="dropout inside the MLP is not built here")
        fields.require("scale_embeddings", False, reason="embeddings are used as they are")
        fields.require("learned_embeddings", True, reason="positions are learned")
        norm_first = fields.boolean("do_layer_norm_before", default=True)
        no_final_norm = fields.boolean("_remove_final_layer_norm", default=False)
        result = cls(
            vocab_size=fields.integer("vocab_size", default=50272),
            max_positions=fields.integer("max_position_embeddings", default=2048),
            embed_width=fields.optional_integer("word_embed_proj_dim") or width,
            width=width,
            layers=fields.integer("num_hidden_layers", default=12),
            heads=heads,
            mlp_width=fields.integer("ffn_dim", default=3072),
            activation=fields.choice("activation_function", ACTIVATIONS, default="relu"),
            init_std=fields.number("init_std", default=0.02),
            norm_first=norm_first,
            final_norm=norm_first and not no_final_norm,
            norm_affine=fields.boolean("layer_norm_elementwise_affine", default=True),
            use_bias=fields.boolean("enable_bias", default=True),
            dropout=fields.rate("dropout", default=0.1),
            attention_dropout=fields.rate("attention_dropout", default=0.0),
            bos_token_id=fields.token_id("bos_token_id", default=2),
            eos_token_id=fields.token_ids("eos_token_id", default=2),
            pad_token_id=fields.padding_id(default=1),
        )
        fields.finish()
        return result

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a config.json that transformers and `from_hf` read."""
        return {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "word_embed_proj_dim": self.embed_width,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "ffn_dim": self.mlp_width,
            "activation_function": self.activation,
            "init_std": self.init_std,
            "do_layer_norm_before": self.norm_first,
            "_remove_final_layer_norm": self.norm_first and not self.final_norm,
            "layer_norm_elementwise_affine": self.norm_affine,
            "enable_bias": self.use_bias,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": token_field(self.eos_token_id),
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": True,
        }


class OPTBlock(nn.Module):
    """One layer: attention and MLP; the norm stands before each (norm_first), or after it and the residual sum."""

    config: OPTConfig
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
        config, dtype, std = self.config, self.dtype, self.config.init_std
        hidden, cache = carry
        heads_shape = (config.heads, config.head_width)
        # Projections into the residual stream start smaller, so that its variance does not grow with depth.
        residual_std = std / (2 * config.layers) ** 0.5
        dropout = nn.Dropout(config.dropout, deterministic=deterministic)
        attention_norm, mlp_norm = (
            LayerNorm(config.width, NORM_EPSILON, config.norm_affine, dtype, name=name)
            for name in ("attention_norm", "mlp_norm")
        )

        x = attention_norm(hidden) if config.norm_first else hidden
        query, key, value = (
            Projection("BSD,DNH->BSNH", (config.width, *heads_shape), 2, config.use_bias, std, dtype, name=name)(x)
            for name in ("query", "key", "value")
        )
        if cache is not None:
            cache, key, value = write_cache(cache, key, value, layer=layer, cache_index=shared["cache_index"])
        attention_dropout = nn.Dropout(config.attention_dropout, deterministic=deterministic)
        mixed = attend(query, key, value, mask=shared["mask"], scale=config.head_width**-0.5, dropout=attention_dropout)
        out_shape = (*heads_shape, config.width)
        out = Projection("BSNH,NHD->BSD", out_shape, 1, config.use_bias, residual_std, dtype, name="out")(mixed)
        hidden = hidden + dropout(out)
        hidden = hidden if config.norm_first else attention_norm(hidden)

        x = mlp_norm(hidden) if config.norm_first else hidden
        shape = (config.width, config.mlp_width)
        inner = Projection("BSD,DF->BSF", shape, 1, config.use_bias, std, dtype, name="up")(x)
        inner = ACTIVATIONS[config.activation](inner)
        out = Projection("BSF,FD->BSD", shape[::-1], 1, config.use_bias, residual_std, dtype, name="down")(inner)
        hidden = hidden + dropout(out)
        return (hidden if config.norm_first else mlp_norm(hidden), cache), None


class OPT(nn.Module):
    """The language model; see `lm.py` for the interface that all families share.

    Attributes:
        config: hyperparameters.
        dtype: compute dtype.
        remat: "none", "full" or "dots", see `layers.stack_layers`.
        unroll: layers per step of the scan.
    """

    config: OPTConfig
    dtype: DType = jnp.float32
    remat: str = "none"
    unroll: int = 1

    def setup(self) -> None:
        """Declares the parts."""
        config, std = self.config, self.config.init_std
        self.embedding = Embedding(config.vocab_size, config.embed_width, std, self.dtype, name="embed")
        self.positions = Embedding(config.max_positions + POSITION_OFFSET, config.width, std, self.dtype)
        if config.embed_width != config.width:
            shape = (config.embed_width, config.width)
            self.project_in = Projection("BSE,ED->BSD", shape, 1, False, std, self.dtype)
            self.project_out = Projection("BSD,DE->BSE", shape[::-1], 1, False, std, self.dtype)
        self.blocks = stack_layers(OPTBlock, layers=config.layers, remat=self.remat, unroll=self.unroll)(
            config, self.dtype
        )
        if config.final_norm:
            self.final_norm = LayerNorm(config.width, NORM_EPSILON, config.norm_affine, self.dtype)

    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """Returns next-token logits of unpadded texts; it touches every parameter, hence serves `init`."""
        return plain_logits(self, tokens)

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns token embeddings, without positions and before the projection to the layers' width."""
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
        """Returns the final hidden states, back at the embeddings' width, and the cache, written at `cache_index`."""
        config = self.config
        projected = config.embed_width != config.width
        hidden = embeddings.astype(self.dtype)
        hidden = self.project_in(hidden) if projected else hidden
        hidden = hidden + self.positions(positions + POSITION_OFFSET)
        shared = {"mask": mask, "cache_index": None if cache is None else jnp.asarray(cache_index, jnp.int32)}
        layers = jnp.arange(config.layers, dtype=jnp.int32)
        (hidden, cache), _ = self.blocks((hidden, cache), layers, shared, deterministic)
        hidden = self.final_norm(hidden) if config.final_norm else hidden
        return self.project_out(hidden) if projected else hidden, cache

    def logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Returns f32 next-token logits of what `stack` returned."""
        return self.embedding.attend(hidden)
