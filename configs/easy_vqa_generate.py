"""A picture generator on easy-VQA: a small U-Net learns to draw what a frozen 4-layer GPT-2 has read.

    python -m frozen_jax.main --config=configs/easy_vqa_generate.py --workdir=runs/generate
    python -m frozen_jax.tools.generate_image --workdir=runs/generate "a red circle"

The report says how often a reader trained on real pictures finds the asked colour and shape: 94 % after 6,000 steps,
22 CPU-minutes; docs/applications.md has the figures.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "package:scene_gpt2"
    config.generator.name = "unet"
    config.data.train = "easy_vqa:train"
    config.data.validation = "easy_vqa:validation"
    config.data.image.size = 64
    config.data.max_tokens = 16
    config.data.caption_format = " {caption}"
    config.data.bos = True
    config.data.augment.flip = True
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 1.0
    config.optim.beta2 = 0.99
    config.train.steps = 6000
    config.train.batch_size = 16
    config.train.evaluate_every = 1000
    config.train.validation_examples = 96
    config.evaluate.task = "generate"
    config.evaluate.examples = 192
    config.evaluate.batch_size = 96
    config.evaluate.generate.source = "easy_vqa:test"
    config.evaluate.generate.reader_steps = 300
    config.evaluate.generate.steps = 10
    config.evaluate.generate.tags = ("colour", "shape")
    return config
