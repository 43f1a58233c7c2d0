"""A trained picture generator as a directory for PyTorch, read back and compared before it gets its name.

Beside `modeling_generator.py`, which ships with this package: the language model as transformers has it, the
generator's tensors under the names of `convert/generator.py`, and what both need in `config.json`.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.adapters import widen_lm
from frozen_jax.api import Model
from frozen_jax.build import PACKAGE
from frozen_jax.config import Config
from frozen_jax.convert.generator import generator_table
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.convert.safetensors_writer import save_tensors
from frozen_jax.convert.tables import export_tensors, import_tensors
from frozen_jax.drawing import lay_out_texts
from frozen_jax.errors import UserError
from frozen_jax.export.check import import_modeling
from frozen_jax.export.layout import CONFIG, GENERATOR_TYPE, WEIGHTS
from frozen_jax.export.write import write_digests
from frozen_jax.flow import TIME_MEAN, follow, guided_velocity, to_pixels
from frozen_jax.language_model import load_lm, save_lm
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.state import flatten
from frozen_jax.workdir import write_json_atomic

MODELING = PACKAGE / "assets" / "pytorch" / "modeling_generator.py"
LANGUAGE_MODEL = "language_model"

TOLERANCE = 1e-4
"""Largest difference between velocities, times their standard deviation where that is above 1."""

GREY_LEVELS = 1
"""Largest difference between pixels of two pictures from the same noise, of 255."""

TIMES, STEPS, GUIDANCE = (0.0, 0.4, 0.9), 4, 2.0


class Difference(NamedTuple):
    """How far two generators are apart.

    Attributes:
        velocity: the largest difference between velocities.
        deviation: standard deviation of the velocities.
        pixels: the largest difference between pictures from the same noise, in grey levels.
    """

    velocity: float
    deviation: float
    pixels: int


def widen_generator(model: Model) -> Model:
    """Returns the model in float32, on the host: the very weights it has, int8 kernels and adapters multiplied out."""
    network = model.network
    assert network.generator is not None
    lm = network.lm.clone(dtype=jnp.float32)
    wide = FrozenModel(lm, generator=network.generator.clone(dtype=jnp.float32))
    generator = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), jax.device_get(model.params["generator"]))
    return dataclasses.replace(model, network=wide, params={"generator": generator, "lm": widen_lm(model.params["lm"])})


def write_generator(model: Model, config: Config, directory: Path) -> None:
    """Fills a directory that `modeling_generator.py`, a copy of which lies in it, reads.

    Args:
        model: in float32, from `widen_generator`.
        config: of its run.
        directory: exists and is empty.
    """
    network, tokenizer = model.network, model.tokenizer
    assert network.generator is not None
    settings = {
        "model_type": GENERATOR_TYPE,
        **dataclasses.asdict(network.generator.config),
        "time_mean": TIME_MEAN,
        "caption_format": config.data.caption_format,
        "add_bos": model.bos and tokenizer.bos_id is not None,
        "add_eos": tokenizer.eos_id is not None,
        "steps": config.evaluate.generate.steps,
        "guidance": config.evaluate.generate.guidance,
    }
    save_lm(directory / LANGUAGE_MODEL, network.lm.config, model.params["lm"], tokenizer)
    tensors = export_tensors(generator_table(network.generator.config), model.params["generator"])
    save_tensors(directory / WEIGHTS, tensors)
    write_json_atomic(directory / CONFIG, settings)
    shutil.copyfile(MODELING, directory / MODELING.name)
    write_digests(directory)


def check_generator_round_trip(model: Model, directory: Path) -> None:
    """Reads an export back and compares every parameter bit by bit.

    Raises:
        RuntimeError: they differ, which is a defect of this package.
    """
    assert model.network.generator is not None
    table = generator_table(model.network.generator.config)
    read = {
        "lm": load_lm(directory / LANGUAGE_MODEL, place=lambda params: params).params,
        "generator": import_tensors(table, SafetensorsDirectory(directory), dtype=np.float32),
    }
    here, there = flatten(model.params), flatten(read)
    different = sorted({*here} ^ {*there})
    different += [path for path in here if path in there and here[path].tobytes() != np.asarray(there[path]).tobytes()]
    if different:
        raise RuntimeError(f"{directory}: read back, {len(different)} parameters differ, such as {different[0]}")


def compare_generators(model: Model, config: Config, directory: Path) -> Difference:
    """Loads an export in PyTorch and runs both from the same noise: velocities at several times, then whole pictures.

    Raises:
        UserError: velocities or pictures differ.
    """
    import torch

    theirs = import_modeling(directory / MODELING.name).PictureGenerator.from_pretrained(directory)
    network, params = model.network, jax.device_put(model.params)
    assert network.generator is not None
    texts = [config.data.caption_format.format(caption=text) for text in ("a red circle", "one thing", "a blue one")]
    size = network.generator.config.image_size
    noise = np.random.default_rng(0).standard_normal((len(texts), size, size, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        condition = network.condition(params, lay_out_texts(network, model.tokenizer, texts, bos=model.bos))
        ours = [
            guided_velocity(network, params, jnp.asarray(noise), jnp.float32(time), condition, guidance=GUIDANCE)
            for time in TIMES
        ]
        drawn = to_pixels(follow(network, params, jnp.asarray(noise), condition, steps=STEPS, guidance=GUIDANCE))
    read, start = theirs.read(texts), torch.tensor(noise)
    moved = [theirs.velocity(start, time, read, guidance=GUIDANCE).numpy() for time in TIMES]
    made = theirs.draw(texts, steps=STEPS, guidance=GUIDANCE, noise=start).numpy()
    result = Difference(
        velocity=max(float(np.abs(np.asarray(one) - other).max()) for one, other in zip(ours, moved, strict=True)),
        deviation=float(np.std(moved)),
        pixels=int(np.abs(np.asarray(drawn).astype(int) - made.astype(int)).max()),
    )
    if result.velocity > TOLERANCE * max(1.0, result.deviation) or result.pixels > GREY_LEVELS:
        raise UserError(
            f"PyTorch disagrees: velocities differ by {result.velocity:.1e} (standard deviation "
            f"{result.deviation:.1e}), pictures by {result.pixels} grey levels; nothing was written: report this with "
            "the versions of torch and transformers"
        )
    return result
