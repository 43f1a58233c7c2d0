"""The released model `frozen_jax/emoji_smollm2`: SmolLM2-135M frozen, trained on data of permissive licences alone.

    python -m frozen_jax.tools.fetch_data emoji smollm2 efficientnet imagenet_names wordnet
    python -m frozen_jax.tools.class_features --config=configs/emoji_smollm2.py \\
      --pictures=jsonl:data/fetched/emoji/train.jsonl --names=data/fetched/imagenet_names/names.json \\
      --held_out=jsonl:data/fetched/emoji/heldout.jsonl --out=runs/emoji_classes.safetensors
    python -m frozen_jax.main --config=configs/emoji_smollm2.py --workdir=runs/emoji

The recipe of `configs/stamps_smollm2.py:classes` without the stamps, which are under the GPL, and with easy-VQA's
pictures; all captions are sentences such as "A hamster." and "A red circle.". 200 steps show each emoji about once and
take 310 CPU-seconds. Captioned in the report are the held-out emoji.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config

# The part of easy-VQA's training pictures that is called `validation` there: 300, so that
# their features are made in half a minute; shapes are learnt from them, colours in part (docs/results.md).
PICTURES = (
    "0.45 * jsonl:data/fetched/emoji/train.jsonl + 0.4 * class_features:runs/emoji_classes.safetensors"
    " + 0.15 * easy_vqa:validation?captions=sentences"
)


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "data/fetched/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.vision.name = "efficientnet_lite0"
    config.vision.path = "data/fetched/efficientnet/efficientnet_lite0.pth"
    config.vision.freeze = True
    config.vision.feature_cache = "runs/features"
    config.prefix.feature_norm = True
    config.prefix.dropout = 0.2
    config.data.train = PICTURES
    config.data.validation = "jsonl:data/fetched/emoji/heldout.jsonl"
    config.data.caption_format = " {caption}"
    config.data.max_tokens = 24
    config.data.buckets = (12, 16, 24)
    config.data.bos = True
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 20
    config.optim.clip_norm = 1.0
    config.train.steps = 200
    config.train.batch_size = 16
    config.train.log_every = 10
    config.train.evaluate_every = 200
    config.train.validation_examples = 199
    config.checkpoint.every = 100
    config.evaluate.task = "caption"
    config.evaluate.caption.wordnet = "data/fetched/wordnet"
    config.evaluate.max_new_tokens = 12
    config.evaluate.batch_size = 32
    return config
