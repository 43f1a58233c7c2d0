"""A strict harness: 8 CPU devices, no implicit rank promotion, shapes checked at run time, no hub."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
# The suite compiles more than it computes: with least effort, and no program twice. All workers of a run of the suite,
# and the programs that they start, share one directory of compiled programs; whoever made it removes it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=_compiled.name,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )

from jaxtyping import install_import_hook

install_import_hook("frozen_jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """A directory with a random two-layer GPT-2 and its tokenizer, as `lm.path` takes it."""
    from frozen_jax.language_model import save_lm
    from frozen_jax.models.frozen import FrozenModel
    from frozen_jax.models.lm import build_lm, lm_config_from_hf
    from frozen_jax.tokenizer import train_bpe

    architecture = {
        "model_type": "gpt2",
        "vocab_size": 300,
        "n_positions": 64,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = lm_config_from_hf(architecture)
    params = FrozenModel(build_lm(config)).init_lm(jax.random.key(3))["lm"]
    tokenizer = train_bpe(["a red patch at the top", "a blue patch"], vocab_size=300, special_tokens=["<|endoftext|>"])
    directory = tmp_path_factory.mktemp("lm")
    save_lm(directory, config, params, tokenizer)
    return directory


@pytest.fixture
def tiny_config(tiny_lm):
    """A run on synthetic pictures through `tiny_lm`: seconds on a CPU."""
    from frozen_jax.config import default_config

    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8, 8), "depths": (1, 1), "stem_width": 8}
    config.data.train = "fake:48"
    config.data.validation = "fake:10"
    config.data.image.size = 16
    config.data.max_tokens = 40
    config.optim.learning_rate = 1e-2
    config.train.steps = 6
    config.train.batch_size = 8
    config.train.log_every = 2
    config.train.evaluate_every = 3
    config.checkpoint.every = 2
    config.checkpoint.keep = 3
    config.telemetry.captions = 0  # a program more to compile
    return config
