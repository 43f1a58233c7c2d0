"""A generator in PyTorch against the one here: every bit, velocities, pictures from the same noise; and none else's."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import frozen_jax
from frozen_jax.api import Model
from frozen_jax.config import from_config_dict
from frozen_jax.data.images import ImageOptions
from frozen_jax.errors import UserError
from frozen_jax.export.check import import_modeling
from frozen_jax.export.generator import (
    check_generator_round_trip,
    compare_generators,
    widen_generator,
    write_generator,
)
from frozen_jax.lora import draw_lora
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.generator import Generator, GeneratorConfig
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.quantise import quantise_lm
from frozen_jax.state import flatten
from frozen_jax.sums import digest_file
from frozen_jax.tokenizer import Tokenizer
from frozen_jax.tools.export import main
from tests.export.cases import LMS, SIDE, draw, save_run
from tests.test_lora import move_factors, multiply_out


def build_generator_model(lm, tokenizer_directory):
    """A random model: a fresh generator names nothing, whatever its weights."""
    config = lm_config_from_hf(LMS[lm])
    sizes = GeneratorConfig(
        image_size=SIDE,
        patch_size=2,
        channels=(16, 16, 32),
        width=16,
        queries=3,
        embed_width=config.embed_width,
        lm_width=config.embed_width,
        embedding_rms=0.31,
    )
    network = FrozenModel(build_lm(config), generator=Generator(sizes))
    shapes = jax.eval_shape(lambda key: {**network.init_lm(key), **network.init_generator(key)}, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.5, draw(shapes))
    return Model(network, params, Tokenizer.from_directory(tokenizer_directory), ImageOptions(size=SIDE), bos=True)


@pytest.mark.parametrize("lm", ["gpt2", "opt"])
def test_velocities_and_pictures_are_equal(lm, tiny_config, tiny_lm, tmp_path):
    config = from_config_dict(tiny_config)
    model = widen_generator(build_generator_model(lm, tiny_lm))
    write_generator(model, config, tmp_path)
    check_generator_round_trip(model, tmp_path)
    result = compare_generators(model, config, tmp_path)
    assert result.deviation > 0.5 and result.velocity <= 1e-4 * max(1, result.deviation) and result.pixels <= 1
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "queries": weights["queries"][::-1].copy()}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="1 parameters differ, such as generator/queries"):
        check_generator_round_trip(model, tmp_path)
    with pytest.raises(UserError, match="PyTorch disagrees: velocities differ"):
        compare_generators(model, config, tmp_path)


@pytest.fixture
def exported(tiny_config, tiny_lm, tmp_path):
    """A model's export, by a run that is evaluated with 3 steps."""
    tiny_config.evaluate.generate.update({"steps": 3, "guidance": 1.5})
    write_generator(widen_generator(build_generator_model("gpt2", tiny_lm)), from_config_dict(tiny_config), tmp_path)
    return tmp_path


def test_pytorch_draws_as_the_run_does_and_on_the_device_of_the_weights(exported):
    theirs = import_modeling(exported / "modeling_generator.py").PictureGenerator.from_pretrained(exported)
    pictures = theirs.draw([" a red patch", None])
    assert torch.equal(pictures, theirs.draw([" a red patch", None], steps=3, guidance=1.5))
    assert not torch.equal(pictures, theirs.draw([" a red patch", None], steps=3, guidance=2.0))
    wide = copy.deepcopy(theirs).double().draw([" a red patch", None])
    assert (wide.int() - pictures.int()).abs().max() <= 1
    with torch.device("meta"):  # where something is made without a device, it is made there
        assert torch.equal(theirs.draw([" a red patch", None]), pictures)
    elsewhere = theirs.to("meta").draw([" a red patch", None])
    assert elsewhere.device.type == "meta" and elsewhere.shape == pictures.shape


def test_every_file_has_a_digest_and_only_pytorch_reads_them(exported):
    listed = json.loads((exported / "digests.json").read_text())["sha256"]
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert listed.keys() == files - {"digests.json"} and "language_model/model.safetensors" in listed
    assert all(digest_file(exported / name) == digest for name, digest in listed.items())
    with pytest.raises(UserError, match=r"export of a picture generator, which PyTorch alone reads .*--workdir of a"):
        frozen_jax.load(exported)
    others = (exported / "config.json").stat().st_mode & 0o777
    assert (exported / "model.safetensors").stat().st_mode & 0o777 == others


@pytest.mark.parametrize("int8", [False, True])
def test_what_low_rank_factors_learnt_is_exported_in_full(int8, tiny_lm):
    """Beside kernels in bfloat16 or int8, which would round most of it away."""
    model = build_generator_model("gpt2", tiny_lm)
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params["lm"])
    factors = move_factors(draw_lora(jax.random.key(0), quantise_lm(stored) if int8 else stored, rank=2))
    wide = widen_generator(dataclasses.replace(model, params={**model.params, "lm": factors}))
    expected = multiply_out(factors)
    for path, leaf in flatten(wide.params["lm"]).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected.pop(path), rtol=1e-6, atol=1e-7, err_msg=path)
    assert not expected


def test_the_tool_exports_a_run_and_refuses_what_does_not_fit(tiny_config, tmp_path, capsys):
    tiny_config.vision.name, tiny_config.vision.options = "", {}
    tiny_config.generator.update({"name": "unet", "width": 16, "channels": (16, 32)})
    save_run(tiny_config, tmp_path / "w")
    words = [f"--workdir={tmp_path / 'w'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        main([*words, "--format=stablehlo"])
    error = capsys.readouterr().err
    assert "holds a picture generator, which --format=pytorch exports" in error and "drop --format=stablehlo" in error
    main(words)
    assert "every parameter bit for bit; in PyTorch velocities differ by at most" in capsys.readouterr().out
    assert (tmp_path / "out" / "modeling_generator.py").is_file()
