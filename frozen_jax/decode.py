"""Text generation: prefill, then one compiled loop over a KV cache, greedy, sampled or by beam search.

Lives here: the choice of the next token and the loop. Not here: how a prompt becomes embeddings (the Frozen model puts
image prefixes into slots) and fills the cache (`prefill.py`), the language model's stack and cache layout
(`models/lm.py`), ids to text (`tokenizer.py`). Next in the data flow: `tasks/`, which scores the generated text.

The cache has S + T positions. Prompts are left-padded, so every row writes its next key at the same index while its own
position counts only its words; S = 4, T = 3, two rows, after one generated token was fed:

    cache index    0    1    2    3  |  4    5    6
    row 0          a    red  dot  is |  x0   .    .      positions 0 1 2 3 | 4
    row 1          .    .    a    is |  x0   .    .      positions 0 0 0 1 | 2        . is masked out
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from frozen_jax.batch import PAD
from frozen_jax.errors import UserError
from frozen_jax.models.layers import Cache, unstack_layers
from frozen_jax.models.masks import cache_mask
from frozen_jax.prefill import Beginning, prefill

NO_TOKEN = np.iinfo(np.int32).min
"""Fills the array of stop ids: its size is one of few, so that another stop rule seldom needs another compilation."""

IMPOSSIBLE = -1e9
"""Log-probability of a beam that does not exist: finite, so that sums and length penalties of it stay numbers."""


@dataclass(frozen=True)
class DecodeConfig:
    """How to generate.

    Attributes:
        max_new_tokens: T, at least 1.
        temperature: 0 takes the most probable token, otherwise the divisor of the logits, at least 1e-6.
        top_k: sample among the k most probable tokens; 0 means all.
        top_p: sample among the fewest most probable tokens that together hold this probability, in (0, 1]; applied
            to what temperature and top_k leave.
        num_beams: beams per example; more than 1 needs temperature 0.
        length_penalty: beams are compared by sum of log-probabilities / length ** length_penalty; above 0 favours long.
        stop_ids: a row ends with the first of these; none: every row has T tokens.
        pad_id: what stands after the end of a row.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    pad_id: int = PAD

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range and for options that exclude each other."""
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "must be at least 1"),
            ("temperature", self.temperature == 0 or 1e-6 <= self.temperature < math.inf, "must be 0 or at least 1e-6"),
            ("top_k", self.top_k >= 0, "must be 0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "must be in (0, 1]"),
            ("num_beams", self.num_beams >= 1, "must be at least 1"),
            ("length_penalty", math.isfinite(self.length_penalty), "must be a finite number"),
            ("stop_ids", min(self.stop_ids, default=0) >= 0, "must be token ids, which are not negative"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"decode.{name}={getattr(self, name)!r} {rule}")
        sampled = [name for name in ("top_k", "top_p") if getattr(self, name) != getattr(type(self), name)]
        if self.temperature == 0 and sampled:
            raise UserError(f"decode.{sampled[0]} has no effect without sampling; set decode.temperature above 0")
        if self.temperature > 0 and self.num_beams > 1:
            raise UserError(
                f"decode.num_beams={self.num_beams} searches and decode.temperature={self.temperature} samples; "
                f"set num_beams=1 or temperature=0"
            )


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
        tokens: the new tokens, the stop token included, then `pad_id`.
        lengths: number of new tokens, the stop token included.
        scores: sum of the log-probabilities (nats) that the model gives to these tokens, without temperature, top_k,
            top_p or length penalty.
    """

    tokens: Int32[Array, "B T"]
    lengths: Int32[Array, " B"]
    scores: Float32[Array, " B"]


class _Rows(NamedTuple):
    """State of greedy decoding and sampling; `last` is the token to be fed next."""

    tokens: Int32[Array, "B T"]
    lengths: Int32[Array, " B"]
    scores: Float32[Array, " B"]
    active: Bool[Array, " B"]
    last: Int32[Array, " B"]


class _Beams(NamedTuple):
    """State of beam search, W beams an example: those still running and the best that have ended, best first each.

    `parents` says from which running beam of the previous step (a row of the cache) each running beam continues.
    `active` turns False for good when no running beam of the example can displace an ended one.
    """

    tokens: Int32[Array, "B W T"]
    sums: Float32[Array, "B W"]
    ended_tokens: Int32[Array, "B W T"]
    ended_sums: Float32[Array, "B W"]
    ended_lengths: Int32[Array, "B W"]
    active: Bool[Array, " B"]
    last: Int32[Array, " rows"]
    parents: Int32[Array, " rows"]


def generate(
    module: Any,
    params: Mapping[str, Any],
    embeddings: Float[Array, "B S D"] | Float[np.ndarray, "B S D"],
    input_mask: Bool[Array, "B S"] | Bool[np.ndarray, "B S"],
    *,
    config: DecodeConfig,
    rng: Array | None = None,
    beginning: Beginning | None = None,
) -> Generated:
    """Continues left-padded prompts, given as embeddings, until every row has stopped.

    Compiled once per module, config and shape, not for each set of stop ids; may itself be called under `jax.jit`
    (module and config closed over).
    Beam search ends, and prefers, as transformers' does by default: an example stops when its best running beam,
    normalised at its present length, is not above the worst of `num_beams` ended ones.

    Args:
        module: language model from `models.lm.build_lm`; its `unroll` does not matter, the loop unrolls the layers.
        params: its parameters; for many calls on a CPU, module and parameters from `prepare_decoding`.
        embeddings: prompts, words and image prefixes alike.
        input_mask: True at prompt positions; each row is False … False True … True with at least one True.
        config: static.
        rng: key for sampling; the same key gives the same tokens.
        beginning: what stands before `embeddings` in each prompt, which are then what follows.

    Raises:
        UserError: sampling without `rng`, or the text would outgrow the model's positions.
        ValueError: `input_mask` is not left-padded (checked where its values are known, so not under `jax.jit`).
    """
    if config.temperature > 0 and rng is None:
        raise UserError(f"decode.temperature={config.temperature} samples, which needs a random key; pass rng")
    longest = embeddings.shape[1]
    if not isinstance(input_mask, jax.core.Tracer):
        mask = np.asarray(input_mask)
        if not (mask[:, -1].all() and (mask[:, 1:] >= mask[:, :-1]).all()):
            raise ValueError("generate: prompts must be padded on the left and hold at least one position each")
        lengths = mask.sum(axis=1)
        if beginning is not None:
            lengths = lengths + np.asarray(beginning.mask).sum(axis=1)[np.asarray(beginning.owners)]
        longest = int(lengths.max(initial=0))
    limit = module.config.max_positions
    if limit and longest + config.max_new_tokens - 1 > limit:  # the last token is never fed
        raise UserError(
            f"decode.max_new_tokens={config.max_new_tokens} after a prompt of {longest} positions exceeds the language "
            f"model's {limit} positions; shorten the prompt or lower it to {max(limit - longest + 1, 0)}"
        )
    module, params = prepare_decoding(module, params)
    stops = np.full(max(8, 1 << (len(config.stop_ids) - 1).bit_length()), NO_TOKEN, np.int32)
    stops[: len(config.stop_ids)] = config.stop_ids
    config = dataclasses.replace(config, stop_ids=())
    embeddings, input_mask = jnp.asarray(embeddings), jnp.asarray(input_mask)
    result: Generated = _generate(params, embeddings, input_mask, rng, beginning, stops, module=module, config=config)
    return result


def prepare_decoding(module: Any, params: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Takes the layers' weights apart where they lie in a CPU's memory, which takes a second copy of them.

    There a layer's slice of the stack is copied at every token before it is used, which halves the speed; elsewhere the
    slice is read in place. Does nothing where that is done already, under `jax.jit`, and with arrays of other hosts.
    """
    if module.unroll == 0:
        return module, params
    leaf = jax.tree.leaves(params["blocks"])[0]
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not leaf.is_fully_addressable:
        return module, params
    if next(iter(leaf.devices())).platform != "cpu":
        return module, params
    return module.clone(unroll=0), unstack_layers(params)


@functools.partial(jax.jit, static_argnames=("module", "config"))
def _generate(
    params: Mapping[str, Any],
    embeddings: Float[Array, "B S D"],
    input_mask: Bool[Array, "B S"],
    rng: Array | None,
    beginning: Beginning | None,
    stops: Int32[Array, " stops"],
    *,
    module: Any,
    config: DecodeConfig,
) -> Generated:
    steps, beams = config.max_new_tokens, config.num_beams

    logits, cache, held = prefill(params, embeddings, input_mask, beginning, module=module, room=steps)
    batch, prompt = held.shape

    # Examples were prefilled once; from here on every beam is a row of its own, beams of an example side by side.
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), cache)
    lengths = jnp.repeat(held.sum(axis=1, dtype=jnp.int32), beams)
    filled = jnp.repeat(jnp.pad(held, ((0, 0), (0, steps)), constant_values=True), beams, axis=0)
    logits = jnp.repeat(logits, beams, axis=0)

    unrolled = module.clone(unroll=0)

    def feed(last: Int32[Array, " rows"], cache: Cache, step: Int32[Array, ""]) -> tuple[Float[Array, "rows V"], Cache]:
        """Logits after feeding the token that was chosen in `step`."""
        hidden, cache = unrolled.apply(
            {"params": params},
            unrolled.apply({"params": params}, last[:, None], method="embed"),
            positions=(lengths + step)[:, None],
            mask=cache_mask(filled, cache_index=prompt + step, queries=1),
            cache=cache,
            cache_index=prompt + step,
            method="stack",
        )
        return unrolled.apply({"params": params}, hidden, method="logits")[:, 0], cache

    start: Any
    choose: Callable[[Any, Array, Array], Any]  # (state, logits, step) → state
    if beams == 1:
        start = _start_rows(batch, config)
        choose = functools.partial(_choose_tokens, config=config, stops=stops, rng=rng)
    else:
        start, choose = _start_beams(batch, config), functools.partial(_choose_beams, config=config, stops=stops)
    state = choose(start, logits, jnp.int32(0))

    def unfinished(carry: tuple[Array, Any, Cache]) -> Array:
        step, state, _ = carry
        return jnp.logical_and(step < steps, state.active.any())

    def advance(carry: tuple[Array, Any, Cache]) -> tuple[Array, Any, Cache]:
        step, state, cache = carry
        if beams > 1:
            # All beams of an example share its prompt: only what was generated has to move (axis 3 is position).
            cache = jax.tree.map(lambda x: x.at[:, :, :, prompt:].set(x[:, state.parents, :, prompt:]), cache)
        logits, cache = feed(state.last, cache, step - 1)
        return step + 1, choose(state, logits, step), cache

    _, state, _ = lax.while_loop(unfinished, advance, (jnp.int32(1), state, cache))
    if isinstance(state, _Beams):
        return Generated(state.ended_tokens[:, 0], state.ended_lengths[:, 0], state.ended_sums[:, 0])
    return Generated(state.tokens, state.lengths, state.scores)


def _start_rows(batch: int, config: DecodeConfig) -> _Rows:
    return _Rows(
        tokens=jnp.full((batch, config.max_new_tokens), config.pad_id, jnp.int32),
        lengths=jnp.zeros((batch,), jnp.int32),
        scores=jnp.zeros((batch,), jnp.float32),
        active=jnp.ones((batch,), bool),
        last=jnp.zeros((batch,), jnp.int32),
    )


def _choose_tokens(
    state: _Rows,
    logits: Float[Array, "B V"],
    step: Int32[Array, ""],
    *,
    config: DecodeConfig,
    stops: Int32[Array, " stops"],
    rng: Array | None,
) -> _Rows:
    """Appends token number `step` to the rows that have not stopped."""
    logits = logits.astype(jnp.float32)
    if rng is None or config.temperature == 0:
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        chosen = _sample(logits, jax.random.fold_in(rng, step), config)
    score = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=1)[:, 0]
    chosen = jnp.where(state.active, chosen, config.pad_id)
    return _Rows(
        tokens=state.tokens.at[:, step].set(chosen),
        lengths=state.lengths + state.active,
        scores=state.scores + jnp.where(state.active, score, 0.0),
        active=state.active & ~jnp.isin(chosen, stops),
        last=chosen,
    )


def _sample(logits: Float32[Array, "B V"], key: Array, config: DecodeConfig) -> Int32[Array, " B"]:
    """Draws from softmax(logits / temperature), cut to top_k and then renormalised and cut to top_p."""
    # The largest logit becomes 0, so that a tiny temperature cannot overflow.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / config.temperature
    if not config.top_k and config.top_p == 1:
        return jax.random.categorical(key, scaled).astype(jnp.int32)
    vocab = logits.shape[-1]
    scaled, words = lax.top_k(scaled, min(config.top_k or vocab, vocab))
    if config.top_p < 1:
        probabilities = jax.nn.softmax(scaled)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # held by the more probable tokens; 0 for the first
        scaled = jnp.where(before < config.top_p, scaled, -jnp.inf)
    drawn = jax.random.categorical(key, scaled)
    return jnp.take_along_axis(words, drawn[:, None], axis=1)[:, 0].astype(jnp.int32)


def _start_beams(batch: int, config: DecodeConfig) -> _Beams:
    beams = config.num_beams
    tokens = jnp.full((batch, beams, config.max_new_tokens), config.pad_id, jnp.int32)
    nothing = jnp.full((batch, beams), IMPOSSIBLE, jnp.float32)
    return _Beams(
        tokens=tokens,
        sums=nothing.at[:, 0].set(0.0),  # all beams start alike: only the first may branch, or all would stay alike
        ended_tokens=tokens,
        ended_sums=nothing,
        ended_lengths=jnp.ones((batch, beams), jnp.int32),
        active=jnp.ones((batch,), bool),
        last=jnp.zeros((batch * beams,), jnp.int32),
        parents=jnp.zeros((batch * beams,), jnp.int32),
    )


def _choose_beams(
    state: _Beams,
    logits: Float[Array, "rows V"],
    step: Int32[Array, ""],
    *,
    config: DecodeConfig,
    stops: Int32[Array, " stops"],
) -> _Beams:
    """Extends the running beams by token number `step` and moves those that end to the ended ones."""
    batch, beams, steps = state.tokens.shape
    vocab = logits.shape[-1]
    sums = state.sums[:, :, None] + jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, vocab)

    # Every beam has at most one continuation per stop id, so this many candidates hold `beams` that go on.
    wanted = min(beams * (1 + stops.size), beams * vocab)
    candidate_sums, flat = lax.top_k(sums.reshape(batch, beams * vocab), wanted)
    parents, words = flat // vocab, (flat % vocab).astype(jnp.int32)
    candidates = _pick(state.tokens, parents).at[:, :, step].set(words)
    ends = jnp.isin(words, stops) | (step == steps - 1)

    # A candidate that ends counts only among the best `beams`; those after them are there to replace such ones.
    eligible = ends & (jnp.arange(wanted) < beams)[None, :] & state.active[:, None] & (candidate_sums > IMPOSSIBLE / 2)
    ended_sums = jnp.concatenate([state.ended_sums, jnp.where(eligible, candidate_sums, IMPOSSIBLE)], axis=1)
    ended_lengths = jnp.concatenate([state.ended_lengths, jnp.where(eligible, step + 1, 1)], axis=1)
    ended_tokens = jnp.concatenate([state.ended_tokens, candidates], axis=1)
    normalised, best = lax.top_k(_normalise(ended_sums, ended_lengths, config), beams)

    running_sums, keep = lax.top_k(jnp.where(ends, IMPOSSIBLE, candidate_sums), beams)
    best_running = _normalise(running_sums[:, 0], jnp.broadcast_to(step + 1, (batch,)), config)
    first_row = (jnp.arange(batch) * beams)[:, None]
    return _Beams(
        tokens=_pick(candidates, keep),
        sums=running_sums,
        ended_tokens=_pick(ended_tokens, best),
        ended_sums=_pick(ended_sums, best),
        ended_lengths=_pick(ended_lengths, best),
        active=state.active & (best_running > normalised[:, -1]),
        last=_pick(words, keep).reshape(-1),
        parents=(_pick(parents, keep) + first_row).reshape(-1).astype(jnp.int32),
    )


def _normalise(
    sums: Float32[Array, "*shape"], lengths: Int32[Array, "*shape"], config: DecodeConfig
) -> Float32[Array, "*shape"]:
    """Beam scores as they are compared."""
    return sums / lengths.astype(jnp.float32) ** config.length_penalty


def _pick(values: Array, beams: Int32[Array, "B chosen"]) -> Array:
    """Selects along the beam axis (axis 1) of each example."""
    picked: Array = jax.vmap(lambda row, index: row[index])(values, beams)
    return picked
