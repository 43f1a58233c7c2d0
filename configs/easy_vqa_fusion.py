"""Fusion of a picture with a question: easy-VQA as a choice among 13 answers, beside a frozen text side.

    python -m frozen_jax.main --config=configs/easy_vqa_fusion.py --workdir=runs/fusion

`--config.fusion.kind=KIND` joins the two otherwise: concat, gated, bilinear, cross_attention; or text or image alone.
The text side is the 4-layer GPT-2 that ships; `--config.lm.path=DIR` takes a BERT, such as MiniLM, from its directory.
All kinds and seeds in one table: `benchmarks/fusion_table.py`.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "package:scene_gpt2"
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (16, 48, 96), "stem_width": 16, "skip_gain": 5.0}
    config.fusion.kind = "gated"
    config.data.train = "easy_vqa:train"
    config.data.validation = "easy_vqa:validation"
    config.data.image.size = 64
    config.data.max_tokens = 24
    config.data.bos = True
    config.data.augment.flip = True
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 1.0
    config.train.steps = 1000
    config.train.batch_size = 64
    config.train.evaluate_every = 100
    config.train.patience = 4
    config.train.validation_examples = 300
    config.evaluate.task = "fusion"
    config.evaluate.fusion.source = "easy_vqa:test"
    config.evaluate.examples = 3000
    return config
