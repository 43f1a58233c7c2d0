"""Frozen: image prefixes in the slots of a token sequence, read by a frozen language model. The only file that knows
both towers. Before it in the data flow: `batch.py`; after it: `steps.py` (loss) and `decode.py` (text).

    tokens      bos  SLOT SLOT  a    red  dot
    embeddings  w    i_0  i_1   w    w    w        w: the language model's own embedding, i: prefix vectors of the image
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key, UInt8

from frozen_jax.batch import PAD, PROMPT, SLOT
from frozen_jax.models.fusion import Fusion
from frozen_jax.models.generator import Generator
from frozen_jax.models.masks import positions_from_segments, segment_mask
from frozen_jax.models.pixels import VisionOutput
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.retrieval import RetrievalHead
from frozen_jax.sharding import constrain, gather
from frozen_jax.state import Params


def insert_slots(
    embeddings: Float[Array, "B S D"], tokens: Int[Array, "B S"], prefixes: Float[Array, "B I P D"]
) -> Float[Array, "B S D"]:
    """Puts the prefix vectors of a row's images, in order, into its slots, from left to right.

        tokens      7  SLOT SLOT  9  SLOT SLOT      I = 2, P = 2
        result      w  a_0  a_1   w  b_0  b_1

    The row must have I x P slots (`batch.validate`).
    """
    rows, images, length, width = prefixes.shape
    flat = prefixes.reshape(rows, images * length, width).astype(embeddings.dtype)
    is_slot = tokens == SLOT
    order = jnp.clip(jnp.cumsum(is_slot, axis=1) - 1, 0, images * length - 1)
    return jnp.where(is_slot[:, :, None], jnp.take_along_axis(flat, order[:, :, None], axis=1), embeddings)


@dataclass(frozen=True)
class FrozenModel:
    """The towers, without parameters: hashable, so that compiled functions are shared between runs of one process.

    Attributes:
        lm: language model (`models.lm`).
        vision: encoder (`models.vision`); None for text alone, or where features stand in the place of pictures.
        prefix: features to P vectors, or None for text alone.
        retrieval: what finds pictures by texts, where it is trained.
        fusion: what names a class by picture and text; there is no prefix then, and no word is predicted.
        generator: draws pictures of what the language model has read, or None.
    """

    lm: nn.Module
    vision: nn.Module | None = None
    prefix: Prefix | None = None
    retrieval: RetrievalHead | None = None
    fusion: Fusion | None = None
    generator: Generator | None = None

    @property
    def prefix_length(self) -> int:
        """P; 0 without an encoder."""
        return self.prefix.length if self.prefix is not None else 0

    def init_vision(self, rng: Key[Array, ""], *, image_size: int) -> Params:
        """Draws the parameters of the vision side: {"vision": …, "prefix": …}, or {} without an encoder.

        With a retrieval head there is "retrieval" besides; with a fusion it stands in the prefix's place.
        """
        if self.vision is None:
            return {}
        vision_rng, prefix_rng = jax.random.split(rng)
        images = jnp.zeros((1, image_size, image_size, 3), jnp.uint8)
        seen, drawn = self.vision.init_with_output(vision_rng, images)
        params = {"vision": drawn["params"]}
        if self.prefix is not None:
            features = seen.tokens if self.prefix.reads_places else seen.pooled
            params["prefix"] = self.prefix.init(prefix_rng, features)["params"]
        if self.retrieval is not None:
            states = jnp.zeros((1, self.lm.config.embed_width), jnp.float32)
            params["retrieval"] = self.retrieval.init(jax.random.fold_in(rng, 2), states, seen.pooled)["params"]
        if self.fusion is not None:
            states, present = jnp.zeros((1, 2, self.lm.config.embed_width)), jnp.ones((1, 2), bool)
            params["fusion"] = self.fusion.init(prefix_rng, states, present, seen.pooled, seen.tokens)["params"]
        return params

    def init_lm(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters of a language model that is trained from scratch: {"lm": …}."""
        return {"lm": self.lm.init(rng, jnp.zeros((1, 2), jnp.int32))["params"]}

    def init_generator(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters of the generator: {"generator": …}, or {} without one."""
        if self.generator is None:
            return {}
        config = self.generator.config
        hidden = jnp.zeros((1, config.queries, config.lm_width), jnp.float32)
        noisy = jnp.zeros((1, config.image_size, config.image_size, 3), jnp.float32)
        return {"generator": self.generator.init(rng, hidden, noisy, method="draw")["params"]}

    def embed_images(
        self,
        params: Params,
        images: UInt8[Array | np.ndarray, "B I height width 3"] | Float32[Array | np.ndarray, "B I E"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "B I P D"]:
        """Encodes images, or their features without an encoder, to prefix vectors; with `rng` dropout is on."""
        return self.make_prefixes(params, self.see_images(params, images, rng=rng), rng=rng)

    def see_images(
        self,
        params: Params,
        images: UInt8[Array | np.ndarray, "B I height width 3"] | Float32[Array | np.ndarray, "B I E"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "B I *M E"]:
        """Encodes images to what the prefix is made of: pooled features, or those of their places."""
        if self.prefix is None or not self.prefix.reads_places:
            return self.pool_images(params, images, rng=rng)
        flat = constrain(jnp.asarray(images).reshape(-1, *images.shape[2:]), "pictures")
        places = constrain(self.look(params, flat, rng=rng).tokens, "pictures")
        return places.reshape(*images.shape[:2], *places.shape[1:])

    def pool_images(
        self,
        params: Params,
        images: UInt8[Array | np.ndarray, "B I height width 3"] | Float32[Array | np.ndarray, "B I E"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float32[Array, "B I E"]:
        """Encodes images to pooled features; features stay as they are. With `rng` dropout is on."""
        rows, count = images.shape[:2]
        flat = constrain(jnp.asarray(images).reshape(rows * count, *images.shape[2:]), "pictures")
        pooled = flat if self.vision is None else constrain(self.encode(params, flat, rng=rng), "pictures")
        return pooled.reshape(rows, count, -1)

    def make_prefixes(
        self, params: Params, features: Float[Array, "B I *M E"], *, rng: Key[Array, ""] | None = None
    ) -> Float[Array, "B I P D"]:
        """Turns features from `see_images` into prefix vectors; with `rng` dropout is on."""
        assert self.prefix is not None
        rows, count = features.shape[:2]
        keys = {} if rng is None else {"dropout": jax.random.fold_in(rng, 1)}
        made = self.prefix.apply(
            {"params": gather(params["prefix"])},
            features.reshape(rows * count, *features.shape[2:]),
            deterministic=rng is None,
            rngs=keys,
        )
        vectors = cast(Array, made)
        return constrain(vectors.reshape(rows, count, *vectors.shape[1:]), "embeddings")

    def encode(
        self, params: Params, images: UInt8[Array, "R height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> Float32[Array, "R E"]:
        """Returns the encoder's pooled features; with `rng` dropout is on."""
        return self.look(params, images, rng=rng).pooled

    def look(
        self, params: Params, images: UInt8[Array, "R height width 3"], *, rng: Key[Array, ""] | None = None
    ) -> VisionOutput:
        """Returns all that the encoder says; with `rng` dropout is on."""
        assert self.vision is not None
        keys = {} if rng is None else {"dropout": jax.random.fold_in(rng, 1)}
        vision = {"params": gather(params["vision"])}
        return cast(VisionOutput, self.vision.apply(vision, images, deterministic=rng is None, rngs=keys))

    def fuse(
        self,
        params: Params,
        images: UInt8[Array | np.ndarray, "B 1 height width 3"] | Float32[Array | np.ndarray, "B 1 E"],
        tokens: Int[Array | np.ndarray, "B S"],
        *,
        rng: Key[Array, ""] | None = None,
        lm_rng: Key[Array, ""] | None = None,
    ) -> tuple[Float32[Array, "B W"], Float32[Array, "B C"]]:
        """Fuses pictures, or their features, with texts, and scores every class.

        With `rng` dropout is on, but for the language model's own, which `lm_rng` turns on.
        """
        assert self.fusion is not None
        flat = constrain(jnp.asarray(images)[:, 0], "pictures")
        seen = VisionOutput(flat, flat[:, None]) if self.vision is None else self.look(params, flat, rng=rng)
        present = input_mask(tokens)
        states = self.run_lm(params, self.embed(params, tokens, None), present.astype(jnp.int32), rng=lm_rng)
        keys = {} if rng is None else {"dropout": jax.random.fold_in(rng, 4)}
        made = self.fusion.apply(
            {"params": gather(params["fusion"])},
            constrain(states, "embeddings"),
            present,
            seen.pooled,
            seen.tokens,
            deterministic=rng is None,
            rngs=keys,
        )
        return cast(tuple[Array, Array], made)

    def embed(
        self, params: Params, tokens: Int[Array | np.ndarray, "B S"], prefixes: Float[Array, "B I P D"] | None
    ) -> Float[Array, "B S D"]:
        """Embeds words and puts the images' vectors into their slots, and a learned prompt's into its places.

        Padding gets the embedding of word 0.
        """
        tokens = jnp.asarray(tokens)
        words = jnp.maximum(tokens, 0)  # slots and padding are negative; what stands there is replaced or masked out
        embeddings = cast(Array, self.lm.apply({"params": _gather_tables(params["lm"])}, words, method="embed"))
        if "prompt" in params["lm"]:
            learned = params["lm"]["prompt"]["vectors"].astype(embeddings.dtype)
            placed = jnp.take(learned, jnp.clip(PROMPT - tokens, 0, len(learned) - 1), axis=0)
            embeddings = jnp.where((tokens <= PROMPT)[:, :, None], placed, embeddings)
        mixed = embeddings if prefixes is None else insert_slots(embeddings, tokens, prefixes)
        return constrain(mixed, "embeddings")

    def run_lm(
        self,
        params: Params,
        embeddings: Float[Array, "B S D"],
        segments: Int[Array, "B S"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D2"]:
        """Runs the language model's layers over whole rows, without a cache.

        Args:
            embeddings: of words and images.
            segments: number of the text that each position belongs to, from 1, and 0 on padding, which may stand on
                either side; a text sees itself alone and counts its own positions from 0.
            rng: turns the model's own dropout on.
        """
        hidden: Array
        hidden, _ = self.lm.apply(
            {"params": _gather_tables(params["lm"])},
            embeddings,
            positions=positions_from_segments(segments),
            mask=segment_mask(segments),
            deterministic=rng is None,
            rngs={} if rng is None else {"dropout": jax.random.fold_in(rng, 2)},
            method="stack",
        )
        return hidden

    def map_images(self, params: Params, pooled: Float[Array, "B E"]) -> Float32[Array, "B W"]:
        """Returns the unit vectors by which pooled features are found; needs a retrieval head."""
        assert self.retrieval is not None
        return cast(Array, self.retrieval.apply({"params": gather(params["retrieval"])}, pooled, method="map_images"))

    def map_texts(
        self,
        params: Params,
        embeddings: Float[Array, "B S D"],
        present: Bool[Array, "B S"],
        *,
        rng: Key[Array, ""] | None = None,
    ) -> Float32[Array, "B W"]:
        """Returns the unit vectors by which rows of words and images find pictures: those of `[RET]` behind each.

        Args:
            embeddings: padded on the left.
            present: True where a position holds a word or an image.
            rng: turns the language model's own dropout on.
        """
        assert self.retrieval is not None
        head = {"params": gather(params["retrieval"])}
        longer = constrain(cast(Array, self.retrieval.apply(head, embeddings, method="append")), "embeddings")
        segments = jnp.pad(present.astype(jnp.int32), ((0, 0), (0, 1)), constant_values=1)
        states = self.run_lm(params, longer, segments, rng=rng)[:, -1]
        return cast(Array, self.retrieval.apply(head, states, method="map_states"))

    def logits(self, params: Params, hidden: Float[Array, "B S D2"]) -> Float[Array, "B S V"]:
        """Scores every word at each position."""
        logits = cast(Array, self.lm.apply({"params": _gather_tables(params["lm"])}, hidden, method="logits"))
        return constrain(logits, "logits")

    def condition(
        self, params: Params, tokens: Int[Array | np.ndarray, "B S"], *, rng: Key[Array, ""] | None = None
    ) -> Float32[Array, "B Q E"]:
        """Reads texts, with the generator's queries behind them, and returns what the pictures are to follow.

        Args:
            params: the whole tree.
            tokens: words, right-padded; no slots.
            rng: turns the language model's own dropout on.
        """
        assert self.generator is not None
        words = self.embed(params, tokens, None)
        lengths = jnp.sum(input_mask(tokens), axis=1)
        embeddings, segments, places = append_queries(words, lengths, params["generator"]["queries"])
        hidden = self.run_lm(params, embeddings, segments, rng=rng)
        at_queries = jnp.take_along_axis(hidden, places[:, :, None], axis=1).astype(jnp.float32)
        generator = {"params": gather(params["generator"])}
        return cast(Array, self.generator.apply(generator, at_queries, method="read"))

    def no_text(self, params: Params, rows: int) -> Float32[Array, "B Q E"]:
        """Returns the learned condition that stands for no text at all."""
        no_text = params["generator"]["no_text"]
        return jnp.broadcast_to(no_text[None], (rows, *no_text.shape))

    def denoise(
        self,
        params: Params,
        noisy: Float32[Array, "B height width 3"],
        times: Float32[Array, " B"],
        condition: Float32[Array, "B Q E"],
    ) -> Float32[Array, "B height width 3"]:
        """Names the clean pictures behind noisy ones; see `Generator`."""
        assert self.generator is not None
        noisy = constrain(noisy, "pictures")
        return cast(Array, self.generator.apply({"params": gather(params["generator"])}, noisy, times, condition))


def append_queries(
    embeddings: Float[Array, "B S D"], lengths: Int[Array, " B"], queries: Float[Array, "Q D"]
) -> tuple[Float[Array, "B S2 D"], Int[Array, "B S2"], Int[Array, "B Q"]]:
    """Puts queries right behind each row's words, where the row is Q positions longer than before.

        lengths 2, Q = 2        w w .      →   w w q_0 q_1 .     segments  1 1 1 1 0     places  2 3

    Returns:
        The embeddings, the segments that `FrozenModel.run_lm` takes, and where the queries are.
    """
    positions, count = embeddings.shape[1], len(queries)
    steps = jnp.arange(positions + count)[None, :]
    behind = steps - lengths[:, None]
    padded = jnp.pad(embeddings, ((0, 0), (0, count), (0, 0)))
    placed = jnp.take(queries.astype(embeddings.dtype), jnp.clip(behind, 0, count - 1), axis=0)
    mixed = jnp.where(((behind >= 0) & (behind < count))[:, :, None], placed, padded)
    segments = (behind < count).astype(jnp.int32)
    return mixed, segments, lengths[:, None] + jnp.arange(count)[None, :]


def _gather_tables(lm: Params) -> Params:
    """Gathers what is looked up or scored against; the layers' weights are gathered as the loop meets them."""
    words: Params = {name: lm[name] for name in ("embed", "head") if name in lm}
    positions = {"positions": gather(lm["positions"])} if "positions" in lm else {}
    return {**lm, **gather(words, tables=True), **positions}


def input_mask(tokens: Int[Array | np.ndarray, "B S"]) -> Bool[Array, "B S"]:
    """True where a position holds a word or an image."""
    return jnp.asarray(tokens) != PAD
