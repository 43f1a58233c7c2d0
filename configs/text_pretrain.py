"""Text stage of the quickstart: a small GPT-2 learns to describe scenes in words and to answer questions about them.

    python -m frozen_jax.main --config=configs/text_pretrain.py --workdir=runs/text_pretrain

It sees no picture. Its result, `<workdir>/lm`, is what ships as `package:scene_gpt2`; on the same kind of device and
with the same versions the same bits come out. Data: `frozen_jax/data/scenes.py`.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.mode = "scratch"
    config.lm.architecture = {
        "model_type": "gpt2",
        "vocab_size": 512,
        "n_positions": 128,
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
        "activation_function": "relu",
        # Narrow layers need larger initial weights than the 768 units for which 0.02 was chosen.
        "initializer_range": 0.1,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config.data.train = "scene_text:1"
    config.data.validation = "scene_text:2"
    config.data.max_tokens = 34
    config.data.captions_per_example = 2
    config.data.question_fraction = 0.92
    config.data.bos = True
    config.data.caption_format = " {caption}"
    config.data.question_format = " Question: {question} Answer:"
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.beta2 = 0.98
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.train.steps = 1600
    config.train.batch_size = 128
    config.train.log_every = 50
    config.train.evaluate_every = 250
    config.train.validation_examples = 512
    config.train.embedding_noise = 0.05
    config.checkpoint.every = 1000
    config.evaluate.task = "scene_text"
    config.evaluate.max_new_tokens = 4
    return config
