"""Frozen in miniature on real pictures: easy-VQA, a frozen 4-layer GPT-2, an NF-ResNet trained from scratch.

    python -m frozen_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Trains on captions only, then answers the test questions zero-shot, beside the blind and the shuffled-images control.
`--config=configs/quickstart.py:mixed` adds the training questions to the captions (the paper's VQA-mixed row).
`:retrieval` trains a token by which captions and dialogues of up to three questions find pictures, beside both; the
other applications are measured of the same model (docs/applications.md).
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config(variant: str = "") -> ConfigDict:
    config = default_config()
    config.lm.path = "package:scene_gpt2"
    config.vision.name = "nf_resnet_small"
    # A few layers need no protection from depth: branches at full weight (5 x alpha = 1) learn shapes twice as fast.
    config.vision.options = {"widths": (16, 48, 96), "stem_width": 16, "skip_gain": 5.0}
    config.prefix.layer_norm = True
    config.data.train = "easy_vqa:train"
    config.data.validation = "easy_vqa:validation"
    config.data.image.size = 64
    config.data.max_tokens = 24
    config.data.captions_per_example = 2
    config.data.caption_format = " {caption}"
    config.data.question_format = " Question: {question} Answer:"
    config.data.bos = True
    config.data.augment.flip = True
    config.optim.learning_rate = 4e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 1.0
    config.train.steps = 1000
    config.train.batch_size = 64
    config.train.evaluate_every = 100
    config.train.patience = 4
    config.train.validation_examples = 300
    config.evaluate.task = "easy_vqa"
    config.evaluate.blind_control = True
    if variant == "mixed":
        config.data.question_fraction = 0.5
        config.train.steps = 3000
    elif variant == "retrieval":
        config.retrieval.weight = 0.5
        config.retrieval.turns = 3
        config.data.question_fraction = 0.5
        config.data.max_tokens = 52  # three questions of 15 tokens with their answers, marks and slots
        config.train.steps = 600
        config.train.patience = 0
        config.evaluate.blind_control = False
    elif variant:
        raise ValueError(f"configs/quickstart.py has no variant {variant!r}; use mixed or retrieval")
    return config
