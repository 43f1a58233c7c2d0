"""The Llama family: Llama, Mistral, Qwen2 and SmolLM3; rotary positions, RMSNorm, gated MLP, grouped key heads.

Lives here: its config and module. Positions are in `rope.py`, weights' names in files in `convert/llama.py`. Built by
`lm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    Projection,
    RMSNorm,
    attend,
    plain_logits,
    stack_layers,
    write_cache,
)
from frozen_jax.models.rope import Rope, rope_angles, rotate


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What a config.json leaves out because its family fixes or assumes it; `None`: the family has no such field."""

    architecture: str
    attention_bias: bool | None
    mlp_bias: bool | None
    tied: bool
    theta: float
    positions: int
    kv_heads: int | None
    window: int | None
    bos: int | None
    eos: int | None
    pad: int | None


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(
        architecture="LlamaForCausalLM",
        attention_bias=False,
        mlp_bias=False,
        tied=False,
        theta=1e4,
        positions=2048,
        kv_heads=None,
        window=None,
        bos=1,
        eos=2,
        pad=None,
    ),
    "mistral": _Family(
        architecture="MistralForCausalLM",
        attention_bias=None,
        mlp_bias=None,
        tied=False,
        theta=1e4,
        positions=131072,
        kv_heads=8,
        window=4096,
        bos=1,
        eos=2,
        pad=None,
    ),
    "qwen2": _Family(
        architecture="Qwen2ForCausalLM",
        attention_bias=None,
        mlp_bias=None,
        tied=False,
        theta=1e4,
        positions=32768,
        kv_heads=32,
        window=None,
        bos=None,
        eos=None,
        pad=None,
    ),
    "smollm3": _Family(
        architecture="SmolLM3ForCausalLM",
        attention_bias=False,
        mlp_bias=False,
        tied=True,
        theta=2e6,
        positions=32768,
        kv_heads=4,
        window=None,
        bos=128000,
        eos=128001,
        pad=128004,
    ),
}


MOST_LAYERS = 100_000
"""Of a family whose config has an entry for every layer, which a damaged file must not let grow without end."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Hyperparameters of a Llama-type model.

    Attributes:
        family: model_type in config.json: llama, mistral, qwen2 or smollm3.
        vocab_size: V.
        context: longest text that the model was trained or stretched for.
        window: each query sees only this many keys; 0 means all.
        width: D.
        layers: L.
        heads: N, query heads.
        kv_heads: key and value heads; divides N.
        head_width: H, even.
        mlp_width: F.
        activation: a name in `layers.ACTIVATIONS`.
        norm_epsilon: added to mean squares.
        init_std: standard deviation of initial weights.
        qkv_bias: whether query, key and value projections have a bias.
        out_bias: whether attention's output projection has one.
        mlp_bias: whether the MLP's projections have one.
        tied: whether the head is the embedding table.
        rope: how positions turn into angles.
        rope_layers: per layer, whether it knows positions at all; () means that all do.
        attention_dropout: rate on attention weights, in training only.
        bos_token_id: the id that begins a text, if any.
        eos_token_id: the ids that end one.
        pad_token_id: kept for export; padding is masked, whatever its id.

    Source: Touvron et al. 2023, arXiv 2302.13971 and 2307.09288.
    """

    family: str = "llama"
    vocab_size: int = 32000
    context: int = 2048
    window: int = 0
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_width: int = 128
    mlp_width: int = 11008
    activation: str = "silu"
    norm_epsilon: float = 1e-6
    init_std: float = 0.02
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    rope: Rope = field(default_factory=Rope)
    rope_layers: tuple[bool, ...] = ()
    attention_dropout: float = 0.0
    bos_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)
    pad_token_id: int | None = None

    @property
    def embed_width(self) -> int:
        """Width of what the model takes as input: the token embeddings'."""
        return self.width

    @property
    def max_positions(self) -> int:
        """Longest text; a sliding window is not built, so that it must not hide anything."""
        return min(self.context, self.window) if self.window else self.context

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Reads a config.json.

        Raises:
            UserError: a field is missing, of the wrong type, or not supported.
        """
        fields = FieldReader(config)
        family = _FAMILIES[fields.family]
        width = fields.integer("hidden_size", default=4096)
        layers = fields.integer("num_hidden_layers", default=32)
        heads = fields.integer("num_attention_heads", default=32)
        kv_heads = fields.integer("num_key_value_heads", default=family.kv_heads or heads)
        if heads % kv_heads:
            raise fields.refuse("num_key_value_heads", kv_heads, f"it must divide num_attention_heads = {heads}")
        head_width = fields.optional_integer("head_dim")
        if head_width is None:
            if width % heads:
                raise fields.refuse(
                    "num_attention_heads", heads, f"without head_dim it must divide hidden_size = {width}"
                )
            head_width = width // heads
        if head_width % 2:
            raise fields.refuse("head_dim", head_width, "rotary positions turn pairs of dimensions, it must be even")
        context = fields.integer("max_position_embeddings", default=family.positions)
        qkv_bias = fields.family == "qwen2"
        out_bias = mlp_bias = False
        if family.attention_bias is not None:
            qkv_bias = out_bias = fields.boolean("attention_bias", default=family.attention_bias)
        if family.mlp_bias is not None:
            mlp_bias = fields.boolean("mlp_bias", default=family.mlp_bias)
        fields.ignore("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")  # read by Rope
        fields.ignore("is_llama_config", "max_sequence_length")
        fields.require("rope_interleaved", False, None, reason="the pairs of rotary positions are half a head apart")
        result = cls(
            family=fields.family,
            vocab_size=fields.integer("vocab_size", default=None),
            context=context,
            # A null says that there is no window; a file without the field leaves the family's.
            window=(fields.optional_integer("sliding_window", default=family.window) or 0) if family.window else 0,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            mlp_width=fields.integer("intermediate_size", default=None),
            activation=fields.choice("hidden_act", ACTIVATIONS, default="silu"),
            norm_epsilon=fields.number("rms_norm_eps", default=1e-6),
            init_std=fields.number("initializer_range", default=0.02),
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            mlp_bias=mlp_bias,
            tied=fields.boolean("tie_word_embeddings", default=family.tied),
            rope=Rope.from_hf(config, default_theta=family.theta, max_positions=context),
            rope_layers=_read_rope_layers(fields, layers),
            attention_dropout=fields.rate("attention_dropout", default=0.0),
            bos_token_id=fields.token_id("bos_token_id", default=family.bos),
            eos_token_id=fields.token_ids("eos_token_id", default=family.eos),
            pad_token_id=fields.padding_id(default=family.pad),
        )
        fields.finish()
        return result

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a config.json that transformers and `from_hf` read."""
        family = _FAMILIES[self.family]
        content = {
            "model_type": self.family,
            "architectures": [family.architecture],
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.mlp_width,
            "hidden_act": self.activation,
            "rms_norm_eps": self.norm_epsilon,
            "initializer_range": self.init_std,
            "tie_word_embeddings": self.tied,
            "rope_parameters": self.rope.to_hf(),
            "attention_dropout": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": token_field(self.eos_token_id),
            "pad_token_id": self.pad_token_id,
        }
        if family.attention_bias is not None:
            content["attention_bias"] = self.qkv_bias
        if family.mlp_bias is not None:
            content["mlp_bias"] = self.mlp_bias
        if family.window is not None:
            content["sliding_window"] = self.window or None
        if self.rope_layers:
            content["no_rope_layers"] = [int(rotated) for rotated in self.rope_layers]
        return content


def _read_rope_layers(fields: FieldReader, layers: int) -> tuple[bool, ...]:
    """Reads which layers know positions; only SmolLM3 has layers that do not."""
    if fields.family in ("qwen2", "smollm3"):
        fields.require("use_sliding_window", False, None, reason="sliding-window attention is not built here")
        fields.ignore("sliding_window", "max_window_layers")
        fields.require("use_mrope", False, None, reason="positions of several dimensions are not built here")
        types = fields.value("layer_types")
        listed = isinstance(types, list | tuple) and all(kind == "full_attention" for kind in types)
        if types is not None and not (types and listed):
            raise fields.refuse("layer_types", types, "only full_attention is built here")
    if fields.family != "smollm3":
        return ()
    if layers > MOST_LAYERS:
        raise fields.refuse("num_hidden_layers", layers, f"it must be at most {MOST_LAYERS}")
    interval = fields.integer("no_rope_layer_interval", default=4)
    stated = fields.value("no_rope_layers")
    if stated is None:
        stated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    # The name says the opposite of the value: 1 marks a layer that has rotary positions.
    if not isinstance(stated, list) or len(stated) < layers or any(flag not in (0, 1) for flag in stated):
        raise fields.refuse("no_rope_layers", stated, f"it must be a list of {layers} times 0 or 1")
    return tuple(bool(flag) for flag in stated[:layers])


class LlamaBlock(nn.Module):
    """One layer: attention and gated MLP, each on a normalised copy of the residual stream."""

    config: LlamaConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B S D"], Cache | None],
        per_layer: dict[str, Array],
        shared: dict[str, Any],
        deterministic: bool,
    ) -> tuple[tuple[Float[Array, "B S D"], Cache | None], None]:
        """Returns the residual stream and the cache after this layer; see `layers.stack_layers` for the arguments."""
        config, dtype, std = self.config, self.dtype, self.config.init_std
        hidden, cache = carry
        kv_shape = (config.width, config.kv_heads, config.head_width)
        query_shape = (config.width, config.heads, config.head_width)
        # Projections into the residual stream start smaller, so that its variance does not grow with depth.
        residual_std = std / (2 * config.layers) ** 0.5

        normed = RMSNorm(config.width, config.norm_epsilon, dtype, name="attention_norm")(hidden)
        query, key, value = (
            Projection("BSD,DNH->BSNH", shape, 2, config.qkv_bias, std, dtype, name=name)(normed)
            for name, shape in (("query", query_shape), ("key", kv_shape), ("value", kv_shape))
        )
        cosines, sines = shared["cosines"], shared["sines"]
        if config.rope_layers:
            rotated = per_layer["rotated"]
            cosines, sines = jnp.where(rotated, cosines, 1.0), jnp.where(rotated, sines, 0.0)
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
        if cache is not None:
            index = shared["cache_index"]
            cache, key, value = write_cache(cache, key, value, layer=per_layer["layer"], cache_index=index)
        dropout = nn.Dropout(config.attention_dropout, deterministic=deterministic)
        mixed = attend(query, key, value, mask=shared["mask"], scale=config.head_width**-0.5, dropout=dropout)
        out_shape = (config.heads, config.head_width, config.width)
        out = Projection("BSNH,NHD->BSD", out_shape, 1, config.out_bias, residual_std, dtype, name="out")(mixed)
        hidden = hidden + out

        normed = RMSNorm(config.width, config.norm_epsilon, dtype, name="mlp_norm")(hidden)
        gate, up = (
            Projection("BSD,DF->BSF", (config.width, config.mlp_width), 1, config.mlp_bias, std, dtype, name=name)(
                normed
            )
            for name in ("gate", "up")
        )
        inner = ACTIVATIONS[config.activation](gate) * up
        down_shape = (config.mlp_width, config.width)
        out = Projection("BSF,FD->BSD", down_shape, 1, config.mlp_bias, residual_std, dtype, name="down")(inner)
        return (hidden + out, cache), None


class Llama(nn.Module):
    """The language model; see `lm.py` for the interface that all families share.

    Attributes:
        config: hyperparameters.
        dtype: compute dtype.
        remat: "none", "full" or "dots", see `layers.stack_layers`.
        unroll: layers per step of the scan.
    """

    config: LlamaConfig
    dtype: DType = jnp.float32
    remat: str = "none"
    unroll: int = 1

    def setup(self) -> None:
        """Declares the parts."""
        config = self.config
        self.embedding = Embedding(config.vocab_size, config.width, config.init_std, self.dtype, name="embed")
        self.blocks = stack_layers(LlamaBlock, layers=config.layers, remat=self.remat, unroll=self.unroll)(
            config, self.dtype
        )
        self.final_norm = RMSNorm(config.width, config.norm_epsilon, self.dtype)
        if not config.tied:
            self.head = Embedding(config.vocab_size, config.width, config.init_std, self.dtype)

    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """Returns next-token logits of unpadded texts; it touches every parameter, hence serves `init`."""
        return plain_logits(self, tokens)

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns token embeddings."""
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
        cosines, sines = rope_angles(config.rope, positions, config.head_width)
        shared = {
            "mask": mask,
            "cosines": cosines,
            "sines": sines,
            "cache_index": None if cache is None else jnp.asarray(cache_index, jnp.int32),
        }
        per_layer = {"layer": jnp.arange(config.layers, dtype=jnp.int32)}
        if config.rope_layers:
            per_layer["rotated"] = jnp.asarray(config.rope_layers)
        (hidden, cache), _ = self.blocks((embeddings.astype(self.dtype), cache), per_layer, shared, deterministic)
        return self.final_norm(hidden), cache

    def logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Returns f32 next-token logits of what `stack` returned."""
        return (self.embedding if self.config.tied else self.head).attend(hidden)
