"""The whole run on synthetic pictures with two layers, about 10 s on a CPU: for tests and for trying things.

python -m frozen_jax.main --config=configs/debug_tiny.py --workdir=runs/debug_tiny
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "package:scene_gpt2"
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8, 16), "depths": (1, 1), "stem_width": 8}
    config.prefix.layer_norm = True
    config.data.train = "fake:64"
    config.data.validation = "fake:16"
    config.data.image.size = 16
    config.data.max_tokens = 40
    config.data.caption_format = " {caption}"
    config.data.bos = True
    config.optim.learning_rate = 1e-3
    config.train.steps = 20
    config.train.batch_size = 8
    config.train.log_every = 5
    config.train.evaluate_every = 10
    config.checkpoint.every = 5
    config.telemetry.captions = 0  # a program more to compile
    return config
