"""Shared parts of the language models: projections, norms, attention with a key/value cache, the stack of layers.

What differs between families (order of norms, positions, activations, biases) is in `gpt2.py`, `opt.py`, `llama.py`.
Weights are stored as given (f32 or bf16) and used in the compute dtype; softmax and norm statistics are f32.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.models.masks import causal_mask, positions_from_mask

Cache: TypeAlias = dict[str, Array]
"""Keys and values of the positions seen so far: {"key", "value"}, each [L, B, N_kv, K, H], so that the products of
attention read each head's keys where they lie."""

DType: TypeAlias = Any
"""What `jnp.dtype` accepts: jnp.float32, jnp.bfloat16, …"""

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""Activation functions by their Hugging Face names."""

REMAT_POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass may keep from a layer, by name; "none" keeps everything and is no policy."""

MASKED = float(np.finfo(np.float32).min)
"""Attention score of a masked key: finite, so that a row without any visible key stays finite."""


def contract(equation: str, x: Float[Array, "*x"], kernel: Float[Array, "*kernel"]) -> Float[Array, "*y"]:
    """Returns `jnp.einsum(equation, x, kernel)`, without transposing the kernel.

    `jnp.einsum` contracts several letters in alphabetical order; where the kernel has them in another order, it is
    copied at every call. Renaming its letters a, b, … makes the two orders agree.
    """
    operands = equation.split("->")[0].split(",")
    letters = dict.fromkeys(operands[1] + operands[0])
    renamed = equation.translate(str.maketrans("".join(letters), string.ascii_lowercase[: len(letters)]))
    return jnp.einsum(renamed, x, kernel)


class Projection(nn.Module):
    """A linear map of the last input axes on several named output axes, as one matrix product.

    An int8 kernel has a `scale` per output beside it (`frozen_jax/quantise.py`), which is applied to the product; an
    adapted one has two factors, whose product is added to it (`frozen_jax/lora.py`), or an adapter behind it
    (`frozen_jax/adapters.py`).

    Attributes:
        equation: einsum such as "BSD,DNH->BSNH"; the kernel's letters are contracted first, then new.
        shape: sizes of the kernel's axes.
        outputs: how many of the kernel's last axes are new; the bias has these.
        use_bias: whether there is a bias.
        init_std: standard deviation of the initial kernel.
        dtype: compute dtype.
    """

    equation: str
    shape: tuple[int, ...]
    outputs: int
    use_bias: bool
    init_std: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B S *features"]) -> Float[Array, "B S *outputs"]:
        """Returns the projected x in the compute dtype."""
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), self.shape)
        y = contract(self.equation, x.astype(self.dtype), kernel.astype(self.dtype))
        if self.has_variable("params", "scale"):
            scale = self.param("scale", nn.initializers.ones, self.shape[-self.outputs :])
            y = (y * scale[None, None]).astype(self.dtype)
        if self.has_variable("params", "lora_down"):
            inputs, outputs = self.shape[: -self.outputs], self.shape[-self.outputs :]
            rank: int = self.get_variable("params", "lora_down").shape[-1]
            down = self.param("lora_down", nn.initializers.normal(), (*inputs, rank))
            up = self.param("lora_up", nn.initializers.zeros, (rank, *outputs))
            low = jnp.tensordot(x.astype(self.dtype), down.astype(self.dtype), len(inputs))
            y = y + jnp.tensordot(low, up.astype(self.dtype), 1)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.shape[-self.outputs :])
            y = y + bias.astype(self.dtype)[None, None]
        if self.has_variable("params", "adapter_down"):
            units: int = self.get_variable("params", "adapter_down").shape[-1]
            down = self.param("adapter_down", nn.initializers.normal(), (*self.shape[-self.outputs :], units))
            up = self.param("adapter_up", nn.initializers.zeros, (units, *self.shape[-self.outputs :]))
            inner = jax.nn.relu(jnp.tensordot(y, down.astype(self.dtype), self.outputs))
            y = y + jnp.tensordot(inner, up.astype(self.dtype), 1)
        return y


class LayerNorm(nn.Module):
    """Layer normalisation with f32 statistics.

    Attributes:
        width: size of the last axis.
        epsilon: added to the variance.
        affine: whether scale and bias are learnt.
        dtype: dtype of the result.
    """

    width: int
    epsilon: float
    affine: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Returns x with mean 0 and variance 1 over the last axis, scaled and shifted."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (self.width,)).astype(jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(jnp.float32)
            y = y * scale[None, None, :] + bias[None, None, :]
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with f32 statistics.

    Attributes:
        width: size of the last axis.
        epsilon: added to the mean square.
        dtype: dtype of the result.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """

    width: int
    epsilon: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Returns x with mean square 1 over the last axis, scaled."""
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = self.param("scale", nn.initializers.ones, (self.width,)).astype(jnp.float32)
        return (y * scale[None, None, :]).astype(self.dtype)


class Embedding(nn.Module):
    """A table of vectors; the language model's head where weights are tied.

    Attributes:
        entries: number of rows.
        width: size of a vector.
        init_std: standard deviation of the initial table.
        dtype: compute dtype.
    """

    entries: int
    width: int
    init_std: float
    dtype: DType = jnp.float32

    def setup(self) -> None:
        """Declares the table."""
        self.embedding = self.param("embedding", nn.initializers.normal(self.init_std), (self.entries, self.width))

    def __call__(self, ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns the rows of `ids`. An id outside the table reads the nearest row: callers mask slots and padding."""
        return jnp.take(self.embedding, ids, axis=0, mode="clip").astype(self.dtype)

    def attend(self, x: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Returns f32 dot products of x with every row."""
        table = self.embedding.astype(self.dtype)
        return jnp.einsum("BSD,VD->BSV", x.astype(self.dtype), table, preferred_element_type=jnp.float32)


def write_cache(
    cache: Cache,
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    layer: Int[Array, ""],
    cache_index: Int[Array, ""],
) -> tuple[Cache, Float[Array, "B K N H"], Float[Array, "B K N H"]]:
    """Writes S new keys and values of one layer and returns the cache with all K keys and values of that layer.

    The cache is carried through the layers and written in place: handing each layer its slice and stacking the slices
    again would copy the whole cache at every step.
    """
    written, read = {}, []
    zero = jnp.zeros_like(layer)
    for name, new in (("key", key), ("value", value)):
        update = jnp.swapaxes(new, 1, 2)[None].astype(cache[name].dtype)
        written[name] = jax.lax.dynamic_update_slice(cache[name], update, (layer, zero, zero, cache_index, zero))
        of_layer = jax.lax.dynamic_index_in_dim(written[name], layer, keepdims=False)
        # The compiler folds this transposition into the one that attention's product asks for.
        read.append(jnp.swapaxes(of_layer, 1, 2))
    return written, read[0], read[1]


def attend(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B K Nkv H"],
    value: Float[Array, "B K Nkv H"],
    *,
    mask: Bool[Array, "B S K"],
    scale: Float[Array, ""] | float,
    dropout: Callable[[Array], Array],
) -> Float[Array, "B S N H"]:
    """Returns the attention-weighted values; each of the Nkv key heads serves N / Nkv consecutive query heads.

    Args:
        query: one vector per query position and head.
        key: one vector per key position and key head.
        value: likewise.
        mask: true where the query may see the key.
        scale: multiplies the scores.
        dropout: applied to the attention weights.
    """
    batch, queries, heads, head_width = query.shape
    groups = key.shape[2]
    dtype = query.dtype
    query = query.reshape(batch, queries, groups, heads // groups, head_width)
    # einsum takes its second operand as the left factor of the product; in this order neither the scores nor the
    # weights, the largest arrays here, have to be transposed.
    scores = jnp.einsum("BKNH,BSNGH->BNSGK", key.astype(dtype), query, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, :, None, :], scores * scale, MASKED)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(dtype))
    mixed = jnp.einsum("BKNH,BNSGK->BSNGH", value.astype(dtype), weights)
    return mixed.reshape(batch, queries, heads, head_width)


class LayerByLayer(nn.Module):
    """Applies a block as often as there are layers, without a loop in the program; for decoding, not for `init`.

    Each layer reads its own arrays where `unstack_layers` has taken the weights apart, or else its slice of the stack.

    Attributes:
        block: module class of one layer.
        layers: L.
        config: of the block.
        dtype: compute dtype.
    """

    block: type[nn.Module]
    layers: int
    config: Any
    dtype: DType

    def __call__(self, carry: Any, per_layer: Any, shared: Any, deterministic: bool) -> tuple[Any, None]:
        """Called as what `stack_layers` returns; deterministic alone."""
        block = self.block(self.config, self.dtype, parent=None)
        for layer in range(self.layers):
            weights, own = (
                jax.tree.map(lambda leaf, layer=layer: leaf[layer], tree, is_leaf=lambda leaf: isinstance(leaf, list))
                for tree in (self.variables["params"], per_layer)
            )
            carry, _ = block.apply({"params": weights}, carry, own, shared, deterministic)
        return carry, None


def unstack_layers(params: Any) -> Any:
    """Returns a language model's parameters with a list of L arrays for each array that is stacked over layers."""
    return {**params, "blocks": jax.tree.map(list, params["blocks"])}


def stack_layers(block: type[nn.Module], *, layers: int, remat: str, unroll: int) -> Callable[..., nn.Module]:
    """Returns a module class that applies `block` `layers` times, with weights stacked on a leading axis.

    The block is called as `block(carry, per_layer, shared, deterministic)` and returns `(carry, None)`: `carry` is what
    flows from layer to layer, `per_layer` has a leading axis of `layers`, `shared` is the same for all.

    Args:
        block: module class of one layer.
        layers: L.
        remat: "none" keeps all activations for the backward pass, "full" recomputes a layer, "dots" recomputes
            everything but matrix products.
        unroll: layers per step of the scan; 1 compiles fastest (training), 0 does without a scan (decoding).
    """
    if unroll == 0:
        return functools.partial(LayerByLayer, block, layers)
    if remat != "none":
        # A loop over single layers already keeps XLA from merging the recomputation with the forward pass.
        block = nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=unroll > 1, static_argnums=(4,))
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=layers,
        unroll=unroll,
    )


def plain_logits(module: Any, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
    """Returns the logits of texts without padding, through a bound language model's own methods."""
    everything = jnp.ones(tokens.shape, bool)
    hidden, _ = module.stack(
        module.embed(tokens), positions=positions_from_mask(everything), mask=causal_mask(everything)
    )
    return cast(Array, module.logits(hidden))


def count_parameters(params: Any) -> int:
    """Returns how many numbers a tree of arrays or of abstract arrays holds."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
