"""The paper's scale: its recipe on OPT-6.7B, the published model nearest to its language model of seven billion.

    python -m frozen_jax.main --config=configs/cc3m_opt6b7.py --workdir=runs/cc3m_opt6b7

Data: as in `configs/cc3m_gpt2_nfrn50.py`.

Chip: v5e-8, with the frozen weights cut over its chips (docs/fits.md). Expected: a pass of 25,000 steps takes at least
34 minutes on it, by the roofline of `tools/compile_check`, and a third more for what `lm.remat` computes twice; nobody
has measured it. The roofline leaves out that cut weights are gathered in every step, 67 GB through the links of each
chip. In int8 they are whole on every chip: `--config.lm.weights=int8 --config.mesh.data=-1 --config.mesh.fsdp=1`.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "facebook/opt-6.7b"
    config.lm.remat = "full"
    config.vision.name = "nf_resnet50"
    config.data.train = "tar:/data/cc3m/train"
    config.data.validation = "tar:/data/cc3m/validation"
    config.data.bos = True  # every text that an OPT has read began with it
    config.data.max_tokens = 35
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.train.steps = 30_000
    config.train.evaluate_every = 1000
    config.train.patience = 3
    config.checkpoint.every = 1000
    return config
