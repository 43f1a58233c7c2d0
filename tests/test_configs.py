"""Every shipped config is accepted and describes a whole run, at full size and without a hub."""

import math
import re
import runpy
from pathlib import Path

import jax
import pytest

from frozen_jax.abstract import abstract_run
from frozen_jax.config import from_config_dict
from frozen_jax.data.sources import KINDS
from frozen_jax.sharding import make_abstract_mesh

CONFIGS = sorted(Path("configs").glob("*.py"))
LARGE = {
    "cc3m_gpt2_nfrn50": 124_439_808,
    "cc3m_gpt2xl_nfrn50": 1_557_611_200,
    "cc3m_opt125m_nfrn50": 125_239_296,
    "cc3m_opt1b3": 1_315_758_080,
    "cc3m_opt6b7": 6_658_473_984,
    "cc3m_llama": 361_821_120,
    "coco_gpt2_clipvit": 124_439_808,
}
"""Parameters of the language models of those that are made for accelerators."""


def load(path):
    return from_config_dict(runpy.run_path(str(path))["get_config"]())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted_and_says_how_to_run_it(path):
    config = load(path)
    for line in (config.data.train, config.data.validation or config.data.train):
        parts = [re.sub(r"^[\d.]+ \* ", "", part) for part in line.split(" + ")]
        assert {part.partition(":")[0] for part in parts} <= {*KINDS}
    assert re.search(rf"python -m frozen_jax\.main --config=configs/{path.name} ", path.read_text())


@pytest.mark.parametrize("name", ["emoji_smollm2", "pictures_generate", "stamps_fusion", "stamps_smollm2"])
def test_no_step_is_chosen_by_the_pictures_that_are_reported(name):
    """Where these are the only held-out ones: the step with the least loss on them would be reported on them."""
    config = load(f"configs/{name}.py")
    assert config.train.evaluate_every >= config.train.steps


@pytest.mark.parametrize("name", LARGE)
def test_large_config_says_what_it_needs(name):
    text = Path(f"configs/{name}.py").read_text()
    assert "Data: " in text and "Chip: " in text


@pytest.mark.parametrize("name", ["cc3m_opt6b7", "cc3m_llama", "coco_gpt2_clipvit"])
def test_large_config_describes_a_whole_run(name):
    """One of each family and encoder; `tools/compile_check` does the rest."""
    config = load(f"configs/{name}.py")
    run = abstract_run(config, make_abstract_mesh(config.mesh, devices=8, batch_size=config.train.batch_size))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.frozen["lm"])) == LARGE[name]
    assert "lm" not in run.state.trainable
    assert ("vision" in run.state.trainable) == (not config.vision.freeze)
    assert ("vision" in run.frozen) == (config.vision.freeze and not config.vision.feature_cache)
    assert run.batch.images.shape == ((128, 1, 768) if config.vision.feature_cache else (128, 1, 224, 224, 3))


def test_every_large_config_is_listed():
    assert {path.stem for path in CONFIGS if ":/data/" in path.read_text()} == set(LARGE)
