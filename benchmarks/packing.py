"""What padding costs, and what buckets and packing save: `python benchmarks/packing.py`.

Captions of the lengths of COCO's (about 13 tokens with begin and end mark, 2 image slots extra; the longest 30) go
through a training step as single padded rows, as rows cut to buckets, and packed 2, 4 and 8 to a row. Printed for each:
positions of the language model per caption, and captions per CPU-second of the whole step. The language model has the
width and vocabulary of GPT-2 124M, random weights and `--layers` of its layers; the encoder is a tiny one, so that the
language model's work is what is measured. The contestants take turns and medians are given, since other programs may
use the machine too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frozen_jax.batch import Batch
from frozen_jax.config import OptimSettings
from frozen_jax.data.sequences import lay_out_batch, trim_to_bucket
from frozen_jax.data.text import Piece, RowLayout
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.state import TrainState, match_rules, split
from frozen_jax.steps import LossOptions, make_train_step
from frozen_jax.workdir import collect_versions, write_json_atomic

SIDE, SLOTS, LONGEST = 32, 2, 34
PACKED = {2: 40, 4: 64, 8: 128}
"""Positions of a row by the number of pairs in it: about 16 for each."""


def make_batches(captions: int) -> dict[str, Batch]:
    """Lays the same captions out in every way."""
    rng = np.random.default_rng(0)
    words = np.clip(rng.normal(11.5, 3.0, captions).round(), 5, 28).astype(int)
    pieces = [Piece(rng.integers(0, 50257, count).tolist()) for count in words]
    images = rng.integers(0, 256, (captions, 1, SIDE, SIDE, 3), np.uint8)
    layout = RowLayout(max_tokens=LONGEST, prefix_length=SLOTS, bos_id=50256, eos_id=50256)

    def lay_out(max_tokens: int, pack: int) -> Batch:
        own = RowLayout(max_tokens, SLOTS, layout.bos_id, layout.eos_id)
        return lay_out_batch(images, pieces, np.arange(captions), layout=own, pack=pack, paired=False)

    padded = lay_out(LONGEST, 1)
    batches = {f"padded to {LONGEST}": padded, "buckets of 4": trim_to_bucket(padded, buckets=range(12, 37, 4))}
    for pack, length in PACKED.items():
        batches[f"packed {pack} to a row of {length}"] = lay_out(length, pack)
    return batches


def build(layers: int) -> tuple[Any, TrainState, Any]:
    """Returns (jitted step, state, frozen parameters)."""
    lm = build_lm(lm_config_from_hf({"model_type": "gpt2", "n_layer": layers}))
    vision = build_vision("nf_resnet_small", widths=(8,), depths=(1,), stem_width=8)
    model = FrozenModel(lm, vision, Prefix(length=SLOTS, width=768, embedding_rms=0.02))
    params = jax.jit(lambda key: {**model.init_lm(key), **model.init_vision(key, image_size=SIDE)})(jax.random.key(0))
    rules = list_label_rules(params, lm_trains=False)
    trainable, frozen = split(params, match_rules(params, rules, what="freezing"))
    optimiser = make_optimiser(OptimSettings(), rules, steps=10)
    step = jax.jit(make_train_step(model, optimiser, accumulate=1, options=LossOptions()))
    return step, TrainState(trainable, optimiser.init(trainable)), frozen


def main() -> None:
    """Reads the flags, measures and prints."""
    parser = argparse.ArgumentParser(description="What padding costs and packing saves.")
    parser.add_argument("--captions", type=int, default=64, help="per step")
    parser.add_argument("--layers", type=int, default=4, help="of the language model; GPT-2 124M has 12")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    batches = make_batches(given.captions)
    step, state, frozen = build(given.layers)
    key = jax.random.key(1)
    losses = {name: float(step(state, frozen, batch, key)[1]["loss"]) for name, batch in batches.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(given.rounds):
        for name, batch in batches.items():
            begin = time.process_time()
            jax.block_until_ready(step(state, frozen, batch, key))
            seconds[name].append(time.process_time() - begin)
    speeds = {name: given.captions / statistics.median(values) for name, values in seconds.items()}
    first = next(iter(speeds.values()))
    for name, batch in batches.items():
        print(
            f"{name:24} {batch.tokens.size / given.captions:5.1f} positions a caption, {speeds[name]:6.1f} captions "
            f"per CPU-second, {speeds[name] / first:.2f} x padded, loss {losses[name]:.5f}"
        )
    if given.json:
        write_json_atomic(given.json, {"captions_per_cpu_s": speeds, "versions": collect_versions()})


if __name__ == "__main__":
    main()
