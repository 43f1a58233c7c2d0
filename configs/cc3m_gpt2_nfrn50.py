"""The paper's recipe on GPT-2 124M: an NF-ResNet-50 and a linear prefix of 2, trained on Conceptual Captions.

    python -m frozen_jax.main --config=configs/cc3m_gpt2_nfrn50.py --workdir=runs/cc3m_gpt2_nfrn50

Data: the 3.3 million pairs of Conceptual Captions as tar shards, such as img2dataset writes, in /data/cc3m/train and
/data/cc3m/validation; other forms are in docs/data.md. Training ends when validation perplexity has stopped falling,
which the paper saw after about one pass, 25,000 steps.

Chip: one v5e is enough (docs/fits.md). Expected: a pass of 25,000 steps takes at least 16 minutes on one v5e and 2.5 on
a v5e-8, by the roofline of `tools/compile_check`; nobody has measured it.
"""

from ml_collections import ConfigDict

from frozen_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.lm.path = "gpt2"
    config.vision.name = "nf_resnet50"
    config.data.train = "tar:/data/cc3m/train"
    config.data.validation = "tar:/data/cc3m/validation"
    config.train.steps = 30_000
    config.train.evaluate_every = 1000
    config.train.patience = 3
    config.checkpoint.every = 1000
    return config
