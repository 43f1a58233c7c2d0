"""A picture generator on Tux Paint's stamps and Noto's emoji: a U-Net learns to draw what frozen SmolLM2-135M has read.

    python -m frozen_jax.tools.fetch_data stamps emoji smollm2
    python -m frozen_jax.main --config=configs/pictures_generate.py --workdir=runs/pictures_generate
    python -m frozen_jax.tools.generate_image --workdir=runs/pictures_generate "A red bus."

Made for one GPU or TPU chip, where it has not been run yet: 1,979 pictures of 64 px, 20,000 steps of 64. The TPU
compiler takes it for a v5e chip; two cores of a CPU take 21 s for a step, five days for all. The variant
`:small` is for one core of a CPU: 2,500 steps of 16 with a smaller network, 84 CPU-minutes. The report says how often a
reader trained on the real pictures finds the asked kind of thing, an emoji's group, in what is drawn of held-out
captions, and which training pictures are nearest.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config(variant: str = "") -> ConfigDict:
    config = default_config()
    config.lm.path = "data/fetched/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.generator.name = "unet"
    config.generator.queries = 8
    config.generator.channels = (64, 128, 192, 256)
    config.generator.width = 256
    config.data.train = "jsonl:data/fetched/stamps/train.jsonl + jsonl:data/fetched/emoji/train.jsonl"
    config.data.validation = "jsonl:data/fetched/emoji/heldout.jsonl"
    config.data.image.size = 64
    config.data.max_tokens = 40
    config.data.caption_format = " {caption}"
    config.data.bos = True
    config.data.augment.flip = True
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 500
    config.optim.clip_norm = 1.0
    config.optim.beta2 = 0.99
    config.train.steps = 20_000
    config.train.batch_size = 64
    config.train.evaluate_every = 20_000  # at the end alone: no step is chosen by held-out pictures
    config.train.validation_examples = 199
    config.checkpoint.every = 2000
    config.evaluate.task = "generate"
    config.evaluate.examples = 199
    config.evaluate.batch_size = 64
    config.evaluate.generate.tags = ("kind",)
    if variant == "small":
        config.generator.queries = 4
        config.generator.channels = (32, 64, 128, 192)
        config.generator.width = 128
        config.data.buckets = (12, 16, 20, 40)
        config.optim.learning_rate = 2e-3
        config.optim.warmup_steps = 50
        config.train.steps = config.train.evaluate_every = 2500
        config.train.batch_size = 16
        config.checkpoint.every = 500
    elif variant:
        raise ValueError(f"configs/pictures_generate.py has no variant {variant!r}; use small")
    return config
