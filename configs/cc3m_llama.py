"""The paper's recipe on SmolLM2-360M, a language model of the Llama family.

    python -m frozen_jax.main --config=configs/cc3m_llama.py --workdir=runs/cc3m_llama

Data: as in `configs/cc3m_gpt2_nfrn50.py`.

Chip: docs/fits.md has what it fits.
Expected: a pass of 25,000 steps takes at least 25 minutes on one v5e and 4 on a v5e-8, by the
roofline of `tools/compile_check`; nobody has measured it.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "HuggingFaceTB/SmolLM2-360M"
    config.vision.name = "nf_resnet50"
    config.data.train = "tar:/data/cc3m/train"
    config.data.validation = "tar:/data/cc3m/validation"
    config.data.bos = True  # without it first, SmolLM2 makes little of what follows
    config.data.max_tokens = 35
    config.train.steps = 30_000
    config.train.evaluate_every = 1000
    config.train.patience = 3
    config.checkpoint.every = 1000
    return config
