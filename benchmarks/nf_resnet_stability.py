"""Does NF-ResNet-50 train without a NaN at the paper's rate? `python benchmarks/nf_resnet_stability.py --plot=FILE`.

Trains the encoder and a linear prefix through a frozen language model, as the main job does, at a constant rate of 3e-4
with Adam(0.9, 0.95) and without clipping, once computing in float32 and once in bfloat16, and prints for each: the mean
loss of every tenth of the run, the number of losses and of parameters that are not finite, and the largest gradient
norm. Pictures are drawn here (one coloured shape somewhere, with noise); the caption is colour, shape, side of the
picture. The language model is a small random GPT-2 with large weights. Chance is ln 6 + ln 3 + ln 2 over 4 tokens, the
last being the end of the caption: 0.90 nats a token. `--plot` draws loss and gradient norm by step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from frozen_jax.models.gpt2 import GPT2Config
from frozen_jax.models.lm import build_lm
from frozen_jax.models.masks import causal_mask, positions_from_mask
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision

COLOURS = np.array([[200, 40, 40], [40, 180, 60], [50, 70, 210], [230, 210, 40], [150, 60, 170], [120, 120, 120]])
SHAPES = ("square", "disc", "triangle")
END, FIRST_SHAPE, FIRST_SIDE = 1, 8, 11
VOCABULARY = 16
SLOTS = 2
CHANCE = (np.log(6) + np.log(3) + np.log(2)) / 4


def draw_batch(rng: np.random.Generator, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws pictures uint8 [count, side, side, 3] and captions int32 [count, 4]."""
    colour, shape, right = rng.integers(0, 6, count), rng.integers(0, 3, count), rng.integers(0, 2, count)
    radius = rng.uniform(0.12, 0.2, count)
    x = np.where(right, rng.uniform(0.6, 0.8, count), rng.uniform(0.2, 0.4, count))
    y = rng.uniform(0.25, 0.75, count)
    grid = (np.arange(side) + 0.5) / side
    across = (grid[None, None, :] - x[:, None, None]) / radius[:, None, None]
    down = (grid[None, :, None] - y[:, None, None]) / radius[:, None, None]
    inside = np.stack(
        [
            (np.abs(across) < 0.9) & (np.abs(down) < 0.9),
            np.hypot(across, down) < 1.0,
            (down < 0.8) & (down > 2 * np.abs(across) - 1.0),
        ]
    )[shape, np.arange(count)]
    ground = rng.integers(200, 256, (count, 1, 1, 3))
    pictures = np.where(inside[..., None], COLOURS[colour][:, None, None, :], ground)
    pictures = pictures + rng.normal(0, 12, pictures.shape)
    captions = np.stack([2 + colour, FIRST_SHAPE + shape, FIRST_SIDE + right, np.full(count, END)], axis=1)
    return np.clip(pictures, 0, 255).astype(np.uint8), captions.astype(np.int32)


def train(options: argparse.Namespace, dtype: Any) -> tuple[list[float], list[float]]:
    """Trains once, prints the figures and returns loss and gradient norm of each step."""
    config = GPT2Config(
        vocab_size=VOCABULARY, max_positions=8, width=64, layers=2, heads=4, mlp_width=128, init_std=0.25
    )
    lm = build_lm(config, dtype=dtype)
    lm_params = jax.jit(lm.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    vision = build_vision("nf_resnet50", dtype=dtype)
    prefix = Prefix(SLOTS, config.embed_width, embedding_rms=config.init_std, dtype=dtype)
    pictures, captions = draw_batch(np.random.default_rng(0), options.batch, options.side)

    @jax.jit
    def draw_params(key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        pooled = jnp.zeros((1, vision.width))
        return {
            "vision": vision.init(keys[0], pictures[:1])["params"],
            "prefix": prefix.init(keys[1], pooled)["params"],
        }

    def loss_of(params: dict[str, Any], pictures: jax.Array, captions: jax.Array) -> jax.Array:
        vectors = prefix.apply(
            {"params": params["prefix"]}, vision.apply({"params": params["vision"]}, pictures).pooled
        )
        bound = {"params": lm_params}
        words = lm.apply(bound, captions[:, :-1], method="embed")
        embeddings = jnp.concatenate([vectors, words], axis=1)
        everything = jnp.ones(embeddings.shape[:2], bool)
        hidden, _ = lm.apply(
            bound,
            embeddings,
            positions=positions_from_mask(everything),
            mask=causal_mask(everything),
            method="stack",
        )
        logits = lm.apply(bound, hidden[:, SLOTS - 1 :], method="logits")
        return optax.softmax_cross_entropy_with_integer_labels(logits, captions).mean()

    optimiser = optax.adam(options.rate, b1=0.9, b2=0.95)

    def step(
        params: Any, state: Any, pictures: jax.Array, captions: jax.Array
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(params, pictures, captions)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss, optax.global_norm(gradient)

    params = draw_params(jax.random.key(0))
    state = optimiser.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, pictures, captions).compile()
    rng = np.random.default_rng(1)
    start = time.process_time()
    losses, norms = [], []
    for _ in range(options.steps):
        params, state, loss, norm = compiled(params, state, *draw_batch(rng, options.batch, options.side))
        losses.append(float(loss))
        norms.append(float(norm))
    seconds = time.process_time() - start
    bad = sum(int(jnp.sum(~jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))
    tenths = " ".join(f"{part.mean():.3f}" for part in np.array_split(np.asarray(losses), 10))
    print(f"{jnp.dtype(dtype).name}: loss by tenths of {options.steps} steps: {tenths}")
    print(
        f"  not finite: {int(np.sum(~np.isfinite(losses)))} losses, {bad} parameters; largest gradient norm "
        f"{np.max(norms):.2f}; {seconds / options.steps:.2f} CPU-s a step",
        flush=True,
    )
    return losses, norms


def draw(curves: Mapping[str, tuple[list[float], list[float]]], path: Path, *, rate: float) -> None:
    """Draws loss and gradient norm by step.

    Args:
        curves: of both, by dtype.
        path: a PNG file.
        rate: of Adam, for the title.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (loss_axis, norm_axis) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, (losses, norms) in curves.items():
        steps = range(1, len(losses) + 1)
        loss_axis.plot(steps, losses, linewidth=0.8, label=name)
        norm_axis.plot(steps, norms, linewidth=0.8, label=name)
    loss_axis.axhline(CHANCE, color="gray", linestyle=":", label="chance")
    loss_axis.set(xlabel="step", ylabel="loss, nats a token", title=f"NF-ResNet-50, Adam at {rate:g}", ylim=0)
    norm_axis.set(xlabel="step", ylabel="gradient norm, not clipped", title="gradient norm", yscale="log")
    loss_axis.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    """Reads the flags and trains in each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--rate", type=float, default=3e-4, help="of Adam")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw loss and gradient norm of each step there")
    options = parser.parse_args()
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
    curves = {name: train(options, jnp.dtype(name)) for name in options.dtypes}
    if options.plot is not None:
        draw(curves, options.plot, rate=options.rate)


if __name__ == "__main__":
    main()
