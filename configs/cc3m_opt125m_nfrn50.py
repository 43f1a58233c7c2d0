"""The paper's recipe on OPT-125M.

    python -m frozen_jax.main --config=configs/cc3m_opt125m_nfrn50.py --workdir=runs/cc3m_opt125m_nfrn50

Data: as in `configs/cc3m_gpt2_nfrn50.py`.

Chip: docs/fits.md has what it fits.
Expected: a pass of 25,000 steps takes at least 16 minutes on one v5e and 2.5 on
a v5e-8, by the roofline of `tools/compile_check`; nobody has measured it.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "facebook/opt-125m"
    config.vision.name = "nf_resnet50"
    config.data.train = "tar:/data/cc3m/train"
    config.data.validation = "tar:/data/cc3m/validation"
    config.data.bos = True  # every text that an OPT has read began with it
    config.data.max_tokens = 35
    config.train.steps = 30_000
    config.train.evaluate_every = 1000
    config.train.patience = 3
    config.checkpoint.every = 1000
    return config
