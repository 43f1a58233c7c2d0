"""What features made once save: a training step with a frozen CLIP ViT-B/32 in it, and on that encoder's features.

    PYTHONPATH=. python benchmarks/features.py --lm=gpt2 --batch=8 --json=features.json

Both steps train the prefix alone, begin with the same weights and have to have the same first loss. Beside them stands
the encoding that the features take once for each picture. Reading and decoding picture files, which the step on
pictures needs in every pass and the other one does not, is in `benchmarks/input_pipeline.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from frozen_jax.batch import Batch
from frozen_jax.config import OptimSettings
from frozen_jax.flops import count_train_step
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.state import Params, TrainState, match_rules, split
from frozen_jax.steps import LossOptions, make_train_step


def make_run(model: FrozenModel, params: Params, batch: Batch, *, steps: int) -> tuple[Callable[[], float], float]:
    """Compiles a step; returns what runs it `steps` times and its first loss."""
    rules = list_label_rules(params, lm_trains=False, vision_trains=False)
    trainable, frozen = split(params, match_rules(params, rules, what="freezing"))
    optimiser = make_optimiser(OptimSettings(), rules, steps=1000)
    trainable = jax.tree.map(jnp.copy, trainable)  # donated, and both variants begin with them
    state = TrainState(trainable, jax.jit(optimiser.init)(trainable))
    step = jax.jit(make_train_step(model, optimiser, accumulate=1, options=LossOptions()), donate_argnums=0)
    key = jax.random.key(0)

    def run() -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, frozen, batch, key)
        return float(metrics["loss"])

    state, metrics = step(state, frozen, batch, key)
    return run, float(metrics["loss"])


def time_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Times the step on pictures, the step on features, and the encoding."""
    dtype = jnp.dtype(options.dtype)
    config = lm_config_from_hf(common.LMS[options.lm])
    prefix = Prefix(options.slots, config.embed_width, embedding_rms=0.02, feature_norm=True, dtype=dtype)
    vision = build_vision("vit", dtype=dtype, image_size=options.image_size)
    model = FrozenModel(build_lm(config, dtype=dtype), vision, prefix)
    without = FrozenModel(model.lm, None, prefix)
    params = common.draw_params(common.describe_params(model, image_size=options.image_size, dtype=dtype))
    batch = common.draw_batch(options, config.vocab_size)
    rest = {name: tree for name, tree in params.items() if name != "vision"}
    encode = jax.jit(lambda vision, pictures: model.encode({"vision": vision}, pictures))
    features = encode(params["vision"], batch.images[:, 0])
    with_features = batch._replace(images=features[:, None])

    on_pictures, loss = make_run(model, params, jax.device_put(batch), steps=options.steps)
    on_features, same_loss = make_run(without, rest, jax.device_put(with_features), steps=options.steps)
    if not np.isclose(loss, same_loss, rtol=1e-4 if options.dtype == "float32" else 2e-2):
        raise SystemExit(f"not the same computation: the losses are {loss} and {same_loss}")

    def encode_all() -> None:
        for _ in range(options.steps):
            encode(params["vision"], batch.images[:, 0]).block_until_ready()

    variants = {"pictures": on_pictures, "features": on_features, "encoding": encode_all}
    rates = {
        name: options.batch * options.steps / seconds
        for name, seconds in common.measure(variants, rounds=options.rounds).items()
    }
    lm_rows = {name: tree for name, tree in rest.items() if name != "prefix"}
    trainable = {"prefix": params["prefix"]}
    costs = {
        "pictures": count_train_step(model, trainable, {**lm_rows, "vision": params["vision"]}, batch),
        "features": count_train_step(without, trainable, lm_rows, with_features),
    }
    return {
        "first_loss": loss,
        **{f"{name}_images_per_s": rate for name, rate in rates.items()},
        "ratio": rates["features"] / rates["pictures"],
        **{f"{name}_gflop_per_image": cost.flops_per_example / 1e9 for name, cost in costs.items()},
    }


def main() -> None:
    """Reads the flags, measures, reports."""
    parser = common.make_parser(__doc__)
    parser.set_defaults(slots=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument("--steps", type=int, default=1, help="between two readings of the clock; 10 or more on a GPU")
    options = parser.parse_args()
    common.prepare(options)
    common.report(options, common.describe_machine(options, peer=False), time_steps(options))


if __name__ == "__main__":
    main()
