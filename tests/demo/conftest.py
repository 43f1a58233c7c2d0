"""One random two-layer model for all tests of the page, and a fusion, as workdirs and opened."""

import numpy as np
import PIL.Image
import pytest

from frozen_jax.config import default_config
from frozen_jax.demo.answers import open_demo
from frozen_jax.demo.examples import write_examples
from frozen_jax.restore import read_run
from tests.export.cases import save_run


def make_config(tiny_lm):
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.bos = True
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size = 16
    return config


@pytest.fixture(scope="session")
def workdir(tiny_lm, tmp_path_factory):
    """Untrained, with a prefix as large as words, so that pictures matter."""
    config = make_config(tiny_lm)
    config.prefix.layer_norm = True
    config.data.question_format = " Q: {question} A:"
    config.evaluate.max_new_tokens = 6
    directory = tmp_path_factory.mktemp("demo") / "a_model"
    save_run(config, directory)
    return directory


@pytest.fixture(scope="session")
def fusion_workdir(tiny_lm, tmp_path_factory):
    config = make_config(tiny_lm)
    config.fusion.kind, config.fusion.width, config.fusion.classes = "gated", 16, ("red", "<b>blue</b>", "green")
    directory = tmp_path_factory.mktemp("demo") / "a_fusion"
    save_run(config, directory)
    return directory


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Four files of random pixels, and two that are no pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{seed}.png")
    (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "5.txt").write_text("words")
    return folder


@pytest.fixture(scope="session")
def examples(workdir, tmp_path_factory):
    """Those of the page."""
    return [example.path for example in write_examples(tmp_path_factory.mktemp("examples"), read_run(workdir))]


@pytest.fixture(scope="session")
def demo(workdir, pictures, examples):
    return open_demo(workdir, examples=examples, gallery=pictures)


@pytest.fixture(scope="session")
def painter(tiny_lm, tmp_path_factory):
    """A generator that is not trained, opened; its workdir is beside it."""
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.generator.update({"name": "unet", "queries": 2, "width": 16, "channels": (16, 16)})
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size = 16
    config.data.caption_format = " {caption}"
    config.data.bos = True
    config.evaluate.generate.update({"steps": 2, "guidance": 1.5})
    directory = tmp_path_factory.mktemp("demo") / "a_painter"
    save_run(config, directory, fill=True)
    return open_demo(directory, examples=()), directory


@pytest.fixture(scope="session")
def fusion_demo(fusion_workdir):
    return open_demo(fusion_workdir, examples=())
