"""A frozen encoder sees each picture once: what it says is kept on disk (`config.vision.feature_cache`) and trained on.

Files and look-up are in `data/features.py`. Training then has towers without an encoder, whose "pictures" are features
f32[B, I, E]; questions after training are asked with the whole model. Next in the data flow: `data/pipeline.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, UInt8
from tqdm import tqdm

from frozen_jax.build import Towers
from frozen_jax.config import Config
from frozen_jax.data.dirty import Bad
from frozen_jax.data.features import FeatureFiles, FeatureTable, index_pictures
from frozen_jax.data.loading import ImageLoader
from frozen_jax.data.prefetching import prefetch
from frozen_jax.data.records import Source
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.processes import is_first, wait_for_all
from frozen_jax.state import Params
from frozen_jax.workdir import digest_config

FORMAT = 1
"""Of the files; features of another one are made anew."""

Encode = Callable[[UInt8[np.ndarray, "R height width 3"]], Float32[np.ndarray, "R E"]]


def drop_encoder(towers: Towers) -> Towers:
    """Returns the towers that train on features: the encoder is neither in the program nor on the devices."""
    frozen = {name: params for name, params in towers.frozen.items() if name != "vision"}
    return towers._replace(model=dataclasses.replace(towers.model, vision=None), frozen=frozen)


def open_features(source: Source, config: Config, towers: Towers, *, name: str) -> FeatureTable:
    """Returns the features of a source's pictures; encodes those that are not on disk yet, on all devices.

    Every process makes the same call and encodes its share of the files that are missing.

    Args:
        source: the records.
        config: with `vision.feature_cache`.
        towers: with the frozen encoder.
        name: of the source, for messages.

    Raises:
        UserError: a picture cannot be used and `data.on_bad` is "raise"; or the disk is full or failing.
    """
    images = config.data.image
    width = towers.model.vision.width  # type: ignore[union-attr]
    encode = make_encoder(towers, batch_size=min(config.evaluate.batch_size, len(source)))
    if config.blind:
        black = encode(np.zeros((1, images.size, images.size, 3), np.uint8))
        return FeatureTable([black], np.zeros(len(source), np.int64), width=width, source=source, images=images)
    index = index_pictures(source)
    key = {
        "format": FORMAT,
        "encoder": [config.vision.name, config.vision.options, str(towers.model.lm.dtype), towers.vision_fingerprint],
        "image": dataclasses.asdict(images),
        "pictures": index.digest,
    }
    files = FeatureFiles(
        Path(config.vision.feature_cache).expanduser() / digest_config(key), count=len(index.samples), width=width
    )
    for vector in index.vectors.values():
        if len(vector) != width:
            raise UserError(f"data: features of {len(vector)} numbers, the encoder's have {width}; make them with it")
    missing = files.missing()
    if is_first():
        lacking = sum(len(files.pictures(number)) for number in missing)
        size = f"{files.count:,} pictures x {width} float32, {files.count * width * 4 / 1e6:,.1f} MB"
        print(f"features of {name}: {size} in {files.directory}; {lacking:,} to encode", flush=True)
    wait_for_all(f"features of {name} listed")
    share = missing[jax.process_index() :: jax.process_count()]
    pictures = ImageLoader(source, images, cache_bytes=0, processes=config.data.processes)

    def load() -> Iterator[tuple[int, list[int], np.ndarray, dict[int, Bad]]]:
        size = config.evaluate.batch_size
        for number in share:
            whole = list(files.pictures(number))
            for start in range(0, len(whole), size):
                part = whole[start : start + size]
                yield number, part, *pictures.load(index.samples[part])

    total = sum(len(files.pictures(number)) for number in share)
    with tqdm(total=total, unit="pictures", disable=None if is_first() else True) as bar:
        for number, batches in itertools.groupby(prefetch(load(), depth=2), key=itemgetter(0)):
            first = files.pictures(number).start
            block = np.zeros((len(files.pictures(number)), width), np.float32)
            for _, part, pixels, bad in batches:
                if bad and config.data.on_bad == "raise":
                    raise UserError(bad[min(bad)].message)
                block[np.array(part) - first] = encode(pixels)
                block[[part[row] - first for row in bad]] = np.nan
                bar.update(len(part))
            files.write(number, block)
    wait_for_all(f"features of {name} made")
    return FeatureTable(files.open(), index.places, width=width, source=source, images=images, vectors=index.vectors)


def make_encoder(towers: Towers, *, batch_size: int) -> Encode:
    """Returns what encodes up to `batch_size` pictures, always in one shape, over all devices of this process."""
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("pictures",))
    size = -(-batch_size // len(devices)) * len(devices)
    vision = jax.device_put(towers.frozen["vision"], NamedSharding(mesh, PartitionSpec()))

    def encode(pixels: UInt8[np.ndarray, "R height width 3"]) -> Float32[np.ndarray, "R E"]:
        filled = np.zeros((size, *pixels.shape[1:]), np.uint8)
        filled[: len(pixels)] = pixels
        cut = jax.device_put(filled, NamedSharding(mesh, PartitionSpec("pictures")))
        return np.array(_encode(towers.model, {"vision": vision}, cut)[: len(pixels)])

    return encode


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: FrozenModel, params: Params, pictures: UInt8[Array, "R height width 3"]) -> Float32[Array, "R E"]:
    return model.encode(params, pictures).astype(jnp.float32)
