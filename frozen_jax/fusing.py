"""A model of `config.fusion` in use: vectors and classes of items that have a picture and a text.

    model = frozen_jax.load("runs/fusion")
    fused = fuse(model, [(pathlib.Path("0.png"), "what color is the shape?")])
    classes = model.network.fusion.classes

`tasks/fusion.py` measures by it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, UInt8

from frozen_jax.api import Model, Picture
from frozen_jax.data.images import load_image
from frozen_jax.data.text import Piece, RowLayout, text_row
from frozen_jax.errors import UserError
from frozen_jax.meter import count
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.prompt import check_pictures, round_up
from frozen_jax.prompt_batches import fill_up
from frozen_jax.sharding import find_row_sharding
from frozen_jax.state import Params

Pixels = UInt8[np.ndarray, "height width 3"]


class Fused(NamedTuple):
    """What a fusion says about items.

    Attributes:
        vectors: of mean 0 and variance 1; alike for items of one class.
        probabilities: of each class, in the order of `model.network.fusion.classes`.
    """

    vectors: Float32[np.ndarray, "R W"]
    probabilities: Float32[np.ndarray, "R C"]


def fuse(model: Model, items: Sequence[tuple[Picture, str]]) -> Fused:
    """Returns a vector for each item, and the probability of each class.

    Args:
        model: that was trained with `config.fusion.kind`.
        items: pictures with their texts, worded as in training; the kind `image` reads none, which may then be "". A
            picture that comes again in the same batch or the next is opened once.

    Raises:
        UserError: the model has no fusion, a picture cannot be opened, or a text is empty or too long.
    """
    network = model.network
    if network.fusion is None:
        raise UserError("this model predicts words; train one that names classes with config.fusion.kind")
    sharding = find_row_sharding(model.params)
    devices = 1 if sharding is None else sharding.mesh.shape["data"]
    vectors = np.zeros((len(items), network.fusion.width), np.float32)
    probabilities = np.zeros((len(items), len(network.fusion.classes)), np.float32)
    with count(model, len(items)):
        tokens = _lay_out(model, [text for _, text in items], wordless=network.fusion.kind == "image")
        pictures = [picture for picture, _ in items]
        check_pictures(pictures)
        opened: dict[int, Pixels] = {}
        for start in range(0, len(items), model.batch_size):
            rows = list(range(start, min(start + model.batch_size, len(items))))
            filled = fill_up(rows, of=len(items), most=model.batch_size, devices=devices)
            opened = _open(model, [pictures[row] for row in rows], opened)
            pixels = np.stack([opened[id(pictures[row])] for row in filled])
            batch = (pixels[:, None], tokens[filled])
            made = _run(network, model.params, *(batch if sharding is None else jax.device_put(batch, sharding)))
            vectors[rows], probabilities[rows] = (np.asarray(part)[: len(rows)] for part in made)
    return Fused(vectors, probabilities)


@functools.partial(jax.jit, static_argnums=0)
def _run(
    network: FrozenModel,
    params: Params,
    images: UInt8[Array | np.ndarray, "B 1 height width 3"],
    tokens: Int[Array | np.ndarray, "B S"],
) -> tuple[Float32[Array, "B W"], Float32[Array, "B C"]]:
    vectors, logits = network.fuse(params, images, tokens)
    return vectors, jax.nn.softmax(logits, axis=-1)


def _lay_out(model: Model, texts: Sequence[str], *, wordless: bool) -> Int[np.ndarray, "R S"]:
    """Returns rows of tokens as in training: bos, words (or none, where that is allowed), eos, padding."""
    encode = functools.lru_cache(maxsize=65536)(model.tokenizer.encode)
    words = [encode(text) for text in texts]
    if not all(words) and not wordless:
        raise UserError(f"item {words.index([])} has the text {texts[words.index([])]!r}; give it at least one word")
    bos_id = model.tokenizer.bos_id if model.bos else None
    longest = max(map(len, words), default=0) + (bos_id is not None) + 1
    limit = model.network.lm.config.max_positions
    if longest > limit:
        raise UserError(f"a text takes {longest} tokens, and the language model has {limit} positions; shorten it")
    length = min(round_up(longest), limit)
    layout = RowLayout(max_tokens=length, prefix_length=0, bos_id=bos_id, eos_id=model.tokenizer.eos_id)
    rows = [text_row([Piece((), prompt=ids, images=0)], layout=layout)[0] for ids in words]
    return np.stack(rows) if rows else np.zeros((0, length), np.int32)


def _open(model: Model, pictures: Sequence[Picture], opened: Mapping[int, Pixels]) -> dict[int, Pixels]:
    """Opens the different pictures of a batch but those that the batch before had; black ones for a blind model.

    Args:
        model: prepares them.
        pictures: of the batch.
        opened: of the batch before, by the pictures' identities.
    """
    size = model.images.size
    different = {id(picture): picture for picture in pictures}
    if model.blind:
        return dict.fromkeys(different, np.zeros((size, size, 3), np.uint8))
    missing = {key: picture for key, picture in different.items() if key not in opened}
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(functools.partial(load_image, options=model.images), missing.values())
        new = dict(zip(missing, found, strict=True))
    return {key: new[key] if key in new else opened[key] for key in different}
