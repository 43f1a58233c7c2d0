"""SmolLM2-135M frozen, real pictures: Tux Paint's stamps and Noto's emoji, on a CPU.

    python -m frozen_jax.tools.fetch_data stamps emoji smollm2 efficientnet wordnet
    python -m frozen_jax.main --config=configs/stamps_smollm2.py --workdir=runs/stamps

EfficientNet-Lite0 with its ImageNet weights stays as it is too: its features are made once, and the linear prefix alone
is trained. `--config=configs/stamps_smollm2.py:classes` trains in every fourth row on what the encoder's own classifier
says of its 1,000 classes, and reaches most (docs/results.md):

    python -m frozen_jax.tools.fetch_data imagenet_names
    python -m frozen_jax.tools.class_features --config=configs/stamps_smollm2.py \\
      --pictures="jsonl:data/fetched/stamps/train.jsonl + jsonl:data/fetched/emoji/train.jsonl" \\
      --names=data/fetched/imagenet_names/names.json \\
      --held_out="jsonl:data/fetched/stamps/heldout.jsonl + jsonl:data/fetched/emoji/heldout.jsonl"

`:finetuned` trains the encoder along; `:nf_resnet` trains the paper's NF-ResNet-50 from scratch. Captioned in the
report are the held-out stamps, whose captions no training has seen.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config

PICTURES = "jsonl:data/fetched/stamps/train.jsonl + jsonl:data/fetched/emoji/train.jsonl"

PICTURES_AND_CLASSES = (
    "0.4 * jsonl:data/fetched/stamps/train.jsonl + 0.35 * jsonl:data/fetched/emoji/train.jsonl"
    " + 0.25 * class_features:data/fetched/class_features.safetensors"
)


def get_config(variant: str = "") -> ConfigDict:
    config = default_config()
    config.lm.path = "data/fetched/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.vision.name = "efficientnet_lite0"
    config.vision.path = "data/fetched/efficientnet/efficientnet_lite0.pth"
    config.vision.freeze = True
    config.vision.feature_cache = "runs/features"
    config.prefix.feature_norm = True  # an imported feature has no size that a prefix could count on
    config.prefix.dropout = 0.3
    config.data.train = PICTURES
    config.data.validation = "jsonl:data/fetched/stamps/heldout.jsonl"
    config.data.caption_format = " {caption}"
    config.data.question_fraction = 0.3  # "What kind of thing is this?"; no question of another set is trained on
    config.data.question_format = " Question: {question} Answer:"
    config.data.answer_format = " {answer}"
    config.data.pack = 4  # captions have 3 to 10 tokens, questions 12 to 15: half of unpacked rows would be padding
    config.data.max_tokens = 80  # four questions of 20 with bos, slots and marks; most rows are far shorter
    config.data.buckets = (44, 56, 80)
    config.data.bos = True  # without it before the prefix SmolLM2 learns nothing from pictures
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 30
    config.optim.clip_norm = 1.0
    config.train.steps = 360
    config.train.batch_size = 16
    config.train.log_every = 10
    config.train.evaluate_every = 360  # at the end alone: no step is chosen by held-out pictures
    config.train.validation_examples = 200
    config.checkpoint.every = 120
    config.evaluate.task = "caption"
    config.evaluate.caption.wordnet = "data/fetched/wordnet"
    config.evaluate.blind_control = True
    config.evaluate.max_new_tokens = 12
    config.evaluate.batch_size = 32
    if variant not in ("", "classes", "finetuned", "nf_resnet"):
        raise ValueError(f"configs/stamps_smollm2.py has no variant {variant!r}; use classes, finetuned or nf_resnet")
    if variant == "classes":
        config.data.train = PICTURES_AND_CLASSES
        config.data.question_fraction = 0.45  # 18 % of rows ask for a stamp's category: 8 % taught few
        config.train.steps = config.train.evaluate_every = 720  # with 360 and a dropout of 0.2 the loss was higher
    elif variant:
        config.vision.freeze = False
        config.vision.feature_cache = ""
        config.data.augment.flip = True
        config.data.augment.zoom = 0.8
        config.optim.learning_rate = 1e-4
    if variant == "nf_resnet":
        config.vision.name = "nf_resnet50"
        config.vision.path = ""
        config.prefix.feature_norm = False
        config.optim.learning_rate = 3e-4
    return config
