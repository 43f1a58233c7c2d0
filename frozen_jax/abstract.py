"""A run without its arrays: shapes, dtypes and shardings of all that a training step takes. Nothing is allocated.

For looking at a run before paying for it: `tools/inspect.py` prints it, and a step compiles from it for devices that
are not there. Next in the data flow: `train.compile_train_step`, whose arguments these are.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from frozen_jax.adapters import adapt_lm
from frozen_jax.batch import Batch
from frozen_jax.build import build_model, choose_dtype, resolve_path
from frozen_jax.config import Config
from frozen_jax.language_model import read_lm_config
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import LMConfig, lm_config_from_hf
from frozen_jax.models.vision import build_vision
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.quantise import describe_quantised
from frozen_jax.sharding import AnyMesh, Placement, by_example, check_tensor, place, replicated
from frozen_jax.sharding_rules import list_sharding_rules
from frozen_jax.state import LabelRules, Params, TrainState, match_rules, merge, split


class AbstractRun(NamedTuple):
    """What `train.compile_train_step(…)(state, frozen, batch, rng)` takes, as `jax.ShapeDtypeStruct` with shardings.

    Attributes:
        model: the modules.
        rules: freezing rules (`optim.list_label_rules`).
        placement: where parameters lie, and on which mesh.
        state: trainable parameters and optimiser state, as before the first step.
        frozen: the frozen parameters, in the compute dtype.
        batch: one global batch.
        rng: a key.
    """

    model: FrozenModel
    rules: LabelRules
    placement: Placement
    state: TrainState
    frozen: Params
    batch: Batch
    rng: jax.ShapeDtypeStruct


def abstract_run(config: Config, mesh: AnyMesh, *, platform: str = "") -> AbstractRun:
    """Describes a run on a mesh, whether or not its devices are there.

    Of a language model on disk or on a hub only the config is read, so the prefix's initial size is taken as 1, which
    is a constant in the program and changes no shape.

    Args:
        config: the run.
        mesh: concrete (of devices here, or of a compilation target) or abstract (sizes alone).
        platform: decides what `lm.dtype="auto"` means; "" takes it from the mesh's devices, or else from those here.

    Raises:
        UserError: no language model config to be had, or an option or an axis that does not fit.
    """
    if not platform and isinstance(mesh, Mesh):
        platform = mesh.devices.flat[0].platform
    compute = choose_dtype(config.lm.dtype, platform=platform)
    model = build_model(config, _lm_config(config), compute=compute, embedding_rms=1.0)
    check_tensor(model.lm.config, mesh)
    draw = functools.partial(model.init_vision, image_size=config.data.image.size)
    key = jax.random.key(0)
    params = {
        **jax.eval_shape(model.init_lm, key),
        **jax.eval_shape(draw, key),
        **jax.eval_shape(model.init_generator, key),
    }
    if config.adapts_lm:
        adapt = functools.partial(adapt_lm, lora_rank=config.lm.lora_rank, settings=config.adaptation)
        params["lm"] = jax.eval_shape(adapt, key, params["lm"])
    vision_trains = not config.vision.freeze
    rules = list_label_rules(params, lm_trains=config.lm.mode != "frozen", vision_trains=vision_trains)
    trainable, frozen = split(params, match_rules(params, rules, what="freezing"))
    if "lm" in frozen:
        stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, compute), frozen["lm"])
        frozen = {**frozen, "lm": describe_quantised(stored) if config.lm.weights == "int8" else stored}
    if config.vision.feature_cache:
        model = dataclasses.replace(model, vision=None)
        frozen = {name: tree for name, tree in frozen.items() if name != "vision"}
        params = merge(trainable, frozen)
    placement = place(trainable, frozen, list_sharding_rules(model, params), mesh, frozen_choice=config.mesh.frozen)
    optimiser = make_optimiser(config.optim, rules, steps=config.train.steps)
    key = jax.eval_shape(jax.random.key, 0)
    rng = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    return AbstractRun(
        model, rules, placement, placement.state(optimiser), placement.frozen, abstract_batch(config, mesh), rng
    )


def abstract_batch(config: Config, mesh: AnyMesh) -> Batch:
    """Describes one global training batch of a run."""
    pack, size = config.data.pack, config.data.image.size
    rows = config.train.batch_size // pack
    sharding = by_example(mesh)

    def describe(dtype: DTypeLike, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    positions = (rows, config.data.max_tokens)
    images = describe(jnp.uint8, *((rows, pack, size, size, 3) if config.uses_pictures else (rows, 0, 1, 1, 3)))
    if config.vision.feature_cache:
        images = describe(jnp.float32, rows, pack, build_vision(config.vision.name, **config.vision.options).width)
    return Batch(
        images=images,
        tokens=describe(jnp.int32, *positions),
        loss_mask=describe(jnp.float32, *positions),
        sample_ids=describe(jnp.int32, config.train.batch_size),
        segments=describe(jnp.int32, *positions) if pack > 1 else None,
        labels=describe(jnp.int32, rows) if config.fusion.kind else None,
    )


def _lm_config(config: Config) -> LMConfig:
    if config.lm.path:
        return read_lm_config(resolve_path(config.lm.path))
    return lm_config_from_hf(config.lm.architecture)
