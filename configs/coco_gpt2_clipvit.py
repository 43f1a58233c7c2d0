"""As in ClipCap: CLIP's ViT-B/32 and GPT-2 124M both frozen, a prefix of 10 vectors alone is trained, on COCO captions.

    python -m frozen_jax.main --config=configs/coco_gpt2_clipvit.py --workdir=runs/coco_gpt2_clipvit

Data: COCO 2014 in /data/coco (train2014, val2014) with Karpathy's dataset_coco.json. CLIP's weights have to be
safetensors: a directory of one's own serves as `--config.vision.path=DIR`.

Chip: docs/fits.md has what it fits.
Expected: the 113,287 training pictures are encoded once, 348 MB in runs/features, which takes at least 4 CPU-minutes of
decoding and is used again by every later run; the 10,000 steps, which neither open a picture nor run the encoder, then
take at least 2.5 minutes on one v5e, by the roofline of `tools/compile_check`; nobody has measured it there.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "gpt2"
    config.vision.name = "vit"
    config.vision.path = "openai/clip-vit-base-patch32"
    config.vision.freeze = True
    config.vision.feature_cache = "runs/features"
    config.prefix.length = 10
    config.prefix.feature_norm = True
    config.data.train = "karpathy:/data/coco/dataset_coco.json?root=/data/coco&split=train"
    config.data.validation = "karpathy:/data/coco/dataset_coco.json?root=/data/coco&split=val"
    config.data.max_tokens = 50
    config.optim.warmup_steps = 500
    config.optim.learning_rate = 1e-4
    config.train.steps = 10_000
    config.train.evaluate_every = 500
    config.train.patience = 3
    return config
