"""In-context binding in miniature: a frozen language model that has read about new names, and pictures with captions.

    python -m frozen_jax.main --config=configs/binding_text.py --workdir=runs/binding_text
    python -m frozen_jax.main --config=configs/binding_text.py:long --workdir=runs/binding_text_long
    python -m frozen_jax.main --config=configs/binding.py --workdir=runs/binding

The first two make the language model, from text alone. The third trains the vision side on easy-VQA's pictures with
single captions, two pictures with their captions in most rows; no new name is in its training. Then it is asked to name
test pictures by names that it meets in the prompt, beside the blind control and the text oracle. Episodes, and what was
reached: `docs/binding.md`.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "runs/binding_text_long/lm"
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (16, 48, 96), "stem_width": 16, "skip_gain": 5.0}
    config.prefix.length = 2  # as long as the descriptions of the text stage
    config.prefix.layer_norm = True
    config.data.train = "easy_vqa:train?captions=noun_phrases"
    config.data.validation = "easy_vqa:validation?captions=noun_phrases"
    config.data.image.size = 64
    config.data.max_tokens = 20
    config.data.caption_format = " {caption}"
    config.data.caption_prompt = " This is a"
    config.data.bos = True
    # Two pictures with their captions in most rows: with one alone nothing is bound through pictures.
    config.data.pair_probability = 0.7
    config.data.augment.flip = True
    config.optim.learning_rate = 4e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 1.0
    config.train.steps = 500
    config.train.batch_size = 64
    config.train.evaluate_every = 100
    config.train.patience = 4
    config.train.validation_examples = 300
    config.evaluate.task = "fewshot"
    config.evaluate.blind_control = True
    config.evaluate.max_new_tokens = 3
    config.evaluate.batch_size = 64
    config.evaluate.fewshot.episodes = "runs/binding_episodes"
    config.evaluate.fewshot.ways = (2, 5)
    config.evaluate.fewshot.inner_shots = (1, 3, 5)
    config.evaluate.fewshot.repeats = (0, 1, 3)
    return config
