"""Pictures of texts: rows of words, the compiled sampler, batches. Called by `api.Model.draw`; the flow: `flow.py`.

A picture is a function of its text, its number in the call and the seed: the same call gives the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Key, UInt8

from frozen_jax.batch import PAD
from frozen_jax.errors import UserError
from frozen_jax.flow import draw_noise, follow, to_pixels
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.processes import deal
from frozen_jax.prompt import make_key, round_up
from frozen_jax.prompt_batches import fill_up
from frozen_jax.state import Params
from frozen_jax.tokenizer import Tokenizer

MOST_STEPS, MOST_GUIDANCE = 10_000, 1_000.0
"""What drawing takes: more steps change nothing, more guidance leaves float32, and the picture is black."""


@functools.partial(jax.jit, static_argnums=0, static_argnames=("steps", "guidance"))
def _draw(
    network: FrozenModel,
    params: Params,
    tokens: Int[Array | np.ndarray, "B S"],
    told: Bool[Array | np.ndarray, " B"],
    numbers: Int[Array | np.ndarray, " B"],
    rng: Key[Array, ""],
    *,
    steps: int,
    guidance: float,
) -> UInt8[Array, "B height width 3"]:
    assert network.generator is not None
    tokens, told = jnp.asarray(tokens), jnp.asarray(told)
    condition = network.condition(params, tokens)
    condition = jnp.where(told[:, None, None], condition, network.no_text(params, len(tokens)))
    noise = draw_noise(rng, jnp.asarray(numbers), size=network.generator.config.image_size)
    return to_pixels(follow(network, params, noise, condition, steps=steps, guidance=guidance))


def draw_pictures(
    network: FrozenModel,
    params: Params,
    tokens: Int32[np.ndarray, "R S"],
    told: Bool[np.ndarray, " R"],
    *,
    batch_size: int,
    steps: int,
    guidance: float,
    seed: int,
    put: Callable[[np.ndarray], np.ndarray | Array],
    devices: int,
) -> UInt8[np.ndarray, "R height width 3"]:
    """Draws one picture of each row, in batches; see `api.Model.draw`.

    Args:
        network: with a generator.
        params: the whole tree.
        tokens: from `lay_out_texts`.
        told: whether the row's text counts.
        batch_size: most pictures that are drawn together.
        steps: along the flow.
        guidance: see `flow.guided_velocity`.
        seed: of the noise.
        put: cuts the rows of a batch over the devices.
        devices: how many these are.

    Raises:
        UserError: an option is out of range.
    """
    assert network.generator is not None
    if not 1 <= steps <= MOST_STEPS or not 0 <= guidance <= MOST_GUIDANCE:
        raise UserError(
            f"draw: steps = {steps} must be at least 1 and at most {MOST_STEPS}, and guidance = {guidance} must not be "
            f"negative, NaN or over {MOST_GUIDANCE:g}"
        )
    rng, size = make_key(seed), network.generator.config.image_size

    def compute(start: int) -> bytes:
        here = range(start, min(start + batch_size, len(tokens)))
        rows = fill_up(here, of=len(tokens), most=batch_size, devices=devices)
        inputs = [put(array) for array in (tokens[rows], told[rows], np.asarray(rows, np.int32))]
        made = _draw(network, params, *inputs, rng, steps=steps, guidance=guidance)
        return np.asarray(made)[: len(here)].tobytes()

    pixels = bytearray().join(deal(range(0, len(tokens), batch_size), compute))
    return np.frombuffer(pixels, np.uint8).reshape(len(tokens), size, size, 3)


def lay_out_texts(
    network: FrozenModel, tokenizer: Tokenizer, texts: Sequence[str | None], *, bos: bool
) -> Int32[np.ndarray, "R S"]:
    """Returns the rows that a generator was trained on: beginning, words, end of text, padding behind.

    Args:
        network: with a generator.
        tokenizer: of the language model.
        texts: None gets a row without words.
        bos: rows begin with the tokenizer's beginning-of-sequence token.

    Raises:
        UserError: the model has no generator, or a text is empty or too long for the language model.
    """
    if network.generator is None:
        raise UserError("this model draws no pictures (generator.name is ''); load one that was trained to")
    if isinstance(texts, str):
        raise UserError(f"draw: texts is the text {texts[:40]!r}; give a list of texts")
    rows: list[list[int]] = []
    for text in texts:
        if text is not None and not text.strip():
            raise UserError("draw: a text is empty; say what to draw, or give None to draw without a text")
        marked = [tokenizer.bos_id if bos else None, *tokenizer.encode(text or ""), tokenizer.eos_id]
        rows.append([word for word in marked if word is not None])
    queries = network.generator.config.queries
    limit = network.lm.config.max_positions - queries
    longest = max(map(len, rows), default=1)
    if longest > limit:
        text = texts[int(np.argmax([len(row) for row in rows]))]
        raise UserError(
            f"draw: the text {str(text)[:40]!r} has {longest} tokens with its marks, and the language model has room "
            f"for {limit} before the {queries} queries; shorten it"
        )
    laid = np.full((len(rows), min(round_up(longest), limit)), PAD, np.int32)
    for row, ids in zip(laid, rows, strict=True):
        row[: len(ids)] = ids
    return laid
