"""The paper's recipe on GPT-2 1.5B.

    python -m frozen_jax.main --config=configs/cc3m_gpt2xl_nfrn50.py --workdir=runs/cc3m_gpt2xl_nfrn50

Data: as in `configs/cc3m_gpt2_nfrn50.py`.

Chip: docs/fits.md has what it fits.
Expected: a pass of 25,000 steps takes at least 9 minutes on a v5e-8, by the roofline of
`tools/compile_check`, and a third more for what `lm.remat` computes twice; nobody has measured it.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "gpt2-xl"
    config.lm.remat = "full"
    config.vision.name = "nf_resnet50"
    config.data.train = "tar:/data/cc3m/train"
    config.data.validation = "tar:/data/cc3m/validation"
    config.train.steps = 30_000
    config.train.evaluate_every = 1000
    config.train.patience = 3
    config.checkpoint.every = 1000
    return config
