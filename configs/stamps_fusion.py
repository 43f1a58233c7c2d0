"""Fusion of a picture with its caption: which of 15 kinds of thing a stamp of Tux Paint is, beside a frozen MiniLM.

    python -m frozen_jax.tools.fetch_data stamps minilm efficientnet
    python -m frozen_jax.main --config=configs/stamps_fusion.py --workdir=runs/stamps_fusion

Both sides are frozen, EfficientNet-Lite0 and MiniLM; the fusion alone is trained, on 599 stamps. In the report are the
101 held-out ones, whose captions no training has seen. All kinds of fusion but `cross_attention`, which looks at places
and not at kept features: `benchmarks/fusion_table.py --config=configs/stamps_fusion.py`.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "data/fetched/minilm"
    config.vision.name = "efficientnet_lite0"
    config.vision.path = "data/fetched/efficientnet/efficientnet_lite0.pth"
    config.vision.freeze = True
    config.vision.feature_cache = "runs/features"
    config.fusion.kind = "gated"
    config.fusion.item = "caption"
    config.fusion.dropout = 0.3
    config.data.train = "jsonl:data/fetched/stamps/train.jsonl"
    config.data.validation = "jsonl:data/fetched/stamps/heldout.jsonl"
    config.data.max_tokens = 96
    config.data.buckets = (24, 96)
    config.data.bos = True
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 20
    config.optim.clip_norm = 1.0
    config.train.steps = 200
    config.train.batch_size = 32
    config.train.evaluate_every = 200  # at the end alone: no step is chosen by held-out pictures
    config.evaluate.task = "fusion"
    config.evaluate.fusion.source = "jsonl:data/fetched/stamps/heldout.jsonl"
    return config
