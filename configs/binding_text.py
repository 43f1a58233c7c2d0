"""Text stage of in-context binding: a small Llama learns from words alone to use names that its prompt introduces.

    python -m frozen_jax.main --config=configs/binding_text.py --workdir=runs/binding_text
    python -m frozen_jax.main --config=configs/binding_text.py:long --workdir=runs/binding_text_long

The second goes on from the first, on texts as long as the prompts of many shots, more of them episodes. Its result,
`runs/binding_text_long/lm`, is what `configs/binding.py` freezes. Texts: `frozen_jax/data/binding.py`. The episodes
that both are measured on, with words in the pictures' places, have to be made first: `docs/binding.md`.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config(variant: str = "") -> ConfigDict:
    config = default_config()
    config.data.train = "binding_text:1"
    config.data.validation = "binding_text:2"
    config.data.max_tokens = 64
    config.data.bos = True
    config.data.caption_format = " {caption}"
    # Three times this rate, or twice the width at this rate, stays at guessing among the names for far longer.
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.optim.beta2 = 0.98
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.train.steps = 1400
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.evaluate_every = 250
    config.train.validation_examples = 256
    config.evaluate.task = "fewshot_text"
    config.evaluate.max_new_tokens = 3
    config.evaluate.batch_size = 64
    config.evaluate.fewshot.episodes = "runs/binding_episodes"
    config.evaluate.fewshot.ways = (2, 5)
    config.evaluate.fewshot.inner_shots = (1, 3)
    config.evaluate.fewshot.repeats = (0, 1)
    if variant == "long":
        config.lm.path = "runs/binding_text/lm"
        config.lm.mode = "finetuned"
        config.data.train = "binding_text:3?words=190&lead=0.4"
        config.data.validation = "binding_text:4?words=190&lead=0.4"
        config.data.max_tokens = 192
        config.optim.schedule = "cosine"
        config.train.steps = 600
        config.train.batch_size = 20
    elif variant:
        raise ValueError(f"configs/binding_text.py has no variant {variant!r}; use configs/binding_text.py:long")
    else:
        config.lm.mode = "scratch"
        config.lm.architecture = {
            "model_type": "llama",
            "vocab_size": 400,
            "max_position_embeddings": 1024,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "hidden_act": "silu",
            "initializer_range": 0.1,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    return config
